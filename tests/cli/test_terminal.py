"""What data and answers hold is shown as text: no markup is obeyed, no escape code reaches the terminal."""

import io
import json

import pytest

import lvlm_attn as la
from lvlm_attn.cli.common import print_json, say, tell
from lvlm_attn.cli.main import main
from lvlm_attn.errors import printable
from lvlm_attn.evals.core.sampling import SeededSampler, folded
from lvlm_attn.evals.core.tables import Table, plain, show

EVIL = [
    "[/red]",
    "[bold]x",
    "[link=a]",
    "\x1b[2J\x1b[1;1Hgone",
    "\x07",
    "\x9b31m",
    "a\nb",
    "\ud800",
    "\u202eabc",
    ":warning:",
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", EVIL)
def test_markup_and_escape_codes_in_a_table_are_text(name):
    table = Table(f"title {name}", ("run", name), ((name, "1"), ("b", name)))
    for stream in (Terminal(), io.StringIO()):
        show(table, stream)
        shown = stream.getvalue()
        shown.encode()
        assert "\x07" not in shown
        assert "[2J" not in shown.replace("\\x1b[2J", "")
        assert printable(name.replace("\n", "\\n"))[:5] in shown
    assert len(plain(table).splitlines()) == 4


def test_joined_emoji_and_other_scripts_are_left_alone():
    for text in ("\U0001f468\u200d\U0001f469", "\u0645\u200c\u06cc", "caf\u00e9\n\tx"):
        assert printable(text) == text


def test_answers_and_remarks_are_printed_as_text(capsys):
    for name in EVIL:
        say(name)
        tell(name)
        print_json({"text": name})
        out, err = capsys.readouterr()
        *said, written = out.splitlines()
        assert "\x1b" not in out + err
        assert json.loads(written)["text"] == name
        assert "\n".join(said) == printable(name)


def test_an_error_about_an_odd_name_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--model", "toy", "--image", "\x1b[2J\n.png", "--prompt", "x"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_an_error_is_wrapped_on_a_terminal_alone(monkeypatch):
    shown = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("sys.stderr", stream)
        with pytest.raises(SystemExit):
            main(["generate", "--model", "toy", "--image", "a.png", "--prompt", "x", "--intervene", "boost"])
        shown.append(stream.getvalue())
    wrapped, plainly = shown
    assert plainly.count("\n") == 1 < wrapped.count("\n")
    assert max(map(len, wrapped.splitlines())) <= 80
    assert " ".join(wrapped.split()) == plainly.strip()


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**63, 2**64, 10**100, -1, -(2**70)])
def test_any_whole_number_is_a_seed(seed):
    import torch

    scores = torch.zeros(1, 50)
    first, again = (SeededSampler([seed])(scores, scores) for _ in range(2))
    assert torch.equal(first, again)
    assert folded(seed) == folded(seed)
    if 0 <= seed < 2**63:
        assert folded(seed) == seed


def test_the_command_line_takes_any_seed(capsys, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = [
        "generate",
        "--model",
        "toy",
        "--image",
        str(tmp_path / "a.png"),
        "--prompt",
        "Is there a dog?",
    ]
    command += ["--decode", "sample", "--max-new-tokens", "2", "--json"]
    said = []
    for seed in ("-5", "-5", str(10**40)):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--seed", seed])
        assert not stopped.value.code
        said.append(json.loads(capsys.readouterr().out)["text"])
    assert said[0] == said[1]


def test_names_of_methods_can_be_written():
    for name in ("[/red]", "a b", "A", "\x1b", "a\nb"):

        class Odd(la.Intervention):
            pass

        Odd.name = name
        with pytest.raises(la.LvlmAttnError, match="lower-case"):
            la.register(Odd)
