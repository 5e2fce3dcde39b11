"""``holdfast plan``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .. import config
from ..errors import DataError, InvalidArgument, UnknownName
from ..functional.memory import bytes_of, in_words
from ..recipes import recipe
from ..runs import STEPS, allowed_types, default_search, machine
from ..search import PGD, Precision
from ..training import Run
from . import complete
from .options import changed, seconds, use_threads
from .output import live, print_json, print_text

if TYPE_CHECKING:
    from ..bench.cost import Advice, Choice, Prediction


OVERHEAD = 1.3
"""Measuring takes so many times the time that is given for it, about."""


def plan_command(
    name: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="As for `holdfast train`.", autocompletion=complete.recipes),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Data set; see `holdfast list datasets`.", autocompletion=complete.datasets),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Training images of a set that is not here; with --shape, --classes.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Its images, such as 1x28x28.")] = None,
    classes: Annotated[int | None, typer.Option(help="Its classes.")] = None,
    test_images: Annotated[int | None, typer.Option(help="Its test images; a sixth of --images.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder; see `holdfast list encoders`.", autocompletion=complete.encoders),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius in input units, such as 8/255.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the training search.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of training: fp32 or bf16.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change any setting; repeat.")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="Suite of the evaluation; benign is without attack.", autocompletion=complete.suites
        ),
    ] = "core",
    attack_steps: Annotated[int, typer.Option(help="Steps of each attack.")] = STEPS,
    attack_precision: Annotated[str, typer.Option(help="Of the attacks: fp32 or bf16.")] = "fp32",
    queries: Annotated[int | None, typer.Option(help="Queries to attack; by default all.")] = None,
    check: Annotated[str, typer.Option(help="Check the evaluation: quick or off.")] = "quick",
    budget: Annotated[str | None, typer.Option(help="Time for training and evaluation: 30m, 2h.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one process: 4G.")] = None,
    calibration: Annotated[str, typer.Option(help="Time to measure: 20s.")] = "20s",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Predict time and memory of a training run and its evaluation on this machine, within about 30 %."""
    from ..bench.calibrate import calibrate
    from ..bench.cost import advise, predict

    use_threads(threads)
    flags = {"encoder": encoder, "eps": eps, "steps": steps, "epochs": epochs, "batch": batch}
    run = changed(
        recipe(name, data, data_dir), {**flags, "device": device, "precision": precision}, sets or []
    )
    limits = None if budget is None else seconds(budget), None if memory is None else bytes_of(memory)
    subject = _subject(
        run, (images, shape, classes, test_images),
        suite=suite, steps=attack_steps, queries=queries, check=check, precision=attack_precision,
    )  # fmt: skip
    busy, length = os.getloadavg()[0], seconds(calibration)
    words = f"on {subject.train_images} training and {subject.test_images} test images"
    with live(quiet=as_json) as progress, progress.timed("measuring", words, OVERHEAD * length):
        costs = calibrate(subject, length)
    asked = _choice(subject)
    found, advice = predict(costs, asked), advise(costs, asked, *limits)
    if as_json:
        print_json({
            "recipe": run.name, "machine": machine(), "load": busy, "choice": asdict(asked),
            "costs": asdict(costs), "prediction": asdict(found), "advice": [asdict(a) for a in advice],
        })  # fmt: skip
        return
    after = f"suite {suite} on {asked.queries} queries"
    print_text(
        f"{run.name} on {run.data.name}: {asked.epochs} epochs of {costs.batches} batches, then {after}"
    )
    for line in _lines(found, asked, limits, advice):
        print_text(line)
    if busy >= 1:
        cores = os.cpu_count() or 1
        print_text(f"other work was running here (load {busy:.1f} on {cores} cores): alone it takes less")


