"""Watches whether plans compute the calls of layers."""

from unittest.mock import patch


def watched(kind):
    """Returns what notes for each call whether a plan of a kind computed it, and the block in which it does."""
    done = []
    attend = kind.attend

    def noted(self, *given):
        found = attend(self, *given)
        done.append(found is not None)
        return found

    return done, patch.object(kind, "attend", noted)
