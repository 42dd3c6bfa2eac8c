"""What the finished runs of controls say about a gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lvlm_attn.evals.compare import compare
from lvlm_attn.evals.controls.equal_length import cut_to_equal_length
from lvlm_attn.evals.controls.found import LEVEL, Change, Control, Controls
from lvlm_attn.evals.controls.matched import Kind, auroc, held, kinds_of, matched_answers
from lvlm_attn.evals.core.finished import Run
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
        kinds = kinds_of(self.method.lines)
        if asks_yes_no:
            rows.append(self._prefer_yes())
        if kinds:
            matched, details = self._matched(kinds)
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

    def _prefer_yes(self) -> Control:
        about = f"the bare model asked “{PREFER_YES.strip()}”"
        if "prefer-yes" in self.others:
            return self._against("prefer-yes", about)
        remark = (
            "The request to prefer yes makes no sense for questions answered by a letter, which are among these; "
            "choose the others (--subset yes_no) to see it."
        )
        return Control("prefer-yes", about, None, None, remark)

    def _matched(self, kinds: Sequence[Kind]) -> tuple[Control, dict[str, float | None]]:
        """The thresholds of all kinds of questions moved, each to the method's share."""
        bare, told = self.others["bare"], " and ".join(kind.told for kind in kinds)
        about = f"the bare model with its {told} threshold{'s' * (len(kinds) > 1)} moved"
        name = f"{kinds[0].name} shift" if len(kinds) == 1 else "threshold shift"
        details: dict[str, float | None] = {}
        answered, reached = [], []
        for kind in kinds:
            own = [line for line in bare.lines if kind.asks(line)]
            more = "" if len(kinds) == 1 else f", {kind.told}"
            details |= {
                f"AUROC of the bare model{more}": auroc(own),
                f"of the method{more}": auroc([line for line in self.method.lines if kind.asks(line)]),
            }
            share = self._share(kind)
            shifted = matched_answers(own, share)
            if shifted is None:
                remark = (
                    f"The {name} needs the probabilities of {' and '.join(kind.words)}, which this model's tokens do "
                    "not give."
                )
                return Control(name, about, None, None, remark), details
            said = sum(line["raw_text"] == kind.first for line in shifted) / len(shifted)
            answered += shifted
            reached.append(
                f"{kind.first.replace('Yes', 'yes')} to {100 * said:.1f} % of the questions, the method to "
                f"{100 * share:.1f} %"
            )
            if kind.first == "A":
                details["probability of a letter in the bare model"] = held(own)
        order = {line["sample_id"]: place for place, line in enumerate(bare.lines)}
        answered.sort(key=lambda line: order[line["sample_id"]])
        shifted_run = replace(bare, name="shift", seeds=(tuple(answered),), inner=())
        remark = f"The {name} answers {'; and '.join(reached)}."
        return self._row(name, about, shifted_run, self.method, remark), details

    def _share(self, kind: Kind) -> float:
        """How often the method answers with the first of two words, its answers read by the run's own rule."""
        rule = str(self.method.scoring.get("parser", "strict"))
        lines = [line for seed in self.method.seeds for line in seed if kind.asks(line)]
        return sum(kind.says_first(line, rule) for line in lines) / len(lines)

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
