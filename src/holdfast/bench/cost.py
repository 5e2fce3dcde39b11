"""Time and memory of a run from a few measured constants, and what to change so that it fits a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..errors import InvalidArgument
from ..functional.memory import in_words

MARGIN = 0.30
"""Predictions aim to be within this share of what is then measured."""
WORTH = 0.02
"""Changes that save less than this share of the time are not proposed."""
FLOOR = 50
"""Fewest queries that are proposed: intervals of fewer are wide."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a calibration found.

    Attributes
    ----------
    setup, batch, epoch
        Seconds before the first batch, of a batch, and at the end of an epoch.
    batch_most
        Seconds of a batch whose searches no row leaves early.
    search_step
        Seconds of a batch that the passes of one step of its search cost; 0 without a search.
    batches
        In an epoch.
    half
        Time of a batch in bf16 over that in the asked precision; None where it was not measured.
    half_attack
        The same for attacks.
    load
        Seconds to embed all test images, once for each evaluation.
    benign
        Seconds for each query of the metrics without attack.
    attacks
        Seconds for each query and attack, by suite and label, at the asked number of steps.
    verdict
        Seconds of the checks of the evaluation.
    train_bytes, evaluate_bytes
        Peak memory of the process: resident on the CPU, allocated on CUDA.
    base_bytes
        What it held before the first batch: Python, libraries, images.
    shorter
        Time of a mean batch of a training of 1, 2, ... epochs over that of the training that was asked, where
        rows leave searches early; empty: all alike.
    """

    setup: float
    batch: float
    batch_most: float
    epoch: float
    search_step: float
    batches: int
    half: float | None
    half_attack: float | None
    load: float
    benign: float
    attacks: Mapping[str, Mapping[str, float]]
    verdict: float
    train_bytes: int
    evaluate_bytes: int
    base_bytes: int
    shorter: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run may change without becoming another recipe.

    Attributes
    ----------
    epochs, steps, batch_pairs
        Of training; ``steps`` is that of its search, 0 without one. A batch size changes memory only.
    half
        Whether it trains in bf16 instead of the asked precision.
    suite, queries
        Of the evaluation.
    half_attack
        Whether attacks search in bf16.
    """

    epochs: int
    steps: int
    batch_pairs: int
    suite: str
    queries: int
    half: bool = False
    half_attack: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds and bytes; ``parts`` are the seconds by what they are spent on.

    ``train_most`` is the time of a training whose searches no row leaves early.
    """

    train: float
    train_most: float
    evaluate: float
    train_bytes: int
    evaluate_bytes: int
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Training and evaluation, one after the other."""
        return self.train + self.evaluate

    @property
    def bytes(self) -> int:
        """The larger peak: training and evaluation are two processes."""
        return max(self.train_bytes, self.evaluate_bytes)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change, its price, what is predicted after it, and whether that fits the budget."""

    change: str
    price: str
    prediction: Prediction
    fits: bool


def predict(costs: Costs, asked: Choice, choice: Choice | None = None) -> Prediction:
    """Predict a run.

    Parameters
    ----------
    costs
        Measured at ``asked``.
    asked
        The run that was calibrated.
    choice
        The run that is predicted; by default the same.

    Notes
    -----
    A batch costs ``batch + (steps - steps asked) * search_step``, times ``shorter`` with fewer epochs.

    Examples
    --------
    >>> costs = Costs(setup=1, batch=0.5, batch_most=0.5, epoch=1, search_step=0.05, batches=10, half=0.5,
    ...     half_attack=0.5, load=1, benign=0.01, attacks={"core": {"CA+": 0.02}}, verdict=4,
    ...     train_bytes=3, evaluate_bytes=2, base_bytes=1)
    >>> asked = Choice(epochs=2, steps=8, batch_pairs=4, suite="core", queries=100)
    >>> round(predict(costs, asked).train, 6), round(predict(costs, asked).evaluate, 6)
    (13.0, 8.0)
    """
    c = choice or asked
    if c.suite not in costs.attacks:
        raise InvalidArgument("suite", f"one that was measured: {', '.join(costs.attacks)}", c.suite)
    batch = max(0.0, costs.batch + (c.steps - asked.steps) * costs.search_step)
    batch *= (costs.half or 1.0) if c.half else 1.0
    most = batch * max(1.0, costs.batch_most / max(costs.batch, 1e-12))
    batch *= costs.shorter[c.epochs - 1] if c.epochs <= len(costs.shorter) else 1.0
    slower = (costs.half_attack or 1.0) if c.half_attack else 1.0
    share = c.batch_pairs / asked.batch_pairs
    parts = {
        "training": costs.setup + c.epochs * costs.batches * batch,
        "ends of epochs": c.epochs * costs.epoch,
        "embedding": costs.load,
        "metrics": c.queries * costs.benign,
        **{f"attack {k}": c.queries * v * slower for k, v in costs.attacks[c.suite].items()},
        "checks": costs.verdict if costs.attacks[c.suite] else 0.0,
    }
    train = parts["training"] + parts["ends of epochs"]
    return Prediction(
        train=train,
        train_most=train + c.epochs * costs.batches * (most - batch),
        evaluate=sum(parts.values()) - train,
        train_bytes=round(costs.base_bytes + share * (costs.train_bytes - costs.base_bytes)),
        evaluate_bytes=costs.evaluate_bytes,
        parts=parts,
    )


def advise(costs: Costs, asked: Choice, seconds: float | None, memory: int | None) -> list[Advice]:
    """Return changes that bring a run into a budget, each on its own; those that suffice come first.

    Parameters
    ----------
    costs, asked
        See :func:`predict`.
    seconds
        For training and evaluation together; None for any time.
    memory
        Bytes of one process; None for any.

    Returns
    -------
    list of Advice
        Empty where the run fits as it is. Where no change of time is enough alone, the first one combines as
        many as it takes, those that cost least first; no changes are enough where it does not fit either.
    """
    now = predict(costs, asked)
    found = []
    if seconds is not None and now.seconds > seconds:
        found += _faster(costs, asked, seconds, now)
    if memory is not None and now.bytes > memory:
        found += _smaller(costs, asked, memory, now)
    return sorted(found, key=lambda a: not a.fits)


Change = tuple[str, str, Choice]
"""What to write, its price, and the choice after it."""


def _faster(costs: Costs, asked: Choice, seconds: float, now: Prediction) -> list[Advice]:
    found = [
        _advice(costs, asked, change, seconds)
        for step in STEPS
        for change in step(costs, asked, asked, seconds)
    ]
    found = [a for a in found if a.prediction.seconds < (1 - WORTH) * now.seconds]
    if len(found) < 2 or any(a.fits for a in found):
        return found
    choice, parts = asked, dict[str, dict[str, str]]()
    for step in STEPS:
        for text, _, after in step(costs, asked, choice, seconds):
            before = predict(costs, asked, choice).seconds
            if before > seconds and predict(costs, asked, after).seconds < (1 - WORTH) * before:
                choice = after
                verb, option, value = text.split()
                parts.setdefault(verb, {})[option] = value
    text = ", ".join(
        " ".join([verb, *(f"{option} {value}" for option, value in options.items())])
        for verb, options in parts.items()
    )
    return [_advice(costs, asked, (text, "all of these together", choice), seconds), *found]


def _advice(costs: Costs, asked: Choice, change: Change, seconds: float) -> Advice:
    text, price, choice = change
    then = predict(costs, asked, choice)
    return Advice(change=text, price=price, prediction=then, fits=then.seconds <= seconds)


def _half(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    if costs.half is not None and costs.half < 1:
        yield "train --precision bf16", "weights differ a little", replace(now, half=True)


def _half_attack(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    if costs.half_attack is not None and costs.half_attack < 1:
        change = replace(now, half_attack=True)
        yield "evaluate --precision bf16", "searches in low precision; see check R31", change


def _queries(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    then = predict(costs, asked, now)
    each = (then.evaluate - costs.load - then.parts["checks"]) / max(now.queries, 1)
    if now.queries > FLOOR and each > 0:
        fewer = max(FLOOR, now.queries - math.ceil((then.seconds - seconds) / each))
        yield f"evaluate --queries {fewer}", "wider intervals", replace(now, queries=fewer)


def _suites(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    for name in costs.attacks:
        if 0 < sum(costs.attacks[name].values()) < sum(costs.attacks[now.suite].values()):
            yield f"evaluate --suite {name}", "other, fewer attacks", replace(now, suite=name)


def _epochs(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    if now.epochs > 1:
        then = (
            replace(now, epochs=k)
            for k in range(now.epochs - 1, 0, -1)
            if k == 1 or predict(costs, asked, replace(now, epochs=k)).seconds <= seconds
        )
        fewer = next(then).epochs
        yield f"train --epochs {fewer}", "trains less", replace(now, epochs=fewer)


def _steps(costs: Costs, asked: Choice, now: Choice, seconds: float) -> Iterator[Change]:
    if now.steps > 1 and costs.search_step > 0:
        then = predict(costs, asked, now)
        each = (then.train - predict(costs, asked, replace(now, steps=now.steps - 1)).train) or 1e-12
        fewer = max(1, now.steps - math.ceil((then.seconds - seconds) / each))
        yield f"train --steps {fewer}", "a weaker adversary", replace(now, steps=fewer)


STEPS = (_half, _half_attack, _queries, _suites, _epochs, _steps)
"""What can be changed, in the order in which a combination takes it."""


def _smaller(costs: Costs, asked: Choice, memory: int, now: Prediction) -> list[Advice]:
    found = []
    if now.train_bytes > memory:
        grows = costs.train_bytes - costs.base_bytes
        pairs = math.floor(asked.batch_pairs * (memory - costs.base_bytes) / max(grows, 1))
        pairs = min(max(2, pairs), asked.batch_pairs)
        then = predict(costs, asked, replace(asked, batch_pairs=pairs))
        text, price = f"train --batch {pairs}", "fewer negatives in a batch: another training"
        found.append(Advice(change=text, price=price, prediction=then, fits=then.train_bytes <= memory))
    if now.evaluate_bytes > memory:
        left = memory - costs.base_bytes
        fits = left > 0
        text = (
            f"evaluate --memory {in_words(max(left, 1))}"
            if fits
            else "evaluate on a machine with more memory"
        )
        then = replace(now, evaluate_bytes=min(now.evaluate_bytes, memory) if fits else now.evaluate_bytes)
        found.append(Advice(change=text, price="smaller tiles and chunks", prediction=then, fits=fits))
    return found
