"""What the terminal shows: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..results.record import Record

err = Console(stderr=True)
QUIET_EVERY = 15.0
"""Seconds between progress lines where no terminal is attached."""


def say_error(error: Exception | str, as_json: bool) -> None:
    """Print one line; with ``--json`` the error is data on standard output too."""
    if as_json:
        kind = type(error).__name__ if isinstance(error, Exception) else "Error"
        print_json({"error": {"type": kind, "message": str(error)}})
    sys.stderr.write(f"holdfast: error: {error}\n")


def print_json(value: Any) -> None:
    """Print data for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_text(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")


def say(text: str) -> None:
    """Print a remark for people, beside the results."""
    sys.stderr.write(f"holdfast: {text}\n")


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal or, in a pipe, as wide as it needs."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


class Live:
    """Progress of one command: bars on a terminal, a line now and then elsewhere, nothing when not wanted."""

    def __init__(self, progress: Progress | None, quiet: bool) -> None:
        self.progress, self.quiet = progress, quiet
        self.tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()
        self._recall = ""

    def training(self, name: str, line: dict[str, Any]) -> None:
        """Show a line of the training log: loss, hardness, R@1, steps per second, time left."""
        if line["kind"] == "epoch":
            self._recall = f"  R@1 {line['recall@1']:.3f}"
        if line["kind"] == "guard" and line["acted"] and not self.quiet:
            err.print(
                f"{name}: embeddings collapsed at step {line['step']}; radius eased to {line['ease']:.2g}"
            )
        if line["kind"] != "step":
            return
        rate = (line["step"] + 1) / max(line["seconds"], 1e-9)
        words = f"loss {line['loss']:.3f}"
        if "hardness" in line:
            words += f"  hard {line['hardness']:+.2f}"
        words += f"{self._recall}  {rate:.1f} steps/s"
        self._show(
            f"train {name}", line["step"] + 1, line["steps"], words, (line["steps"] - line["step"]) / rate
        )

    def attacking(self, name: str, attack: str, done: int, total: int) -> None:
        """Show how many queries an attack has done."""
        self._show(f"attack {name} {attack}", done, total, f"{done} of {total} queries", None)

    def _show(self, what: str, done: int, total: int, words: str, left: float | None) -> None:
        if self.progress is not None:
            if what not in self.tasks:
                self.tasks[what] = self.progress.add_task(what, total=total, words="")
            self.progress.update(self.tasks[what], completed=done, words=words)
        elif not self.quiet and (
            time.monotonic() - self._said > QUIET_EVERY or (done == total and left is not None)
        ):
            self._said = time.monotonic()
            rest = f"  {left:.0f} s left" if left is not None and done < total else ""
            sys.stderr.write(f"{what}: {done}/{total}  {words}{rest}\n")


@contextmanager
def live(quiet: bool = False) -> Iterator[Live]:
    """Show progress on standard error while the block runs."""
    if quiet or not err.is_terminal:
        yield Live(None, quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err) as progress:
        yield Live(progress, quiet)


NAMES = {"recall@1": "R@1", "recall@2": "R@2", "recall@4": "R@4", "recall@8": "R@8", "map": "mAP"}
NAMES |= {"map@r": "MAP@R", "map@10": "mAP@10", "nmi": "NMI"}


def score_table(records: Sequence[Record], title: str) -> Table:
    """Return a table with a row for each measure and a column for each run."""
    runs = list(dict.fromkeys(r["run"] for r in records))
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("measure")
    for run in runs:
        table.add_column(run, justify="right")
    cells: dict[str, dict[str, str]] = {}
    for r in records:
        if r["attack"] != "none" and r["state"] == "clean":
            continue  # stands beside the attacked value
        name = NAMES.get(r["metric"], r["metric"])
        better = "higher" if r["higher_is_robust"] else "lower"
        label = f"clean {name}" if r["attack"] == "none" else f"{r['attack']} {name} ({better} is robust)"
        cells.setdefault(label, {})[r["run"]] = _value(r)
    for label, row in cells.items():
        table.add_row(label, *(row.get(run, "–") for run in runs))
    return table


def _value(r: Record) -> str:
    def show(v: float) -> str:
        if r["attack"] == "all":  # a score, or one of its items: in [0, 100] already
            return f"{v:.1f}"
        return f"{v:.3f}" if r["metric"] in ("shift", "cosine", "kendall") else f"{100 * v:.1f} %"

    interval = f" [{show(r['ci'][0])}, {show(r['ci'][1])}]" if r["ci"] else ""
    return show(r["value"]) + interval


def judged(records: Sequence[Record]) -> list[str]:
    """Return a line for each run: the verdict on its evaluation, and on what came out of repairs."""
    lines = {}
    for r in records:
        failed = f" (failed: {', '.join(r['failed'])})" if r["failed"] else ""
        after = " after repairs" if r["attack"] == "REPAIRED" else ""
        lines[r["run"], after] = f"verdict on {r['run']}{after}: {r['verdict']}{failed}"
    return list(lines.values())
