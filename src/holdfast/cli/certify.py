"""``holdfast certify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import queues
from ..certification import Certification, certify_table
from ..config import number
from ..data.tabular import load_table
from ..errors import InvalidArgument
from ..evaluation.shares import Spread, here
from ..report.certificates import compared, title, took
from ..run_certificates import SAMPLES, RunCertification, certify_run
from . import complete
from .options import seconds, use_threads
from .output import live, print_json, print_table, print_text


def certify_command(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Certify the encoder of this run folder.", autocompletion=complete.runs
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Learn and certify metrics on digits, wine, pendigits, ..., csv:PATH, csv:PATH#COLUMN or "
            "npz:PATH.",
            autocompletion=complete.tables,
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="RUN: smoothing, votes or lipschitz; auto chooses.")] = "auto",
    sigma: Annotated[
        float | None, typer.Option(help="RUN: noise in pixel units; by default the training's, else 0.25.")
    ] = None,
    samples: Annotated[int, typer.Option(help="RUN: noisy copies that certify a query.")] = SAMPLES[1],
    alpha: Annotated[float, typer.Option(help="RUN: failure probability of each radius.")] = 1e-3,
    queries: Annotated[
        int | None, typer.Option(help="RUN: a random sample of so many; by default 100, or all by lipschitz.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="--data: metrics, with commas between.")
    ] = "euclidean,arml,holdfast",
    k: Annotated[
        str,
        typer.Option(help="--data: numbers of neighbours that vote. RUN: places that count, by default 1."),
    ] = "1,3,11",
    data_dir: Annotated[str | None, typer.Option(help="--data: folder with the data set's files.")] = None,
    n_test: Annotated[
        int | None, typer.Option(help="--data: certify only the first so many test points.")
    ] = None,
    norm: Annotated[str, typer.Option(help="--data: l2, linf or l1.")] = "l2",
    radii: Annotated[str | None, typer.Option(help="Radii of the table, such as 0.1,0.2.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="--data: several, such as 0,1,2, to see their spread.")
    ] = None,
    method: Annotated[str, typer.Option(help="--data: how to certify; auto chooses.")] = "auto",
    attack: Annotated[
        bool,
        typer.Option(
            "--attack",
            help="--data: look for short changes that succeed too. RUN: attack inside every radius.",
        ),
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="--data: time to tighten each certificate: 90s, 10m.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="--data: folder; by default runs/certify-DATA.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; RUN: also auto, the default.")] = "cpu",
    jobs: Annotated[int, typer.Option(help="Processes that share the points, -1 for all cores.")] = 1,
    backend: Annotated[str, typer.Option(help="What runs them: loky, dask or ray.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask or ray cluster.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    report: Annotated[bool, typer.Option(help="Write curves and report.html.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Certify a trained run, or learn metrics on a table of data and certify their nearest neighbours."""
    use_threads(threads)
    given = {name for name in context.params if _given(context, name)}
    if run is not None and data is not None:
        raise InvalidArgument("data", "a run folder or --data, not both", data)
    if run is None and data is None:
        raise InvalidArgument("data", "a data set, such as --data digits, or a run folder", None)
    for name in sorted(given & (OF_DATA if run is not None else OF_RUN)):
        need = "--data instead of a run folder" if run is not None else "a run folder instead of --data"
        raise InvalidArgument(name.replace("_", "-"), need, context.params[name])
    at = None if radii is None else [number(r) for r in names(radii)]
    alone = queues.check(jobs, backend, scheduler) == 1 and scheduler is None
    queue = partial(queues.run_queue, jobs=jobs, backend=backend, scheduler=scheduler)
    spread: Spread = here if alone else queue
    if run is not None:
        with live(quiet=as_json) as progress:
            certified = certify_run(
                run, by=by, sigma=sigma, samples=(SAMPLES[0], samples), alpha=alpha, queries=queries,
                k=_one(k) if "k" in given else 1, seed=seed, device=device if "device" in given else "auto",
                radii=at, attack=attack, report=report, spread=spread,
                on_step=partial(progress.step, f"certify {run.name}"),
            )  # fmt: skip
        print_json(certified.to_plain()) if as_json else _show(certified, attack)
        return
    assert data is not None
    with live(quiet=as_json) as progress:
        found = certify_table(
            load_table(data, data_dir), names(methods), whole("k", k), norm=norm, n_test=n_test,
            seeds=[seed] if seeds is None else whole("seeds", seeds), method=method, attack=attack,
            radii=at, out=out, budget=None if budget is None else seconds(budget), device=device,
            report=report, spread=spread, on_step=partial(progress.step, f"certify {data}"),
        )  # fmt: skip
    if as_json:
        print_json(found.to_plain())
        return
    for votes in dict.fromkeys(row["k"] for row in found.meta["rows"]):
        print_table(certified_table(found, votes))
        for line in remarks(found.meta, votes):
            print_text(line)
    for line in where(found):
        print_text(line)


