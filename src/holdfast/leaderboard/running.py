"""Run a track: train, measure and file every entry; what is there already is used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..certification import certify_table
from ..data.tabular import load_table
from ..errors import InvalidArgument, UnknownName
from ..evaluation.certified import records_of
from ..runs import machine, train_run
from .entries import add, track_command, write_entry
from .tracks import SEEDS, TRACKS, TableTrack, Tell, Track

BASELINE = "arml"
"""Certified errors of tables are told at its median radius too."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a track finds and leaves things.

    Attributes
    ----------
    runs
        Run folders, ``TRACK/ENTRY-SEED``; a stopped call goes on from there.
    results
        Entries, ``TRACK/*.json``.
    data_dir
        Folder with the data sets' files.
    """

    runs: Path = Path("runs/leaderboard")
    results: Path = Path("results")
    data_dir: str | None = None


def run_track(
    name: str,
    places: Places,
    *,
    entries: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    on_step: Callable[[str, str, int, int], None] | None = None,
) -> Iterator[Path]:
    """Train and measure the entries of a track, seed by seed, and yield the file of each.

    Parameters
    ----------
    name
        Of :data:`~holdfast.leaderboard.tracks.TRACKS`.
    places
        Where data, runs and results are.
    entries
        Some of the track's; all by default.
    seeds
        Of training.
    on_step
        Called with the entry, what is being done to it, steps done and steps in all (0 where unknown).

    Raises
    ------
    UnknownName
        For a track or entry that there is not.
    InvalidArgument
        For no seeds, or negative ones.
    """
    if name not in TRACKS:
        raise UnknownName("track", name, TRACKS)
    track = TRACKS[name]
    chosen = tuple(track.entries if entries is None else entries)
    for entry in chosen:
        if entry not in track.entries:
            raise UnknownName("entries", entry, track.entries)
    if not chosen or not seeds or any(seed < 0 for seed in seeds):
        raise InvalidArgument("seeds and entries", "at least one entry and one seed >= 0", (chosen, seeds))
    tell = on_step or (lambda *_: None)
    if isinstance(track, TableTrack):
        return _tables(track, chosen, seeds, places, tell)
    return _runs(track, chosen, seeds, places, tell)


def _runs(
    track: Track, chosen: Sequence[str], seeds: Sequence[int], places: Places, tell: Callable[..., None]
) -> Iterator[Path]:
    for seed in seeds:
        for entry in chosen:
            usual, run = track.recipe(entry, places.data_dir)
            run = replace(run, seed=seed)
            folder = places.runs / track.name / f"{entry.replace(' ', '-')}-{seed}"

            def told(line: dict[str, Any], label: str = f"{entry}, seed {seed}", run: Any = run) -> None:
                if line.get("kind") == "epoch":
                    tell(label, "training", int(line["epoch"]) + 1, run.epochs)

            opened = train_run(
                run, folder, resume=(folder / "run.json").exists(), defaults=usual, on_line=told
            )
            for step in track.steps:
                step.measure(opened, _labelled(tell, f"{entry}, seed {seed}"))
            yield add(folder, places.results / track.name, track=track.name)


def _labelled(tell: Callable[..., None], label: str) -> Tell:
    return lambda words, done, steps: tell(label, words, done, steps)


def _tables(
    track: TableTrack, chosen: Sequence[str], seeds: Sequence[int], places: Places, tell: Callable[..., None]
) -> Iterator[Path]:
    for name, points in track.tables.items():
        table = load_table(name, places.data_dir)
        folder = places.runs / track.name / name

        found = certify_table(
            table, chosen, track.k, n_test=points, seeds=seeds, out=folder, report=False,
            on_step=_labelled(tell, table.name),
        )  # fmt: skip
        medians = [
            row["median"]["value"]
            for row in found.meta["rows"]
            if row["method"] == BASELINE and row["k"] == track.k[0] and row["median"]["value"] is not None
        ]
        radii, norm = sorted({*found.meta["radii"], *medians}), found.meta["run"]["norm"]
        for method, seed in dict.fromkeys((one.method, one.seed) for one in found.measured):
            mine = [one for one in found.measured if (one.method, one.seed) == (method, seed)]
            yield write_entry(
                places.results / track.name, f"{name}-{method}-seed{seed}", track=track.name, recipe=method,
                seed=seed, records=[r for one in mine for r in records_of(one, table.name, norm, radii)],
                version=found.meta["version"], machine=machine(), data=found.meta["data_fingerprint"],
                commands=[track_command(track.name, method, seed)],
                training_seconds=mine[0].train_seconds,
                run={"table": table.provenance, "points": points, "k": list(track.k)},
            )  # fmt: skip
