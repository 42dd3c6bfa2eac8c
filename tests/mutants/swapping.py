"""A fault is put into functions that are there already, so that nothing has to be imported anew."""

import ast
import functools
import gc
from collections import defaultdict
from collections.abc import Collection, Iterator
from types import CodeType, FunctionType

from tests.mutants.faults import Fault, code_with


class Living:
    """The functions of some files that are in use, and the caches of the package, found once.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Collection[str]):
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        self._caches = []
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename in paths:
                self._functions[_key(thing.__code__)].append(thing)
            elif type(thing) is functools._lru_cache_wrapper and _is_ours(thing, paths):
                self._caches.append(thing)

    def take(self, source: str, path: str, fault: Fault) -> None:
        """Puts a fault into the functions of a file; what caches hold was computed without it."""
        code, tree = code_with(source, path, fault)
        key = (path, fault.function, fault.first)
        (wanted,) = (found for found in _codes(code) if _key(found) == key)
        if not self._functions[key]:
            raise LookupError(f"no function of {path} is {fault.function} at line {fault.first}")
        for function in self._functions[key]:
            function.__code__ = wanted
            if fault.in_defaults:
                _give_defaults(function, tree, fault)
        self.forget()

    def forget(self) -> None:
        """Empties the caches, so that what a test needs is computed in it."""
        for cache in self._caches:
            cache.cache_clear()


def _is_ours(cache: functools._lru_cache_wrapper, paths: Collection[str]) -> bool:
    code = getattr(cache.__wrapped__, "__code__", None)
    return cache.__module__.startswith("lvlm_attn") or (code is not None and code.co_filename in paths)


def _key(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _give_defaults(function: FunctionType, tree: ast.Module, fault: Fault) -> None:
    arguments = next(
        node.args
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and min([node.lineno, *(item.lineno for item in node.decorator_list)]) == fault.first
    )

    def value(node: ast.expr) -> object:
        return eval(compile(ast.Expression(node), fault.function, "eval"), function.__globals__)

    function.__defaults__ = tuple(map(value, arguments.defaults))
    named = zip(arguments.kwonlyargs, arguments.kw_defaults)
    function.__kwdefaults__ = {name.arg: value(node) for name, node in named if node is not None}
