"""What the terminal shows: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from ..errors import HoldfastError, UnknownName
from ..results.record import Record
from ..results.show import arranged, value_text
from ..results.table import printable

err = Console(stderr=True)
QUIET_EVERY = 15.0
"""Seconds between progress lines where no terminal is attached."""
LISTS = {
    "recipe": "recipes", "suite": "suites", "data set": "datasets", "encoder": "encoders",
    "attack": "attacks",
}  # fmt: skip
"""What ``holdfast list`` calls a kind of names."""
BRIEF = 2.0
"""Seconds below which nothing of the bars is left when all is done."""
SILENT = 1.0
"""Seconds without a report after which a terminal shows that something goes on."""


def say_error(error: Exception | str, as_json: bool, hint: str | None = None) -> None:
    """Print one line and a hint, if there is one; with ``--json`` they are data on standard output too."""
    if isinstance(error, HoldfastError):
        told, hint = error.brief, error.hint or hint
        if isinstance(error, UnknownName) and error.argument in LISTS:
            hint = f"{hint} (holdfast list {LISTS[error.argument]} shows all)"
    elif isinstance(error, OSError) and error.strerror:
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        told = (getattr(error, "message", None) or _told(error)).partition(" Did you mean")[0]
    told = printable(told)
    if as_json:
        kind = type(error).__name__ if isinstance(error, Exception) else "Error"
        print_json({"error": {"type": kind, "message": told, "hint": hint}})
    _line("error", told, "bold red")
    if hint:
        _line("hint", printable(hint), "bold cyan")


def _told(error: Exception | str) -> str:
    """Return the message of an error, of the command line's own the one for people."""
    format_message = getattr(error, "format_message", None)
    return str(error if format_message is None else format_message())


