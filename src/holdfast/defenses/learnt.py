"""The learnable part of a loss: how a defense builds it, and where it finds it again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..types import Context


def learnable_parts(loss: Any, encoder: Any, y: Tensor) -> dict[str, nn.Module]:
    """Return ``{"loss": module}`` for a loss with a ``setup``, else nothing; y (N,) are all labels."""
    build = getattr(loss, "setup", None)
    return {} if build is None else {"loss": build(encoder.embedding_dim, int(y.max()) + 1)}


def loss_now(loss: Any, ctx: Context) -> Any:
    """Return the learnt form of a loss where the run holds one, else the loss as it is."""
    return ctx.learnable["loss"] if "loss" in ctx.learnable else loss  # noqa: SIM401, a ModuleDict has no .get
