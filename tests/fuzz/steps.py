"""The steps: enter, leave, use, set the backend; each may be interrupted at any line, or meet an error."""

import math
import random
import warnings

import torch
from transformers import LogitsProcessor, LogitsProcessorList

import lvlm_attn as la
from lvlm_attn.wrapping import written_form
from tests.fuzz.methods import some_methods
from tests.fuzz.subject import BACKENDS, Subject, check_process
from tests.interrupts import Interrupt

NAMES = ("llava", "qwen2_5_vl")
MOST_OPEN = 3


class Broken(Exception):
    """An error of the user's own code."""


class Breaks(LogitsProcessor):
    """Raises in the second step."""

    def __init__(self):
        self.step = 0

    def __call__(self, ids, scores):
        self.step += 1
        if self.step == 2:
            raise Broken
        return scores


class Fuzz:
    """A run of random steps.

    Args:
        seed: of all random choices.
    """

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.subjects = [Subject(name) for name in NAMES]
        self.log, self.interrupts, self.refusals, self.errors = [], 0, 0, 0

    def run(self, steps):
        """Takes steps, then leaves all wraps.

        Raises:
            AssertionError: as soon as something is not as it ought to be, with the last steps.
        """
        for _ in range(steps):
            self.step()
        while any(subject.open for subject in self.subjects):
            self._do(*self._leaving())

    def step(self):
        """One step of any kind."""
        kinds = {self._entering: 3, self._leaving: 3, self._using: 5, self._setting: 1}
        subject, what, action = self.rng.choices(list(kinds), list(kinds.values()))[0]()
        self._do(subject, what, action)

    def _do(self, subject, what, action):
        most = {"enter": 4000, "leave": 600}.get(what.split()[0], 30000)
        line = int(math.exp(self.rng.uniform(0, math.log(most)))) if self.rng.random() < 0.5 else 0
        interrupt = Interrupt(line)
        self.log.append(f"{subject.name}: {what}")
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                action(interrupt)
        except KeyboardInterrupt:
            self.interrupts += 1
            self.log[-1] += f", Ctrl-C at {interrupt.place}"
        except la.LvlmAttnError as error:
            self.refusals += 1
            self.log[-1] += f", refused: {error}"
        except Broken:
            self.errors += 1
        finally:
            interrupt.stop()
            torch.set_grad_enabled(True)  # transformers' own no_grad, which a trace may leave before its end
        try:
            for one in self.subjects:
                one.check()
            check_process(self.subjects)
        except AssertionError as error:
            raise AssertionError("\n".join([*self.log[-12:], str(error)])) from None

    def _entering(self):
        subject = self.rng.choice(self.subjects)
        items = some_methods(self.rng)
        if len(subject.open) == MOST_OPEN:
            return self._leaving()

        def enter(interrupt):
            wrapped = la.wrap(subject.model, *items, processor=subject.processor)
            with interrupt:
                wrapped.__enter__()
            subject.open.append((wrapped, wrapped.interventions))

        return subject, f"enter {' + '.join(map(written_form, items))}", enter

    def _leaving(self):
        subjects = [subject for subject in self.subjects if subject.open]
        if not subjects:
            return self._using()
        subject = self.rng.choice(subjects)
        pair = self.rng.choice(subject.open)

        def leave(interrupt):
            subject.open.remove(pair)
            with interrupt:
                pair[0].__exit__(None, None, None)

        return subject, f"leave {' + '.join(map(written_form, pair[1]))}", leave

    def _using(self):
        subject = self.rng.choice(self.subjects)
        options = {"max_new_tokens": self.rng.randint(1, 3), "do_sample": self.rng.random() < 0.3}
        if self.rng.random() < 0.2:
            options["num_beams"] = 2
        if self.rng.random() < 0.2:
            options["logits_processor"] = LogitsProcessorList([Breaks()])
        way = self.rng.choice(["forward", "generate", "ask", "ask", "tensors"])
        lvlm = self.rng.choice(subject.open)[0] if subject.open else None

        def use(interrupt):
            torch.manual_seed(0)
            with interrupt:
                if way == "forward":
                    subject.model(**subject.inputs)
                elif way == "generate" or lvlm is None:
                    subject.model.generate(**subject.inputs, **options)
                elif way == "tensors":
                    lvlm.generate(**subject.inputs, **options)
                else:
                    lvlm.generate(images=subject.pictures, prompts=subject.questions, **options)

        return subject, f"{way} {sorted(options)}", use

    def _setting(self):
        subject, backend = self.rng.choice(self.subjects), self.rng.choice(BACKENDS)
        return subject, f"set {backend}", lambda interrupt: subject.set_backend(backend)