def _line(word: str, text: str, style: str) -> None:
    """Print a marked line on standard error, in colour on a terminal; it is never broken."""
    err.print(Text.assemble("holdfast: ", (f"{word}: ", style), text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print data for programs."""
    sys.stdout.write(json.dumps(value, indent=2).replace("\x7f", "\\u007f") + "\n")


def print_text(text: str) -> None:
    """Print lines for people."""
    sys.stdout.write(_lines(text) + "\n")


def print_rich(text: Text) -> None:
    """Print a line for people, in colour on a terminal."""
    Console().print(_seen(text), soft_wrap=True)


def say(text: str) -> None:
    """Print a remark for people, beside the results."""
    err.print(Text(f"holdfast: {printable(text)}"), soft_wrap=True)


class _Remarks(logging.Handler):
    """Log messages where nobody asked for them elsewhere; their names come from files too."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        say(record.getMessage())


logging.lastResort = _Remarks(logging.WARNING)


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal or, in a pipe, as wide as it needs.

    Text in it is shown as it is: names in brackets are no markup, and names between colons no emoji.
    """
    table.title, table.caption = _seen(table.title, _lines), _seen(table.caption, _lines)
    for column in table.columns:
        column.header = _seen(column.header)
        column._cells[:] = map(_seen, column._cells)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    console.print(table)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _seen(part: Any, clean: Callable[[str], str] = printable) -> Any:
    """Return a text in which nothing is invisible; other things as they are."""
    if isinstance(part, Text):
        part = part.copy()
        part.plain = clean(part.plain)
    return clean(part) if isinstance(part, str) else part


class Live:
    """Progress of one command: bars on a terminal, a line now and then elsewhere, nothing when not wanted."""

    def __init__(self, progress: Progress | None, quiet: bool) -> None:
        self.progress, self.quiet = progress, quiet
        self.tasks: dict[str, TaskID] = {}
        self._said = self._heard = time.monotonic()
        self._began: dict[str, tuple[float, float]] = {}
        self._recall = ""
        self.phase: str | None = None

    def training(self, name: str, line: dict[str, Any]) -> None:
        """Show a line of the training log: loss, hardness, R@1, steps per second, time left."""
        if line["kind"] == "epoch":
            self._recall = f"  R@1 {line['recall@1']:.3f}"
        if line["kind"] == "guard" and line["acted"] and not self.quiet:
            say(f"{name}: embeddings collapsed at step {line['step']}; radius eased to {line['ease']:.2g}")
        if line["kind"] != "step":
            return
        rate = (line["step"] + 1) / max(line["seconds"], 1e-9)
        words = f"loss {line['loss']:.3f}"
        if "hardness" in line:
            words += f"  hard {line['hardness']:+.2f}"
        words += f"{self._recall}  {rate:.1f} steps/s"
        self._show(f"train {name}", line["step"] + 1, line["steps"], words)

    def attacking(self, name: str, attack: str, done: int, total: int) -> None:
        """Show how many queries an attack has done."""
        self._show(f"attack {name} {attack}", done, total, f"{done} of {total} queries")

    def step(self, name: str, words: str, done: int, total: int) -> None:
        """Show a step of something, ``done`` of ``total``; of an unknown number of steps a total of 0."""
        if total:
            self._show(name, done, total, words)
            return
        self.phase = printable(f"{name}: {words}")
        if self.progress is not None:
            self.progress.reset(PULSE, total=None, visible=True, description=self.phase)

    @contextmanager
    def timed(self, name: str, words: str, seconds: float) -> Iterator[None]:
        """Show how much is gone of a time that the block takes, about."""
        over = threading.Event()

        def tick() -> None:
            begun = time.monotonic()
            while not over.wait(0.5):
                self._show(name, min(time.monotonic() - begun, 0.99 * seconds), seconds, words)

        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()
        self._show(name, seconds, seconds, words)

    def waiting(self) -> bool:
        """Whether no bar moves, though something goes on."""
        if self.progress is None or any(not t.finished for t in self.progress.tasks[1:]):
            return False
        return self.phase is not None or time.monotonic() - self._heard > SILENT

    def _show(self, what: str, done: float, total: float, words: str) -> None:
        now = self._heard = time.monotonic()
        what, words, self.phase = printable(what), printable(words), None
        if self.quiet:
            return
        if self.progress is not None:
            if what not in self.tasks:
                self.tasks[what] = self.progress.add_task(what, total=total, words="")
            task = self.tasks[what]
            if done < self.progress.tasks[task].completed:  # once more, at another radius
                self.progress.reset(task, total=total)
            self.progress.update(task, completed=done, total=total, words=words)
            return
        first, at = self._began.setdefault(what, (now, done))
        if done < at:
            first, at = self._began[what] = (now, done)
        if now - self._said > QUIET_EVERY:
            self._said = now
            left = (now - first) * (total - done) / (done - at) if total > done > at else 0.0
            rest = f"  {in_time(left)} left" if left else ""
            say(f"{what}: {100 * done / total:.0f} %  {words}{rest}")


class _Left(ProgressColumn):
    """Time left, or what was taken; before it can be told, the time gone."""

    def render(self, task: Task) -> Text:
        """Return one or the other."""
        if task.finished:
            return Text(f"took {in_time(task.finished_time or 0.0)}", style="dim")
        if task.total is None or task.time_remaining is None:
            return Text(f"{in_time(task.elapsed or 0.0)} so far", style="dim")
        return Text(f"{in_time(task.time_remaining)} left")


class _Share(ProgressColumn):
    """Percent done, nothing where the whole is not known."""

    def render(self, task: Task) -> Text:
        """Return the share."""
        return Text("" if task.total is None else f"{task.percentage:>3.0f} %")


class _Bars(Progress):
    """Bars, and beneath them a pulse while nothing is reported."""

    live_of: Live | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Show the pulse only while it is wanted, and last."""
        if self.live_of is not None and self.tasks:
            first, wanted = self.tasks[PULSE], self.live_of.waiting()
            if wanted and not first.visible:
                self.reset(PULSE, total=None, visible=True, description=self.live_of.phase or "working")
            first.visible = wanted
        yield self.make_tasks_table([*self.tasks[1:], *self.tasks[:1]])


PULSE = TaskID(0)
"""What is shown while no bar moves."""


def in_time(seconds: float) -> str:
    """Return a time in short words.

    Examples
    --------
    >>> in_time(7.4), in_time(200), in_time(8000)
    ('7 s', '3 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def live(quiet: bool = False) -> Iterator[Live]:
    """Show progress on standard error while the block runs."""
    if quiet or not err.is_terminal:
        yield Live(None, quiet)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        _Share(),
        TextColumn("{task.fields[words]}", markup=False),
        _Left(),
    )
    with _Bars(*columns, console=err) as progress:
        progress.add_task("working", total=None, words="", visible=False)
        progress.live_of = shown = Live(progress, quiet)
        begun = time.monotonic()
        try:
            yield shown
            for task in progress.tasks[1:]:  # steps are told before they begin, so the last is not told done
                progress.update(task.id, completed=task.total)
        finally:
            progress.live_of = None
            progress.update(PULSE, visible=False)
            progress.live.transient = time.monotonic() - begun < BRIEF


def score_table(records: Sequence[Record], title: str) -> Table:
    """Return a table with a row for each measure and a column for each run."""
    runs, cells = arranged(records)
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("measure")
    for run in runs:
        table.add_column(run, justify="right")
    for label, row in cells.items():
        table.add_row(label, *(value_text(row[run]) if run in row else "–" for run in runs))
    return table


def judged(records: Sequence[Record]) -> list[str]:
    """Return a line for each run: the verdict on its evaluation, and on what came out of repairs."""
    lines = {}
    for r in records:
        failed = f" (failed: {', '.join(r['failed'])})" if r["failed"] else ""
        after = " after repairs" if r["attack"] == "REPAIRED" else ""
        lines[r["run"], after] = printable(f"verdict on {r['run']}{after}: {r['verdict']}{failed}")
    return list(lines.values())
