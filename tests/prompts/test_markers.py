"""Where an answer begins, from chat templates of several kinds."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.prompts.chat import format_prompt
from lvlm_attn.prompts.markers import assistant_marker, find_marker


class Words:
    """A tokenizer of words, for processors made by hand."""

    def __init__(self):
        self.known = {}

    def __call__(self, text, add_special_tokens=True):
        words = text.replace("\n", " \n ").split(" ")
        return {"input_ids": [self.known.setdefault(word, len(self.known)) for word in words if word]}


class Chat:
    """A processor with a template of its own."""

    def __init__(self, user, answer, prompt):
        self.tokenizer, self.chat_template = Words(), "x"
        self.forms, self.prompt = {"user": user, "assistant": answer}, prompt

    def apply_chat_template(self, turns, add_generation_prompt, tokenize):
        assert not tokenize
        said = [self.forms[turn["role"]].format(turn["content"][0]["text"]) for turn in turns]
        return "".join(said) + self.prompt * add_generation_prompt


@pytest.mark.parametrize(
    ("processor", "marker"),
    [
        (Chat("USER: {} ", "ASSISTANT: {} </s>", "ASSISTANT:"), "ASSISTANT:"),
        (
            Chat(
                "<|im_start|> user\n{} <|im_end|>\n",
                "<|im_start|> assistant\n{} <|im_end|>\n",
                "<|im_start|> assistant\n",
            ),
            "<|im_start|> assistant\n",
        ),
        (Chat("[INST] {} [/INST]", " {} </s>", ""), "[/INST]"),
    ],
    ids=["words", "chatml", "inst"],
)
def test_the_marker_comes_from_the_chat_template(processor, marker):
    assert list(assistant_marker(processor)) == processor.tokenizer(marker)["input_ids"]


def test_the_toys_marker_is_found_in_its_prompts():
    _, processor = la.load("toy")
    marker = list(assistant_marker(processor))
    assert marker == processor.tokenizer("ASSISTANT:", add_special_tokens=False)["input_ids"]
    ids = processor.tokenizer(format_prompt(processor, "Is there a dog?", 1))["input_ids"]
    assert ids[-len(marker) :] == marker


def test_a_template_without_a_marker_is_said_in_one_sentence():
    class Broken(Chat):
        def apply_chat_template(self, turns, add_generation_prompt, tokenize):
            raise RuntimeError("no such role")

    for processor in (Chat("{}", "{}", ""), Broken("", "", "")):
        with pytest.raises(la.LvlmAttnError, match=r"marker=\(\.\.\.\)") as caught:
            assistant_marker(processor)
        assert "\n" not in str(caught.value)


def test_markers_are_found_where_they_may_lie():
    """Every occurrence by its last token, overlapping ones too, and none that padding touches."""
    ids = torch.tensor([[7, 8, 7, 8, 7, 7, 8], [8, 7, 8, 5, 7, 8, 9]])
    allowed = torch.ones_like(ids).bool()
    allowed[1, :2] = False
    found = find_marker(ids, (7, 8), allowed)
    assert found.int().tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
    assert find_marker(ids, (7, 8, 7), allowed)[0].nonzero().flatten().tolist() == [2, 4]
    assert not find_marker(ids, tuple(range(9)), allowed).any()
