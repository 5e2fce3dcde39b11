"""Encoders by name: the only ones that a saved file may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cnn import C2F2, SmallCNN
from .linear import LinearEncoder

ENCODERS: Mapping[str, type[Any]] = {"c2f2": C2F2, "small-cnn": SmallCNN, "linear": LinearEncoder}
"""Encoder specs (frozen dataclasses with ``build(shape, seed) -> Encoder``) by name."""
