"""The learnable part of a loss: how a defense builds it, and where it finds it again."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..types import Context


def learnable_parts(loss: Any, embedding_dim: int, n_classes: int) -> dict[str, nn.Module]:
    """Return ``{"loss": module}`` for a loss with a ``setup``, else nothing."""
    build = getattr(loss, "setup", None)
    return {} if build is None else {"loss": build(embedding_dim, n_classes)}


def loss_now(loss: Any, ctx: Context) -> Any:
    """Return the learnt form of a loss where the run holds one, else the loss as it is."""
    return ctx.learnable["loss"] if "loss" in ctx.learnable else loss  # noqa: SIM401, a ModuleDict has no .get
