"""Harden the batches of a trainer of pytorch-metric-learning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InvalidArgument
from .harden import Hardener, harden


def harden_trainer(trainer: Any, **options: Any) -> Hardener:
    """Make a trainer of pytorch-metric-learning train on adversarial batches.

    Its ``get_batch`` is wrapped, so that hooks, testers, schedulers and clippers of the trainer work as
    before. Batches are moved against trunk and embedder together, with the trainer's ``metric_loss`` and
    ``tuple_miner``.

    Parameters
    ----------
    trainer
        ``MetricLossOnly``, ``TrainWithClassifier``, or another whose batches are (images, labels) and whose
        models are a trunk and perhaps an embedder. Give it before ``train`` is called, once.
    **options
        Those of :func:`~holdfast.adapters.harden`.

    Returns
    -------
    Hardener
        What was put in; for its ``step`` and ``signal``.

    Raises
    ------
    InvalidArgument
        If the trainer has no trunk, no metric loss for a defense that climbs it, or is hardened already.

    Notes
    -----
    The mean of ``metric_loss`` alone is climbed: other losses of the trainer, such as a classifier's, are
    trained on the moved images but not climbed.
    """
    models: Any = getattr(trainer, "models", {})
    if "trunk" not in models or not hasattr(trainer, "get_batch"):
        raise InvalidArgument("trainer", "a trainer of pytorch-metric-learning with a trunk", trainer)
    if isinstance(getattr(trainer.get_batch, "__self__", None), _Hardened):
        raise InvalidArgument("trainer", "a trainer that is not hardened yet", trainer)
    embedder = models["embedder"] if "embedder" in models else nn.Identity()
    miner = options.pop("miner", (trainer.mining_funcs or {}).get("tuple_miner"))
    model = nn.Sequential(models["trunk"], embedder)
    hard = harden(model, trainer.loss_funcs.get("metric_loss"), miner=miner, **options)
    trainer.get_batch = _Hardened(trainer.get_batch, hard).get_batch
    return hard


class _Hardened:
    """A source of batches, hardened."""

    def __init__(self, plain: Any, hard: Hardener) -> None:
        self.plain, self.hard = plain, hard

    def get_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        batch = self.plain()
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            got = type(batch).__name__
            raise InvalidArgument("trainer", "a trainer whose batches are (images, labels)", got)
        return self.hard(*batch)
