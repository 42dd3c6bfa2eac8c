"""Which modules are judged, each by the tests that are meant to judge it, in seconds; and what is known to survive."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lvlm_attn"


@dataclass(frozen=True)
class Group:
    """Modules that are judged together."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


JUDGED = (
    Group(
        ("evals/core/stats", "evals/core/spread"),
        ("tests/evals/core/test_stats.py", "tests/evals/core/test_spread.py"),
    ),
    Group(
        ("evals/core/parsers", "evals/closed/rules"),
        ("tests/evals/core/test_parsers.py", "tests/evals/closed/test_rules.py"),
    ),
    Group(
        ("evals/chair/vocab", "evals/chair/words", "evals/chair/spellings", "evals/chair/marking"),
        (
            "tests/evals/chair/test_captions.py",
            "tests/evals/chair/test_score.py",
            "tests/evals/chair/test_marking.py",
        ),
    ),
    Group(
        ("kernels/reference", "kernels/spec", "kernels/visibility"),
        (
            "tests/kernels/test_spec.py",
            "tests/kernels/test_paths.py::test_definition_equals_loops",
            "tests/kernels/test_paths.py::test_fractions_keep_float64",
            "tests/kernels/test_visibility.py::test_readable_keys_equal_a_double_loop",
            "tests/kernels/test_visibility.py::test_untouched_rows_read_what_causality_lets_them",
            "tests/kernels/test_visibility.py::test_a_strength_multiplies_the_exponentiated_score",
            "tests/kernels/test_visibility.py::test_what_is_no_mask_is_refused_when_it_is_made",
            "tests/kernels/test_edges.py",
            "tests/kernels/test_amplification.py::test_scores_equal_loops",
            "tests/kernels/test_amplification.py::test_constant_gains_multiply_weights",
        ),
    ),
    Group(("layout/fields", "layout/grids", "layout/prompt"), ("tests/layout",)),
)


def listed() -> dict[str, dict[str, str]]:
    """For each module, the faults that docs/testing.md lists as not noticed, each with the reason."""
    text = (ROOT / "docs/testing.md").read_text("utf-8")
    found: dict[str, dict[str, str]] = {}
    for line in text[text.index("## Small faults") :].splitlines()[1:]:
        if line.startswith("## "):
            break
        if heading := re.match(r"\*\*([\w/]+)\*\*", line):
            found[heading[1]] = faults = {}
        elif entry := re.match(r"- (.+): ([^`]+)$", line):
            faults[entry[1]] = entry[2]
    return found
