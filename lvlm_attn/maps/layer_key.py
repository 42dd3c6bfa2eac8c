"""How the layers of attention maps are told apart."""

from __future__ import annotations

from typing import Literal

LayerKey = int | Literal["mean", "rollout"]