OF_RUN = {"by", "sigma", "samples", "alpha", "queries"}
OF_DATA = {"methods", "data_dir", "n_test", "norm", "seeds", "method", "budget", "out"}
"""Options that one form alone has."""


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _one(text: str) -> int:
    found = whole("k", text)
    if len(found) != 1:
        raise InvalidArgument("k", "one whole number for a run folder", text)
    return found[0]


def _show(found: RunCertification, attack: bool) -> None:
    """Print tables of all that was certified in a run folder, and where everything is."""
    for k in dict.fromkeys(row["k"] for row in found.meta["rows"]):
        print_table(run_table(found, k))
    if found.attacked is not None:
        print_text(f"{title(found.label)}: {found.attacked.words()}")
    elif attack:
        print_text(f"{title(found.label)}: not attacked, because votes have no gradient to follow")
    places = f"{found.folder / 'records.jsonl'}; radii: {found.folder / 'certificates'}"
    print_text(f"records: {places}")
    if found.report is not None:
        print_text(f"curves and report: {found.report}")


def run_table(found: RunCertification, k: int) -> Table:
    """Return a table with a row for each certification of a run."""
    meta = found.meta
    table = Table(
        title=f"{found.folder.name}: certified recall@{k} in percent at radii (l2, pixels from 0 to 1)",
        title_justify="left",
    )
    table.add_column("certified by")
    heads = ("queries", "clean", *(f"{r:g}" for r in meta["radii"]), "median", "may fail", "certifying")
    for name in heads:
        table.add_column(name, justify="right")
    for row in (row for row in meta["rows"] if row["k"] == k):
        median, clean = row["median"]["value"], 1 - row["clean_error"]["value"]
        kept = [1 - e["value"] for e in row["certified_error"]]
        cells = [
            title(row["method"]),
            f"{row['n']} of {row['of']}",
            *(f"{100 * v:.1f}" for v in (clean, *kept)),
        ]
        cells.append("unbounded" if median is None else f"{median:.4g}")
        table.add_row(*cells, f"{row['alpha']:g}" if row["alpha"] else "never", took(row["seconds"]))
    return table


def names(text: str) -> list[str]:
    """Return the parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole(argument: str, text: str) -> list[int]:
    """Return the whole numbers between commas."""
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise InvalidArgument(argument, "whole numbers with commas between, such as 1,3,11", text) from None


def certified_table(found: Certification, k: int) -> Table:
    """Return a table with a row for each method."""
    meta = found.meta
    run = meta["run"]
    table = Table(
        title=f"{run['data']}, K = {k}: certified errors in percent at radii ({run['norm']}), "
        f"{run['test points']} test points",
        title_justify="left",
    )
    table.add_column("method")
    for name in ("clean", "median", "exact", *(f"{r:g}" for r in meta["radii"]), "learning", "certifying"):
        table.add_column(name, justify="right")
    for row in (row for row in meta["rows"] if row["k"] == k):
        table.add_row(*_cells(row))
    for row in (row for row in meta["recorded"] if row["k"] == k):
        table.add_row(*_recorded(row, meta["radii"]), style="dim")
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    median = row["median"]
    spread = median["spread"]
    wide = f" ±{(spread[1] - spread[0]) / 2:.3f}" if spread and None not in spread else ""
    return [
        title(row["method"]),
        f"{100 * row['clean_error']['value']:.1f}",
        "unbounded" if median["value"] is None else f"{median['value']:.4g}{wide}",
        "–" if row["exact"] is None else f"{100 * row['exact']:.0f} %",
        *(f"{100 * e['value']:.1f}" for e in row["certified_error"]),
        took(row["train_seconds"]),
        took(row["seconds"]),
    ]


def _recorded(row: Mapping[str, Any], radii: Sequence[float]) -> list[str]:
    errors = {e["radius"]: f"{100 * e['value']:.1f}" for e in row["certified_error"]}
    exact = "100 %" if row["certificate"] == "exact" else "–"
    figures = [f"{100 * row['clean_error']:.1f}", f"{row['median']:.4g}", exact]
    return [f"{title(row['method'])} (recorded)", *figures, *(errors.get(r, "–") for r in radii), "–", "–"]


def remarks(meta: Mapping[str, Any], k: int) -> list[str]:
    """Return the paired comparisons, and where recorded figures come from."""
    lines = [
        f"error at {c['radius']:.4g}, the median of {title(c['baseline'])}: {compared(c)}"
        for c in meta["comparisons"]
        if c["k"] == k
    ]
    kept = sorted({row["provenance"] for row in meta["recorded"] if row["k"] == k})
    return lines + [f"recorded: {text}" for text in kept]


def where(found: Certification) -> list[str]:
    """Return what failed, and where everything is."""
    lines = [f"{title(name)} was not measured: {why}" for name, why in found.meta["failed"].items()]
    lines.append(f"records: {found.out / 'records.jsonl'}; radii: {found.out / 'certificates'}")
    return lines + ([] if found.report is None else [f"curves and report: {found.report}"])
