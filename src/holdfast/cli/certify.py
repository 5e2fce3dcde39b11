"""``holdfast certify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..certification import Certification, certify_table
from ..config import number
from ..data.tabular import load_table
from ..errors import InvalidArgument
from ..report.certificates import compared, title, took
from .options import seconds, use_threads
from .output import print_json, print_table, print_text, say


def certify_command(
    data: Annotated[
        str | None, typer.Option(help="digits, wine, pendigits, ..., csv:PATH, csv:PATH#COLUMN or npz:PATH.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Metrics, with commas between.")] = "euclidean,arml,holdfast",
    k: Annotated[str, typer.Option(help="Numbers of neighbours that vote.")] = "1,3,11",
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None,
    n_test: Annotated[int | None, typer.Option(help="Certify only the first so many test points.")] = None,
    norm: Annotated[str, typer.Option(help="l2, linf or l1.")] = "l2",
    radii: Annotated[str | None, typer.Option(help="Radii of the table, such as 0.1,0.2.")] = None,
    seed: Annotated[int, typer.Option(help="Of methods with random choices.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Several, such as 0,1,2, to see their spread.")] = None,
    method: Annotated[str, typer.Option(help="How to certify; auto chooses.")] = "auto",
    attack: Annotated[
        bool, typer.Option("--attack", help="Look for short changes that succeed too.")
    ] = False,
    budget: Annotated[str | None, typer.Option(help="Time to tighten each certificate: 90s, 10m.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/certify-DATA.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    jobs: Annotated[int | None, typer.Option(help="Threads that certify, -1 for all cores.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    report: Annotated[bool, typer.Option(help="Write curves and report.html.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Learn metrics on a table of data, and certify nearest-neighbour classification of its test points."""
    use_threads(threads)
    if data is None:
        raise InvalidArgument("data", "a data set, such as --data digits", None)
    found = certify_table(
        load_table(data, data_dir), names(methods), whole("k", k), norm=norm, n_test=n_test,
        seeds=[seed] if seeds is None else whole("seeds", seeds), method=method, attack=attack,
        radii=None if radii is None else [number(r) for r in names(radii)], out=out,
        budget=None if budget is None else seconds(budget), device=device, jobs=jobs, report=report,
        on_step=None if as_json else lambda words, done, all_: say(f"{data}: {words} ({done + 1} of {all_})"),
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
