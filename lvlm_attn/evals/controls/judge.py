"""What the finished runs of controls say about a gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lvlm_attn.evals.compare import compare
from lvlm_attn.evals.controls.equal_length import cut_to_equal_length
from lvlm_attn.evals.controls.found import LEVEL, Change, Control, Controls
from lvlm_attn.evals.controls.matched import auroc, matched_answers
from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.parsers import PARSERS, get_parser
from lvlm_attn.evals.core.report import limits
from lvlm_attn.evals.pairing import Compared, Pairing
from lvlm_attn.evals.wording import size_of

PREFER_YES = " Whenever possible, please select Yes."
"""Put after the question, as in arXiv 2504.10020."""


@dataclass(frozen=True)
class Judge:
    """The runs, and what comparing them says.

    Attributes:
        method: the run whose gain is in question.
        others: the runs of the bare model and of the controls, by name.
        resamples: draws of pictures for intervals.
    """

    method: Run
    others: Mapping[str, Run]
    resamples: int

    def found(self, name: str, asks_yes_no: bool, beta: float) -> Controls:
        """All controls.

        Args:
            name: the method as written on the command line.
            asks_yes_no: the kind of the benchmark.
            beta: the cut to plausible tokens.
        """
        compared = self._compared(self.others["bare"], self.method)
        gain = self._change(compared)
        metric = compared.tally.outcome
        conditions = f"{limits(self.method.generation)}; {size_of(self._pairing(compared))}"
        rows = [self._identity()]
        details: dict[str, float | None] = {}
        if asks_yes_no:
            rows.append(self._against("prefer-yes", f"the bare model asked “{PREFER_YES.strip()}”"))
            matched, details = self._matched()
            rows.append(matched)
        elif "label" not in self.method.lines[0]:
            rows.append(self._equal_length())
        rows.append(self._plausible(beta))
        return Controls(
            compared.tally.title, name, metric, metric in compared.tally.lower_is_better,
            gain, self._is_better(gain, compared), conditions, tuple(rows), details,
        )  # fmt: skip

    def _compared(self, first: Run, second: Run) -> Compared:
        return compare([first, second], force=True, resamples=self.resamples)

    def _pairing(self, compared: Compared) -> Pairing:
        (pairing,) = compared.runs.values()
        return pairing

    def _change(self, compared: Compared) -> Change:
        change = self._pairing(compared).metrics[compared.tally.outcome]
        return Change(change.difference, change.low, change.high, change.p)

    def _is_better(self, change: Change, compared: Compared) -> bool:
        is_up = change.difference > 0
        is_better = is_up != (compared.tally.outcome in compared.tally.lower_is_better)
        return change.difference != 0 and is_better and change.p < LEVEL

    def _row(self, name: str, about: str, first: Run, second: Run, remark: str = "") -> Control:
        compared = self._compared(first, second)
        change = self._change(compared)
        return Control(name, about, change, self._is_better(change, compared), remark)

    def _against(self, name: str, about: str) -> Control:
        return self._row(name, about, self.others[name], self.method)

    def _identity(self) -> Control:
        pairing = self._pairing(self._compared(self.others["bare"], self.others["identity"]))
        changed = pairing.samples - pairing.same_texts
        if changed == 0:
            remark = "The identity control gives every answer of the bare model, word for word."
        else:
            remark = (
                f"The identity control changes {changed} of {pairing.samples} answers of the bare model: so many "
                "come from the machinery alone (beams, the order of additions), not from what the method does."
            )
        row = self._against("identity", "the same machinery without the method's effect")
        return replace(row, remark=remark)

    def _matched(self) -> tuple[Control, dict[str, float | None]]:
        about = "the bare model with its yes/no threshold moved"
        bare = self.others["bare"]
        parser = str(self.method.scoring.get("parser", "strict"))
        read = get_parser(parser if parser in PARSERS else "strict")
        verdicts = [
            read(str(line["raw_text"]), "yes" if line.get("label") == "yes" else "no") == "yes"
            for lines in self.method.seeds
            for line in lines
        ]
        share = sum(verdicts) / len(verdicts)
        answered = matched_answers(bare.lines, share)
        details = {"AUROC of the bare model": auroc(bare.lines), "of the method": auroc(self.method.lines)}
        if answered is None:
            remark = "The yes-logit shift needs the probabilities of yes and no, which this model's tokens do not give."
            return Control("yes-logit shift", about, None, None, remark), details
        reached = sum(line["raw_text"] == "Yes" for line in answered) / len(answered)
        remark = (
            f"The yes-logit shift answers yes to {100 * reached:.1f} % of the questions, the method to "
            f"{100 * share:.1f} %."
        )
        shifted = replace(bare, name="shift", seeds=(tuple(answered),), inner=())
        return self._row("yes-logit shift", about, shifted, self.method, remark), details

    def _equal_length(self) -> Control:
        bare = self.others["bare"]
        cut = [
            cut_to_equal_length(first, second)
            for first, second in zip(bare.seeds, self.method.seeds, strict=True)
        ]
        first, second = (
            replace(run, name=name, seeds=tuple(tuple(pair[place]) for pair in cut), inner=())
            for place, (run, name) in enumerate(((bare, "bare"), (self.method, "method")))
        )
        about = "the bare model, both captions of a picture cut to equal length"
        return self._row("equal length", about, first, second)

    def _plausible(self, beta: float) -> Control:
        if "plausible" in self.others:
            return self._against(
                "plausible",
                f"the bare model, sampling only tokens at least {beta:g} times as likely as the likeliest",
            )
        remark = (
            "The plausibility cut alone changes nothing in greedy decoding, which takes the likeliest token anyway; "
            "sample (--decode sample) to see it."
        )
        return Control("plausible", "the plausibility cut alone", None, None, remark)
