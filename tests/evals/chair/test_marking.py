"""Where objects stand in a caption: by hand, and that the pieces are the caption."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.evals.chair.marking import marked
from lvlm_attn.evals.chair.vocab import MODES
from tests.fuzzing import sized

WORDS = st.sampled_from(
    ["a", "Dog", "dogs", "hot", "dog", "DOG", "hot dog", "love-seat", "bus", "toilet", "seat", "dogma"]
)
GLUE = st.sampled_from([" ", "  ", ". ", "-", "\n", "_", "'s ", ""])


def test_objects_are_marked_where_they_are_named():
    assert marked("Dogma: the DOG sat, and a hot\ndog lay.", ["dog"]) == [
        ("Dogma: the ", "text"),
        ("DOG", "there"),
        (" sat, and a ", "text"),
        ("hot\ndog", "hallucinated"),
        (" lay.", "text"),
    ]
    assert marked("dog dog", ["cat"]) == [("dog", "hallucinated"), (" ", "text"), ("dog", "hallucinated")]
    assert marked("A T.V. set.", ["tv"]) == [("A ", "text"), ("T.V", "there"), (". set.", "text")]
    assert marked("Nothing.", ["dog"]) == [("Nothing.", "text")]
    assert marked("", ["dog"]) == []


def test_what_stands_in_skipped_reasoning_is_marked_at_its_first_mention():
    assert marked("<think>dog</think>A cat", ["cat"]) == [
        ("<think>dog</think>A ", "text"),
        ("cat", "there"),
    ]


def test_words_follow_the_mode():
    assert marked("hotdogs", ["hot dog"]) == [("hotdogs", "there")]
    assert marked("hotdogs", ["hot dog"], "pattern") == [("hotdogs", "text")]
    assert marked("skiing", ["skis"], "wordnet") == [("skiing", "there")]


def test_a_mention_that_is_not_found_again_is_left_out():
    """The token of a genitive is written otherwise than it stands; what follows it is marked all the same."""
    assert marked("İ dog", ["dog"])[-1] == ("dog", "there")


@sized(200)
@given(st.lists(st.tuples(WORDS, GLUE), max_size=8), st.sampled_from(MODES))
def test_the_pieces_are_the_caption(parts, mode):
    text = "".join(word + glue for word, glue in parts)
    pieces = marked(text, ["dog"], mode)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    kinds = [kind for _, kind in pieces]
    assert all(a != "text" or b != "text" for a, b in itertools.pairwise(kinds))
