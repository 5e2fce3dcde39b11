"""Adversarial training inside other people's training loops, by two lines.

A loop of pytorch-metric-learning, or any other that ends in ``loss_func(embeddings, labels)``::

    hard = holdfast.adapters.harden(model, loss_func, eps=8 / 255)      # 1
    for x, y in loader:
        x, y = hard(x, y)                                               # 2
        loss = loss_func(model(x), y)
        ...

A loop of OML, whose batches are dictionaries of images that are standardised already::

    hard = holdfast.adapters.harden(model, criterion, eps=8 / 255, mean=MEAN, std=STD)
    for batch in loader:
        x, y = hard(batch["input_tensors"], batch["labels"])
        loss = criterion(model(x), y)
        ...

A trainer of pytorch-metric-learning, by one line::

    trainer = trainers.MetricLossOnly(models, optimizers, ...)
    holdfast.adapters.harden_trainer(trainer, eps=8 / 255)
    trainer.train(num_epochs=10)

The search runs in evaluation mode, leaves no gradient on weights, changes no running statistics and does not
touch torch's global generator; with ``eps=0`` a batch comes back as it was.
"""

from __future__ import annotations

from .harden import DEFENSES, Hardener, harden
from .trainers import harden_trainer

__all__ = ["DEFENSES", "Hardener", "harden", "harden_trainer"]
