"""What a fault is: a node of the syntax tree and what may stand in its place, a list of pure functions of the node."""

import ast
from collections.abc import Iterator

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Div,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
OPPOSITES = (
    ("min", "max"),
    ("amin", "amax"),
    ("cummin", "cummax"),
    ("any", "all"),
    ("lower", "upper"),
    ("lstrip", "rstrip"),
    ("strip", "lstrip"),
    ("startswith", "endswith"),
    ("partition", "rpartition"),
    ("zeros_like", "ones_like"),
    ("zeros", "ones"),
    ("match", "search"),
)
MODULES = ("np", "math", "re", "torch")
NAMES = {**{b: a for a, b in OPPOSITES}, **dict(OPPOSITES)}


def instead(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of an expression, or of a statement."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield _with(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for place in range(len(node.values)):
            left = [*node.values[:place], *node.values[place + 1 :]]
            yield left[0] if len(left) == 1 else _with(node, values=left)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield _with(node, id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in NAMES:
        yield _with(node, attr=NAMES[node.attr])
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.Slice):
        yield from (_with(node, **{part: None}) for part in ("lower", "upper") if getattr(node, part))
    elif isinstance(node, ast.IfExp | ast.If):
        if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield _with(node, ifs=[])
    else:
        yield from _other_statements(node)


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
    elif isinstance(value, str):
        yield ast.Constant(f"XX{value}XX")


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """A named argument left out, and the last one in order where the call may do without it."""
    if isinstance(node.func, ast.Name) and node.func.id == "cast":
        return
    for place in range(len(node.keywords)):
        yield _with(node, keywords=[*node.keywords[:place], *node.keywords[place + 1 :]])
    called = node.func.value if isinstance(node.func, ast.Attribute) else node.func
    is_needed = (
        len(node.args) == 1 and isinstance(called, ast.Name) and (called is node.func or called.id in MODULES)
    )
    if node.args and not is_needed and not isinstance(node.args[-1], ast.Starred):
        yield _with(node, args=node.args[:-1])


def _other_statements(node: ast.AST) -> Iterator[ast.AST]:
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if is_call or isinstance(node, ast.AugAssign | ast.Break | ast.Continue | ast.Raise):
        yield ast.Pass()


def _with(node: ast.AST, **changed: object) -> ast.AST:
    """A node like this one, but for some of its fields; the others are shared."""
    fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)} | changed
    return ast.copy_location(type(node)(**fields), node)
