"""Examples of docstrings become blocks of code.

The docstrings say `Example:`, which the reader of mkdocstrings takes for a boxed note in which `>>>` quotes. Here its
lines are read as what they are: code, without prompts and without marks for doctest, and what it prints.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import (
    DocstringSectionAdmonition,
    DocstringSectionExamples,
    DocstringSectionKind,
    Extension,
    Object,
)

_MARK = re.compile(r"\s*# doctest: \+\w+")


class Examples(Extension):
    """Turns every section `Example` into one of code."""

    def on_object(self, *, obj: Object, **options: Any) -> None:
        """Reads the docstring of an object, once it is loaded."""
        if obj.docstring is None:
            return
        obj.docstring.parsed = [  # type: ignore[misc]
            _as_code(section) if _is_example(section) else section
            for section in obj.docstring.parse("google")
        ]


def _is_example(section: Any) -> bool:
    return isinstance(section, DocstringSectionAdmonition) and section.title == "Example"


def _as_code(section: Any) -> DocstringSectionExamples:
    text = _MARK.sub("", section.value.description)
    return DocstringSectionExamples([(DocstringSectionKind.examples, text)])
