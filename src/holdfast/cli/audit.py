"""``holdfast audit``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..config import number
from ..errors import InvalidArgument, UnknownName
from ..evaluation.hubs import BUDGET
from ..export.audit import IMAGES, GalleryAudit, audit_run, audit_vectors
from ..functional.distance import DISTANCES
from ..functional.memory import bytes_of
from ..runs import open_run
from .options import use_threads
from .output import print_json, print_table, print_text


def audit_command(
    what: Annotated[
        Path, typer.Argument(metavar="RUN|VECTORS", help="Run folder, folder of vectors, or embeddings .npy.")
    ],
    k: Annotated[int, typer.Option(help="Length of the result lists.")] = 10,
    queries: Annotated[Path | None, typer.Option(help="Vectors of queries, beside VECTORS.")] = None,
    distance: Annotated[
        str | None, typer.Option(help="Of VECTORS: euclidean, squared or cosine; else Euclidean.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of the gallery that is flagged.")] = BUDGET,
    rate: Annotated[float, typer.Option(help="False alarms of the admission gate.")] = 0.01,
    attack: Annotated[
        bool, typer.Option("--attack", help="Move gallery images to make hubs of them.")
    ] = False,
    images: Annotated[int, typer.Option(help="How many images --attack moves.")] = IMAGES,
    eps: Annotated[str | None, typer.Option(help="Radius of --attack; by default the run's.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, halves and targets.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Memory of the ranking: 512M, 4G.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look for hubs in a gallery: images that come back for too many queries, found or made by an attack."""
    use_threads(threads)
    most = None if memory is None else bytes_of(memory)
    if (what / "run.json").is_file():
        if queries is not None or distance is not None:
            raise InvalidArgument("queries, distance", "None for a run, which has its own", what.name)
        run = open_run(what)
        threat = run.run.threat if eps is None else replace(run.run.threat, eps=number(eps))
        found = audit_run(
            run, k=k, budget=budget, rate=rate, attack=attack, images=images, threat=threat, seed=seed,
            memory=most,
        )  # fmt: skip
    elif attack:
        raise InvalidArgument("what", "a run, whose images --attack can move", str(what))
    else:
        if distance is not None and distance not in DISTANCES:
            raise UnknownName("distance", distance, DISTANCES)
        chosen = None if distance is None else DISTANCES[distance]
        found = audit_vectors(
            what, queries, k=k, distance=chosen, budget=budget, rate=rate, seed=seed, memory=most
        )
    if as_json:
        print_json(found.to_plain())
        return
    print_table(_flagged(found))
    for line in _said(found):
        print_text(line)


def _flagged(found: GalleryAudit) -> Table:
    """Return a table of the rows that come back most."""
    plain = found.audit.to_plain()
    table = Table(
        title=f"{found.name}: {plain['rows']} rows, {plain['queries']} queries, first {plain['k']}",
        caption="Rows that come back most, as many as the budget allows; that alone makes none suspicious.",
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    for name in ("row", "lists", "robust z", "spread over groups"):
        table.add_column(name, justify="right")
    for row in plain["flagged"]:
        table.add_row(str(row["row"]), str(row["count"]), f"{row['z']:.1f}", f"{row['spread']:.2f}")
    return table


def _said(found: GalleryAudit) -> list[str]:
    lines = [found.words()]
    if found.gate is None:
        lines.append("No admission gate: the gallery is too small for its rate.")
    elif found.false_alarms is not None:
        f, rate = found.false_alarms, found.gate.rate
        lines.append(
            f"Gate at {100 * rate:g} % false alarms: refuses {100 * f.value:.1f} % of the queries' images "
            f"(95 % interval {100 * f.low:.1f} to {100 * f.high:.1f})."
        )
    return lines
