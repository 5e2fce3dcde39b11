"""The main job in one call: train an undefended and a hardened encoder, attack both, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .config import replace as replace_path
from .errors import RunError
from .recipes import recipe
from .report import write_report
from .results import Records, record
from .runs import RunFolder, evaluate_run, open_run, train_run
from .training import Run

RECIPES = ("plain", "hm-ics")
REPAIR_SECONDS = 20.0


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart left behind.

    Attributes
    ----------
    records
        Of both runs.
    report, records_path
        ``report.html`` and ``records.jsonl``.
    reused
        Names of runs that were there already, trained with the same settings.
    """

    records: Records
    report: Path
    records_path: Path
    reused: tuple[str, ...]


def quickstart(
    out: str | Path = "runs/quickstart",
    *,
    zero_shot: bool = False,
    seed: int = 0,
    runs: Sequence[Run] = (),
    changes: Sequence[tuple[str, Any]] = (),
    on_line: Callable[[str, dict[str, Any]], None] | None = None,
    on_chunk: Callable[[str, str, int, int], None] | None = None,
    on_step: Callable[[str, str, int, int], None] | None = None,
) -> Quickstart:
    """Train ``plain`` and ``hm-ics`` on digits, evaluate both with CA+, CA- and ES, write records and report.

    The evaluation is checked, and what the checks find too weak is mended for a few seconds.

    Parameters
    ----------
    out
        Folder. Finished parts of the same settings are used again, a stopped one goes on.
    zero_shot
        Train on the digits 0 to 4 and test on 5 to 9, instead of all classes on both sides.
    seed
        Of both runs.
    runs
        In place of the two recipes on digits; the first is the undefended one.
    changes
        ``(path, value)`` settings that all runs shall have, for tests and trials: ``("epochs", 2)``.
    on_line, on_chunk, on_step
        Progress of training (run, log line), of attacks (run, attack, queries done, in all) and of the rest
        (run, what is done, steps done, in all).

    Raises
    ------
    RunError
        If the folder holds runs of other settings.
    """
    out = Path(out)
    base = {run.name: run for run in runs or map(recipe, RECIPES)}
    wanted = [_prepare(run, zero_shot, seed, changes) for run in base.values()]
    for run in wanted:  # refuse before anything is computed
        if (out / run.name / "run.json").exists() and open_run(out / run.name).run != run:
            raise RunError(
                f"{out / run.name}: holds a run of other settings; choose another --out, "
                "or set the old one aside with --fresh"
            )
    records = Records()
    reused = []
    folders: list[RunFolder] = []
    for run in wanted:
        name, folder = run.name, out / run.name
        known = (folder / "run.json").exists()
        if known and open_run(folder).finished:
            reused.append(name)
        opened = train_run(
            run,
            folder,
            resume=known,
            defaults=_prepare(base[name], False, 0, ()),
            on_line=on_line and partial(on_line, name),
        )
        records += evaluate_run(
            opened,
            device=run.device,
            precision="fp32",
            repair_seconds=REPAIR_SECONDS,
            on_chunk=on_chunk and partial(on_chunk, name),
            on_step=on_step and partial(on_step, name),
        )
        folders.append(opened)
    path = out / "records.jsonl"
    there = {(r["run"], r["fingerprint"]) for r in record.read(path)} if path.exists() else set()
    record.append(path, [r for r in records if (r["run"], r["fingerprint"]) not in there])
    report = write_report([opened.path for opened in folders], out / "report.html")
    return Quickstart(records, report, path, tuple(reused))


def _prepare(run: Run, zero_shot: bool, seed: int, changes: Sequence[tuple[str, Any]]) -> Run:
    run = replace(run, seed=seed)
    if zero_shot:
        run = replace_path(run, "data.protocol", "zero-shot")
    for path, value in changes:
        run = replace_path(run, path, value)
    return run
