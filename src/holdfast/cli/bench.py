"""``holdfast bench``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..files import write_json
from ..functional.memory import in_words
from .options import use_threads
from .output import live, print_json, print_table, print_text


def bench_command(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: minutes on 2 cores.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Cases, with commas: search,step,ranking,certificates,clustering.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Measured calls of each variant.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Count CPU seconds: on a shared machine, with --threads 1.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in further processes.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the dated JSON and the plot.")] = Path("bench"),
    compare: Annotated[
        Path | None, typer.Option(help="An earlier JSON: say which ratios changed beyond their spread.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure speed in one run against bare limits, other libraries and recorded figures."""
    from ..bench import CASES, Size, bench, changes, plot, read_result

    use_threads(threads)
    before = None if compare is None else read_result(compare)
    cases = [name.strip() for name in only.split(",") if name.strip()] if only else []

    clock = time.process_time if cpu else time.perf_counter
    size: Size = "quick" if quick else "full"
    wanted = [case for case in CASES if not cases or case in cases]

    with live(quiet=as_json) as progress:

        def on_row(row: Mapping[str, Any]) -> None:
            words = f"{row['case']}, {row['work']}: {row['against']} {_ratio(row)}"
            done = wanted.index(row["case"]) if row["case"] in wanted else 0
            progress.step("bench", words, done, len(wanted))

        result = bench(cases, size, rounds=rounds, memory=memory, clock=clock, on_row=on_row)
    name = out / f"bench-{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}"
    write_json(Path(f"{name}.json"), result)
    drawn = plot(result, name) if any(row.get("ratio") for row in result["rows"]) else []
    if as_json:
        print_json(result)
        return
    print_table(_table(result))
    if before is not None:
        found = changes(before, result)
        for c in found:
            if c.beyond:
                print_text(
                    f"changed: {c.work}, {c.against}: {c.before.median:.2f} "
                    f"[{c.before.low:.2f}, {c.before.high:.2f}] before, {c.now.median:.2f} "
                    f"[{c.now.low:.2f}, {c.now.high:.2f}] now"
                )
        print_text(
            f"{sum(c.beyond for c in found)} of {len(found)} common ratios changed beyond their spread"
        )
    print_text(f"{result['seconds']:.0f} s; written: {name}.json" + "".join(f", {p.name}" for p in drawn))


def _table(result: Mapping[str, Any]) -> Table:
    machine = result["machine"]
    kind = "CPU seconds" if result["clock"] == "cpu" else "seconds"
    title = f"{kind} on {machine['threads']} threads of {machine['model'] or machine['processor']}"
    caption = "ratio: time of the other / ours, median and range over paired rounds; above 1 we are faster"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("work", "against"):
        table.add_column(column, overflow="fold")
    for column in ("ours", "other", "ratio", "peak ours", "peak other"):
        table.add_column(column, justify="right")
    last = None
    for row in result["rows"]:
        label = "" if row["work"] == last else row["work"]
        theirs = row["what"] if row["ratio"] is None else _seconds(row["theirs"])
        table.add_row(
            label, row["against"], _seconds(row["ours"]), theirs, _ratio(row), _bytes(row.get("peak_bytes")),
            _bytes(row.get("their_peak_bytes")), end_section=False,
        )  # fmt: skip
        last = row["work"]
    return table


def _seconds(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "recorded"
    return f"{found['median']:.3g} s" if found["median"] >= 0.1 else f"{1e3 * found['median']:.3g} ms"


def _ratio(row: Mapping[str, Any]) -> str:
    from ..bench.plot import in_short

    if row["ratio"] is None:
        return str(row["what"])
    r = row["ratio"]
    return "{} [{}, {}]".format(*(in_short(r[name]) for name in ("median", "low", "high")))


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    return in_words(count) if count >= 2**20 else "< 1M"
