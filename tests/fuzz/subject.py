"""A model under test: what it was, what wraps are on it, and what it ought to be and to say."""

import copy
from contextlib import ExitStack

import torch

import lvlm_attn as la
from lvlm_attn.runtime.active import ACTIVE, INSTALLED
from lvlm_attn.runtime.vision_reader import READING
from lvlm_attn.wrapping import written_form
from tests.fuzz.methods import LAYERS
from tests.interrupts import changes, state
from tests.tiny import tiny_inputs, tiny_model
from tests.tiny_processors import QUESTIONS, picture, tiny_processor

BACKENDS = ("sdpa", "eager")


class Subject:
    """A tiny model with everything that is known of it.

    Args:
        name: its family.
    """

    def __init__(self, name):
        self.name, self.processor = name, tiny_processor(name)
        self.model = tiny_model(name, layers=LAYERS)
        self.inputs = tiny_inputs(name, self.model, [(1,), (2,)])
        self.pictures, self.questions = [picture((20, 14)), picture((9, 17), 1)], QUESTIONS[:2]
        self.twin = copy.deepcopy(self.model)  # is never interrupted
        self.open = []
        self._weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self._said, self._states = {}, {}
        for backend in reversed(BACKENDS):
            self.set_backend(backend)
            with torch.no_grad(), la.wrap(self.model, la.PAINT(layers=(0,))):  # names: once in a process
                self.model(**self.inputs)
            self._states[backend] = state(self.model)

    def set_backend(self, backend):
        """What a user may do at any time."""
        self.backend = backend
        for model in (self.model, self.twin):
            model.set_attn_implementation(backend)

    def items(self):
        return [item for _, items in self.open for item in items]

    def check(self):
        """Raises AssertionError if anything is not as it ought to be."""
        found = self.model.state_dict()
        assert found.keys() == self._weights.keys()
        assert all(torch.equal(value, self._weights[key]) for key, value in found.items()), "weights"
        if not self.open:
            different = changes(self._states[self.backend], state(self.model))
            assert not different, different
        if not any(item.needs_request() for item in self.items()):
            said, ought = self._logits(self.model), self._ought()
            is_same = said == ought if isinstance(ought, str) else torch.equal(said, ought)
            assert is_same, (
                f"{self.name} says {said}, not {ought}, with {[written_form(one) for one in self.items()]}"
            )
        if not self.open:
            different = changes(self._states[self.backend], state(self.model))
            assert not different, different

    def _ought(self):
        """What the twin says in wraps that nothing has disturbed; kept."""
        key = self.backend, tuple(map(id, self.items()))
        if key not in self._said:
            with ExitStack() as stack:
                for _, items in self.open:
                    stack.enter_context(la.wrap(self.twin, *items, processor=self.processor))
                self._said[key] = self._logits(self.twin), self.items()
        return self._said[key][0]

    def _logits(self, model):
        try:
            with torch.no_grad():
                return model(**self.inputs).logits.nan_to_num(nan=7.0)
        except la.LvlmAttnError as error:
            return str(error)


def check_process(subjects):
    """Raises AssertionError if the process remembers wraps that are left."""
    if not any(subject.open for subject in subjects):
        assert not ACTIVE.get()
        assert not READING
        assert not list(INSTALLED)
