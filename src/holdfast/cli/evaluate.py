"""``holdfast evaluate``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from .. import queues
from ..config import number
from ..errors import InvalidArgument, UnknownName
from ..evaluation import Share
from ..evaluation.card import LEVELS, Level
from ..evaluation.indexes import Kind
from ..results.record import Record
from ..runs import STEPS, default_search, evaluate_run, open_run
from ..scorecard import evaluate
from ..search import Precision
from ..threat import THREATS
from . import complete
from .clusters import cluster_tables
from .options import radius, seconds, use_threads
from .output import judged, live, print_json, print_table, print_text, say, score_table


def evaluate_command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODULE:FACTORY",
            help="Run folder, or a function that makes an encoder.",
            autocompletion=complete.runs,
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for MODULE:FACTORY; its folders are the classes.")
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(help="Gallery: a folder of images or of vectors, or embeddings .npy; else the images."),
    ] = None,
    gallery_labels: Annotated[Path | None, typer.Option(help="Labels (.npy) of a gallery .npy.")] = None,
    index: Annotated[
        str | None, typer.Option(help="Deployed index of FAISS to put into the loop: flat, ivf or hnsw.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side in pixels of images from a folder.")] = 224,
    suite: Annotated[
        str | None, typer.Option(help="Suite; see `holdfast list suites`.", autocompletion=complete.suites)
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Radius, or several for a curve: 4/255,8/255; by default the run's, or 8/255."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each attack.")] = STEPS,
    alpha: Annotated[str | None, typer.Option(help="Step length; by default 4 * eps / steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of targets and random starts.")] = 0,
    queries: Annotated[int | None, typer.Option(help="Attack a random sample of so many.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for attacks: 90s, 10m, 2h.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory between queries and gallery: 512M, 4G; else no limit.")
    ] = None,
    check: Annotated[str, typer.Option(help="Check the evaluation itself: quick, full or off.")] = "quick",
    full: Annotated[bool, typer.Option("--full", help="The same as --check full.")] = False,
    repair: Annotated[str | None, typer.Option(help="Time to mend what the checks find: 60s, 5m.")] = None,
    twin: Annotated[Path | None, typer.Option(help="Run without a defense, which some checks need.")] = None,
    clusters: Annotated[str | None, typer.Option(help="Number of clusters, or auto; else classes.")] = None,
    inference: Annotated[str, typer.Option(help="Clusters: kmeans, spherical or prototype.")] = "kmeans",
    poison: Annotated[float, typer.Option(help="Share of references that suite poisoning changes.")] = 0.1,
    jobs: Annotated[int, typer.Option(help="Processes that share the queries, -1 for all cores.")] = 1,
    backend: Annotated[str, typer.Option(help="What runs them: loky, dask or ray.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask or ray cluster.")] = None,
    shard: Annotated[str | None, typer.Option(help="Compute part I/N only, into the shared folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for MODULE:FACTORY.")] = None,
    precision: Annotated[str, typer.Option(help="Of the searches: fp32, bf16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """Attack an encoder, check the evaluation itself, and append the records to its folder."""
    use_threads(threads)
    if queues.check(jobs, backend, scheduler) > 1 or scheduler is not None:
        _spread(jobs, backend, scheduler, budget)
    level, share = cast(Level, "full" if full else check), _share(shard, budget)
    if level not in LEVELS:
        raise UnknownName("check", level, LEVELS)
    common: dict[str, Any] = {
        "seed": seed, "verdict": level, "queries": queries, "precision": cast(Precision, precision),
        "device": device, "repair_seconds": None if repair is None else seconds(repair),
        "twin": None if twin is None else open_run(twin).encoder(), "clusters": _clusters(clusters),
        "inference": inference, "poison": poison, "memory": memory, "index": cast(Kind | None, index),
    }  # fmt: skip
    own = ":" in what and not Path(what).exists()
    folder = Path(what) if not own else out or Path("runs") / what.replace(":", "-").replace(".", "-")
    with live(quiet=as_json) as progress:
        common["on_chunk"] = lambda *at: progress.attacking(folder.name, *at)
        common["on_step"] = lambda *at: progress.step(folder.name, *at)
        found: list[list[Record]] = []
        for eps_now in _radii(eps, norm):
            if own:
                r = 8 / 255 if eps_now is None else eps_now
                chosen = None if alpha is None and steps == STEPS else _search(r, steps, alpha, suite)
                records = _own(
                    what, images, share, suite=suite, eps=r, norm=norm or "linf", size=size, search=chosen,
                    gallery=gallery, gallery_labels=gallery_labels, out=folder, **common,
                )  # fmt: skip
            else:
                opened = open_run(folder)
                threat = _threat(opened.run.threat, norm, eps_now)
                search = _search(threat.eps, steps, alpha, suite)
                records = evaluate_run(
                    opened, suite=suite or "core", threat=threat, search=search, share=share, **common
                )
            found.append(records)
    if as_json:
        print_json([r for records in found for r in records])
    elif not all(found):
        print_text(f"part {shard} is done; next: the same command without --shard")
    else:
        for records in found:
            title = f"{what}: {_strength(records)}"
            for table in cluster_tables(records, title) or [score_table(records, title)]:
                print_table(table)
            for line in judged(records):
                print_text(line)
        print_text(f"records: {folder / 'records.jsonl'}; next: holdfast report {folder}")


def _own(what: str, images: Path | None, share: Share, **settings: Any) -> list[Record]:
    if images is None:
        raise InvalidArgument("images", "a folder of images for an encoder of your own", None)
    card = evaluate(
        _made(what), images, budget=share.seconds, shard=(share.index, share.count), name=what, **settings
    )
    for note in card.notes:
        say(note)
    return list(card.records)


def _clusters(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdigit():
        raise InvalidArgument("clusters", "an integer >= 2, or auto", text)
    return int(text)


def _radii(text: str | None, norm: str | None) -> Sequence[float | None]:
    """Return the radii of ``--eps`` from small to large; one that is not given is None."""
    if text is None:
        return [None]
    return sorted({radius(part, norm or "linf") for part in text.split(",")})


def _threat(threat: Any, norm: str | None, eps: float | None) -> Any:
    if norm is not None:
        if norm not in THREATS:
            raise UnknownName("norm", norm, THREATS)
        threat = THREATS[norm](eps=threat.eps, bounds=threat.bounds)
    return threat if eps is None else replace(threat, eps=eps)


def _strength(records: list[Record]) -> str:
    attacked = [r for r in records if r["attack"] != "none"]
    if not attacked:
        return "benign"
    r = attacked[0]
    low = ", bf16 searches" if r["precision"] == "bf16" else ""
    return f"{r['suite']}, {r['norm']} eps {r['eps']:.4g}, {r['steps']} steps, {r['n']} queries{low}"


def _search(eps: float, steps: int, alpha: str | None, suite: str | None) -> Any:
    return default_search(eps, steps, None if alpha is None else number(alpha), suite or "")


def _share(shard: str | None, budget: str | None) -> Share:
    index, slash, count = (shard or "0/1").partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise InvalidArgument("shard", "I/N, such as 0/2", shard)
    return Share(index=int(index), count=int(count), seconds=None if budget is None else seconds(budget))


def _made(name: str) -> Any:
    """Import and call the user's own factory."""
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(
            "encoder", f"package.module:function that can be imported ({error})", name
        ) from error
    try:
        return factory()
    except Exception as error:  # the user's own code: anything may come
        told = f"a function that returns an encoder; it raised {type(error).__name__}: {error}"
        raise InvalidArgument("encoder", told, name) from error


def _spread(jobs: int, backend: str, scheduler: str | None, budget: str | None) -> None:
    """Let processes compute shares of this same command; this one then puts them together."""
    command = queues.without(sys.argv[1:], "--jobs", "--backend", "--scheduler", "--json")
    total = queues.shares(queues.processes(jobs), budget)
    tasks = [(command, os.getcwd(), i, total) for i in range(total)]
    queues.run_queue(_part, tasks, jobs=jobs, backend=backend, scheduler=scheduler)


def _part(command: list[str], folder: str, i: int, total: int) -> None:
    """Compute one share in a worker: the command as given, from the folder where it was given."""
    app = typer.Typer()
    app.command()(evaluate_command)
    with queues.quietly_in(folder):
        app([*command[1:], "--shard", f"{i}/{total}", "--threads", "1"], standalone_mode=False)
