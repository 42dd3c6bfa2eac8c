"""How many examples property and fuzz tests draw: few in a run of all tests, more with `LVLM_ATTN_FUZZ=50`."""

import os
import time

from hypothesis import HealthCheck, settings

from lvlm_attn.errors import LvlmAttnError

_SHARE = 8 if "MUTANT_UNDER_TEST" in os.environ else 2
_TIMES = int(os.environ.get("LVLM_ATTN_FUZZ", "1"))
IS_FULL = _TIMES > 1
"""Whether this is a run at full size, as before a release."""


def drawn(count):
    """Settings of a test that draws so many examples, times the factor; an example may last, and share a folder."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count * _TIMES, deadline=None, suppress_health_check=checks)


def sized(count):
    """Settings of a property test: so many examples in full, half of them in a run of all tests, few for faults."""
    return settings(max_examples=count * _TIMES if _TIMES > 1 else -(-count // _SHARE), deadline=None)


def value_or_sentence(act, *given, seconds=1.0):
    """What a call gives, or the one sentence that refuses it; anything else, or taking long, is a failure."""
    began, found = time.process_time(), None
    try:
        found = act(*given)
    except LvlmAttnError as error:
        found = error
    spent = time.process_time() - began
    if isinstance(found, LvlmAttnError):
        assert "\n" not in str(found)
        assert 0 < len(str(found)) < 1500
    assert spent < seconds, f"{spent:.1f} s"
    return found
