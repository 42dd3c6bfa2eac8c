"""What all wraps on one model change together: the first one takes it, the last one gives it back."""

from __future__ import annotations

import warnings
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.sites import LAYER_SITES
from lvlm_attn.runtime.attributes import Attributes
from lvlm_attn.runtime.checkpointing import checkpointed_layers
from lvlm_attn.runtime.hooks import take_off
from lvlm_attn.runtime.operators import MOMENT, NUMBER, STRUCTURE, Moment, number_of
from lvlm_attn.runtime.registry import NAMES
from lvlm_attn.runtime.transformers_private import CHECKPOINT, compiling_without_cuda_graphs
from lvlm_attn.runtime.uncompiled import by_python, compiled_parts, is_by_python

if TYPE_CHECKING:
    from lvlm_attn.runtime.session import Session

_KEPT_AS = "_lvlm_attn_changes"
"""The attribute of the base model that holds its changes while it is wrapped."""


class Changes:
    """The changes of one model, and the wraps that need them.

    They are the names of the decoder's attention, what is compiled, and how layers are checkpointed. Every step of
    giving back may be taken again, so a call that was interrupted is completed by the next.

    Args:
        target: the model.
    """

    def __init__(self, target: Target):
        self.sessions: list[Session] = []
        self._target = target
        self._configs = attention_configs(target)
        self._attributes = Attributes()
        self.moment = Moment()
        # Hooks are numbered in the order in which they are put on, in the whole process.
        self._first_hook = RemovableHandle.next_id

    @staticmethod
    def of(target: Target) -> Changes | None:
        """The changes of a model; None if it is not wrapped."""
        return vars(target.parts.base).get(_KEPT_AS)

    @staticmethod
    def join(session: Session) -> Changes:
        """Makes the changes for a wrap, or lets it share those that are there.

        Raises:
            UnsupportedError: if transformers has no mask function for the model's attention backend.
        """
        target = session.target
        changes: Changes = vars(target.parts.base).setdefault(_KEPT_AS, Changes(target))
        changes._take_place(session)
        changes.set_aside(target.model, "The model is")
        for module, name, plain in compiling_without_cuda_graphs(target.parts.model):
            changes._attributes.put(module, name, plain)
        changes.settle()
        return changes

    def settle(self) -> None:
        """Takes what the user has set anew meanwhile; called before every forward.

        Raises:
            UnsupportedError: if transformers has no mask function for the backend that was set.
        """
        NAMES.take(self._configs)
        if self._target.parts.language_model.training:
            for layer, checkpoint in checkpointed_layers(self._target.parts.layers, self.sessions):
                self._attributes.put(layer, CHECKPOINT, checkpoint)

    def note_moment(self, session: Session, *, is_answer: bool) -> None:
        """Notes what a forward is about to do, as each wrap sees it, the outermost first."""
        self.moment.is_answer = is_answer and (session is self.sessions[0] or self.moment.is_answer)

    def note_rest(self) -> None:
        """Notes which wraps have hooks that rest."""
        self.moment.resting = " ".join(
            str(session.bodies.place) for session in self.sessions if session.is_resting
        )

    def leave_to_python(self, module: nn.Module) -> None:
        """Has a module run by Python, compiled or not, until the last wrap is left."""
        if not is_by_python(module.forward):
            self._attributes.put(module, "forward", by_python(module.forward))

    @staticmethod
    def leave(session: Session) -> None:
        """Gives everything back unless another wrap needs it; safe to call again."""
        changes = Changes.of(session.target)
        if changes is None:
            return
        others = [other for other in changes.sessions if other is not session]
        if not others:
            changes._give_back()
        changes.sessions[:] = others
        if others:
            changes._describe()
        if not others:
            vars(session.target.parts.base).pop(_KEPT_AS, None)

    def _take_place(self, session: Session) -> None:
        """Adds a wrap, and lets operators and what is compiled tell it from the others."""
        taken = {other.bodies.place for other in self.sessions}
        session.bodies.place = next(place for place in count() if place not in taken)
        self.sessions.append(session)
        parts = self._target.parts
        for module in (*parts.layers, *parts.attentions, *parts.output_projections):
            if module is not None:
                self._attributes.put(module, NUMBER, number_of(module))
        for module in (parts.base, parts.language_model, *parts.attentions):
            if module is not None:
                self._attributes.put(module, MOMENT, self.moment)
        self._describe()

    def _describe(self) -> None:
        """Says on every attention module which hooks there are, which compiled code compares."""
        structure = " ".join(
            f"{site} {index} {session.bodies.place}"
            for session in self.sessions
            for site in LAYER_SITES
            for index in session.sites.by_layer[site]
        )
        for module in self._target.parts.attentions:
            if module is not None:
                self._attributes.put(module, STRUCTURE, structure)

    def _give_back(self) -> None:
        self._take_off_leftovers()
        NAMES.give_back(self._configs)
        self._attributes.restore()

    def set_aside(self, module: nn.Module, what: str) -> None:
        """Has what is compiled in a module run as it was written, until the last wrap is left.

        Args:
            module: the whole model as a wrap is entered, or its decoder as a prompt begins.
            what: how the warning begins.
        """
        found = list(compiled_parts(module))
        for module, name, plain in found:
            self._attributes.put(module, name, plain)
        if found:
            warnings.warn(
                f"{what} compiled, and compiled code does not see what a wrap installs; inside the block it runs "
                "uncompiled, which is exact and slower. Compile the whole model inside the block instead.",
                RuntimeWarning,
                stacklevel=5,
            )

    def _take_off_leftovers(self) -> None:
        """Takes off hooks of this package that an interrupt left behind while the model was wrapped."""
        for module in self._target.parts.model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number, hook in list(hooks.items()):
                    if number >= self._first_hook and _is_ours(hook):
                        take_off(module, hook)


def attention_configs(target: Target) -> list[Any]:
    """The configurations that choose the attention of the language model, each once."""
    found: dict[int, Any] = {}
    for module in (target.parts.language_model, *target.parts.attentions):
        config = getattr(module, "config", None)
        if config is not None:
            found.setdefault(id(config), config)
    return list(found.values())


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]
