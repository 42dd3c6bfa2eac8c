"""AMBER's four metrics of descriptions, without its similarity step.

CHAIR is the share of nouns that are in the list and not in the picture, Cover the share of annotated objects that are
mentioned, Hal the share of descriptions with such a noun, Cog the share of annotated likely hallucinations mentioned.
A noun stands for an object if it is its name or one of the words associated with it. The released code also takes
words whose vectors are similar (spaCy, above 0.8), which need a model of vectors; so CHAIR and Hal come out higher
here, Cover and Cog lower, and numbers compare with each other alone. As there, a noun counts for the first object it
fits.

Source: Wang et al., 2023 (arXiv 2311.07397), section 3.3, and its released ``inference.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lvlm_attn.evals.amber.words import WordLists
from lvlm_attn.evals.closed.cells import ratio
from lvlm_attn.evals.core.tally import Counts

MATCHING = "exact and associated words, without the similarity step"
COLUMNS = (
    "wrong nouns",
    "nouns",
    "covered",
    "objects",
    "wrong responses",
    "responses",
    "likely",
    "listed",
    "words",
)


def count(text: str, truth: Sequence[str], hallu: Sequence[str], lists: WordLists) -> Counts:
    """The counts of one description, in the order of :data:`COLUMNS`.

    Args:
        text: the description.
        truth: the objects in the picture.
        hallu: objects that are likely to be hallucinated there.
        lists: AMBER's words.
    """
    nouns = lists.nouns(text)
    there, likely = _places(truth, lists), _places(hallu, lists)
    covered, mentioned = set(), set()
    wrong = 0
    for noun in nouns:
        if noun in lists.safe:
            continue
        if noun in there:
            covered.add(there[noun])
            continue
        wrong += 1
        if noun in likely:
            mentioned.add(likely[noun])
    return (
        wrong, len(nouns), len(covered), len(truth), float(wrong > 0), 1.0, len(mentioned), len(hallu),
        len(text.split()),
    )  # fmt: skip


def _places(objects: Sequence[str], lists: WordLists) -> dict[str, int]:
    """Which object a word stands for: associated words come first, as in the released code."""
    found: dict[str, int] = {}
    for at, name in enumerate(objects):
        for word in lists.associations.get(name.lower(), ()):
            found.setdefault(word, at)
    for at, name in enumerate(objects):
        found.setdefault(name.lower(), at)
    return found


def metrics(sums: Sequence[float]) -> Mapping[str, float]:
    """Summed counts to metrics; a quotient without a denominator is 0."""
    wrong, nouns, covered, objects, bad, responses, likely, listed, words = sums
    return {
        "chair": ratio(wrong, nouns),
        "cover": ratio(covered, objects),
        "hal": ratio(bad, responses),
        "cog": ratio(likely, listed),
        "len": ratio(words, responses),
        "nouns_per_response": ratio(nouns, responses),
    }
