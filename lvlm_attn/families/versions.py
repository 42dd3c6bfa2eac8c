"""The versions of transformers in which a model is followed through its prompt."""

from __future__ import annotations

from functools import cache

from lvlm_attn.errors import UnsupportedError

LOWEST = (5, 17)
TOO_NEW = (5, 24)
"""From here on models take their cache as `cache`, no longer as `past_key_values`: a filled one would go unseen."""


def check_transformers() -> None:
    """Refuses a transformers of which it is not known what its models are given.

    Raises:
        UnsupportedError: if the installed one is too old or too new.
    """
    import transformers

    _check(transformers.__version__)


@cache
def _check(version: str) -> None:
    from packaging.version import Version  # a dependency of transformers

    if not LOWEST <= Version(version).release[:2] < TOO_NEW:
        lowest, new = (".".join(map(str, bound)) for bound in (LOWEST, TOO_NEW))
        raise UnsupportedError(
            f"transformers {version} is not supported; run: pip install 'transformers>={lowest},<{new}'."
        )
