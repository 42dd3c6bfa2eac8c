"""Run folders with anything changed in them: read, compared and reported, or refused in a sentence, within a second."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.cli.pictures import picture_source
from lvlm_attn.evals.core.finished import read_run
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.page import page
from lvlm_attn.evals.reporting import report
from tests.evals import runs
from tests.evals.test_any_input import VALUES
from tests.fuzzing import drawn, value_or_sentence
from tests.json_changes import changed, places_in

FORMS = ("md", "csv", "latex", "html")


def folder_of(kind):
    """Settings, scoring and lines of a small run of each kind."""
    if kind == "chair":
        scoring = {"mode": "strict", "drop_incomplete_sentence": False}
        return {"settings": runs.settings("chair"), "scoring": scoring}, runs.chair_lines(
            ["A dog.", "A cat. A dog."]
        )
    if kind == "mme":
        lines = [
            {**line, "category": "count", "groups": {"plus": [str(i // 2), 2]}, "cluster": str(i // 2)}
            for i, line in enumerate(runs.pope_lines([True, False, True, True]))
        ]
        return {"settings": runs.settings("mme"), "scoring": {"parser": "strict", "parts": ["count"]}}, lines
    return {"settings": runs.settings(), "scoring": {"parser": "strict"}}, runs.pope_lines(
        [True, False, "Well"]
    )


def written(folder, config, lines, metrics, environment):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "env.json").write_text(json.dumps(environment))
    return folder


def reported(folders, form):
    made = report(folders, force=True, resamples=20)
    return page(made, picture_source(None)) if form == "html" else made.text(form)


@drawn(60)
@given(data=st.data(), kind=st.sampled_from(["pope", "chair", "mme"]), form=st.sampled_from(FORMS))
def test_any_change_of_a_run(tmp_path, data, kind, form):
    whole = {"config": folder_of(kind)[0], "lines": folder_of(kind)[1]}
    whole |= {
        "metrics": {"accuracy": 0.5, "image_tokens_removed": 2},
        "environment": {"pictures": str(tmp_path)},
    }
    bad = whole
    for _ in range(data.draw(st.integers(1, 2))):
        places = [place for place in places_in(bad) if len(place) > 1]
        bad = changed(bad, data.draw(st.sampled_from(places)), data.draw(VALUES))
    good = written(tmp_path / "good", *whole.values())
    folder = written(tmp_path / "bad", *bad.values())
    value_or_sentence(read_run, folder)
    value_or_sentence(reported, [folder], form)
    value_or_sentence(reported, [good, folder], form)
    value_or_sentence(reported, [folder, good], form)
    value_or_sentence(RunFolder, folder, whole["config"]["settings"])


@drawn(40)
@given(
    name=st.sampled_from(["config.json", "samples.jsonl", "metrics.json", "env.json"]),
    data=st.binary(max_size=60),
)
@pytest.mark.parametrize("head", [b"", b'{"settings": ', b"{}\n", b'{"sample_id": "x", '])
def test_any_bytes_in_a_run(tmp_path, name, data, head):
    config, lines = folder_of("pope")
    folder = written(tmp_path / "a", config, lines, {}, {})
    (folder / name).write_bytes(head + data)
    value_or_sentence(read_run, folder)
    value_or_sentence(reported, [folder], "md")
    value_or_sentence(RunFolder, folder, config["settings"])