def _lines(
    found: Prediction, asked: Choice, limits: tuple[float | None, int | None], advice: Sequence[Advice]
) -> Iterator[str]:
    """Yield the prediction, and what to change where it is over a limit."""
    most = ""
    if found.train_most > 1.1 * found.train:
        most = f"; at most {_time(found.train_most)}, if no search of the training ends early"
    yield f"  train     {_time(found.train):>7}   peak memory {in_words(found.train_bytes)}{most}"
    yield f"  evaluate  {_time(found.evaluate):>7}   peak memory {in_words(found.evaluate_bytes)}"
    yield f"  together  {_time(found.seconds):>7}   runs that were measured took within about 30 % of this"
    seconds, memory = limits
    over = [_time(seconds)] if seconds is not None and found.seconds > seconds else []
    over += [in_words(memory)] if memory is not None and found.bytes > memory else []
    if over:
        yield f"over the budget of {' and of '.join(over)}; what to change, and what is predicted then:"
    elif seconds is not None or memory is not None:
        yield "within the budget"
    for a in advice:
        size, then = in_words(a.prediction.bytes), _time(a.prediction.seconds)
        word = "fits" if a.fits else "not enough"
        yield f"  {word:10} {then:>7} {size:>7}  {a.change} ({a.price})"


def _subject(
    run: Run,
    stand_in: tuple[int | None, str | None, int | None, int | None],
    *,
    suite: str,
    steps: int,
    queries: int | None,
    check: str,
    precision: str,
) -> Any:
    """Put together what is measured: the run, its images or stand-ins, and cheaper variants of it."""
    from ..bench.calibrate import Subject, made_up
    from ..evaluation import SUITES

    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    if check not in ("quick", "off"):
        raise InvalidArgument("check", "'quick' or 'off'; full checks are not predicted", check)
    if precision not in ("fp32", "bf16"):
        raise InvalidArgument("attack-precision", "'fp32' or 'bf16'", precision)
    images, shape, classes, test_images = stand_in
    missing = 0
    if images is not None or shape is not None or classes is not None:
        if images is None or shape is None or classes is None:
            raise InvalidArgument("images, shape, classes", "all three", (images, shape, classes))
        counts = images, max(2 * classes, images // 6) if test_images is None else test_images
        split, missing = made_up(_sides(shape), classes, *counts)
    else:
        try:
            split = run.data.load()
        except DataError as error:
            text = "without the images, plan with --images 60000 --shape 1x28x28 --classes 10"
            raise DataError(f"{error}; {text}") from error
        counts = len(split.train), len(split.test)
    if queries is not None and queries < 1:
        raise InvalidArgument("queries", "an integer >= 1", queries)
    half = config.replace(run, "precision", "bf16", allowed_types()) if run.precision == "fp32" else None
    return Subject(
        run=run, split=split, train_images=counts[0], test_images=counts[1], image_bytes=missing,
        suite=SUITES[suite], search=default_search(run.threat.eps, steps, suite=suite),
        queries=min(queries or counts[1], counts[1]), checks=check == "quick",
        precision=cast(Precision, precision), steps=search_steps(run),
        half=half,
    )  # fmt: skip


def search_steps(run: Run) -> int:
    """Return the most steps of a search of the recipe, 0 without one."""
    found = [0]

    def look(part: Any) -> Any:
        if isinstance(part, PGD):
            found.append(part.steps)
        return part

    config.everywhere(run.defense, look)
    return max(found)


def _choice(subject: Any) -> Choice:
    from ..bench.cost import Choice

    sampler = subject.run.sampler
    pairs = getattr(sampler, "batch_pairs", None) or sampler.classes * sampler.m // 2
    return Choice(
        epochs=subject.run.epochs, steps=subject.steps, batch_pairs=pairs, suite=subject.suite.name,
        queries=subject.queries,
    )  # fmt: skip


def _sides(text: str) -> tuple[int, int, int]:
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InvalidArgument("shape", "channels x height x width such as 1x28x28", text)
    return int(sides[0]), int(sides[1]), int(sides[2])


def _time(count: float) -> str:
    if count < 90:
        return f"{count:.0f} s"
    if count < 5400:
        return f"{count / 60:.0f} min"
    return f"{count / 3600:.1f} h" if count < 259200 else f"{count / 86400:.0f} days"
