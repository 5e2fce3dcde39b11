"""Look at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..types import Encoder


@contextmanager
def frozen(encoder: Encoder) -> Iterator[None]:
    """Put every submodule into evaluation mode, and each back into the mode it had.

    A frozen batch-norm inside a training model stays frozen. Callables that are no modules pass through.
    """
    if not isinstance(encoder, nn.Module):
        yield
        return
    training = [module for module in encoder.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
