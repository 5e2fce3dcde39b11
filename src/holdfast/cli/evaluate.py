"""``holdfast evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from ..config import number
from ..errors import UnknownName
from ..runs import default_search, evaluate_run, open_run
from ..search import Precision
from ..threat import THREATS
from .options import use_threads
from .output import live, print_json, print_table, print_text, score_table


def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished training.")],
    suite: Annotated[str, typer.Option(help="Suite; see `holdfast list suites`.")] = "core",
    eps: Annotated[str | None, typer.Option(help="Radius; by default the one the run was made for.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each attack.")] = 32,
    alpha: Annotated[str | None, typer.Option(help="Step length; by default 2.5 * eps / steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of targets and random starts.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the searches: fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """Attack the encoder of a run and append the records to its folder."""
    use_threads(threads)
    opened = open_run(run)
    threat = opened.run.threat
    if norm is not None:
        if norm not in THREATS:
            raise UnknownName("norm", norm, THREATS)
        threat = THREATS[norm](eps=threat.eps, bounds=threat.bounds)
    if eps is not None:
        threat = replace(threat, eps=number(eps))
    search = default_search(threat.eps, steps, None if alpha is None else number(alpha))
    with live(quiet=as_json) as progress:
        records = evaluate_run(
            opened,
            suite=suite,
            threat=threat,
            search=search,
            seed=seed,
            device=device,
            precision=cast(Precision, precision),
            on_chunk=lambda *at: progress.attacking(opened.run.name, *at),
        )
    if as_json:
        print_json(records)
    else:
        print_table(
            score_table(records, f"{run}: {suite}, {threat.norm} eps {threat.eps:.4g}, {steps} steps")
        )
        print_text(f"records: {run / 'records.jsonl'}; next: holdfast report {run}")
