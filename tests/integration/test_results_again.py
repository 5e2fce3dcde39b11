"""A random sample of what ``results/`` holds is computed again and compared; the day draws it."""

from __future__ import annotations

import datetime
import random
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.leaderboard import TRACKS, Entry, Places, TableTrack, Track, read_entries, run_track

RESULTS = Path(__file__).resolve().parents[2] / "results"
RUNS, TABLES = ("0", "1", "2"), ("wine", "breast-cancer")
DRAWN = random.Random(datetime.datetime.now(datetime.UTC).toordinal()).choice((*RUNS, *TABLES))
"""A seed of ``plain`` on digits, or a table."""
SHARE = 0.03
"""Another processor or torch rounds otherwise, and training makes steps of last bits: 11 of 360 queries."""


def told(entry: Entry) -> dict[tuple[str, ...], float]:
    return {
        (r["suite"], r["attack"], r["state"], r["metric"]): r["value"]
        for r in entry.records
        if r["metric"] not in ("certified-median", "ers", "resistance")
    }


@pytest.mark.skipif(DRAWN not in RUNS, reason="the day drew a table")
def test_a_run_on_digits_gives_its_records_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``plain`` alone, as it trains in seconds; its worst case is on the sample of queries of the record."""
    whole = TRACKS["digits"]
    assert isinstance(whole, Track)
    track = replace(whole, steps=whole.steps[1:])
    monkeypatch.setattr("holdfast.leaderboard.running.TRACKS", {"digits": track})
    seed = int(DRAWN)
    (path,) = run_track(
        "digits", Places(runs=tmp_path / "runs", results=tmp_path), entries=["plain"], seeds=[seed]
    )
    (new,) = read_entries(path.parent)
    (old,) = (e for e in read_entries(RESULTS / "digits") if (e.recipe, e.seed) == ("plain", seed))
    assert new.content["data"] == old.content["data"]
    assert new.content["run"] == old.content["run"]
    then, now = told(old), told(new)
    shares = [key for key in now if key[0] == "worst-case" and "recall" in key[3]]
    assert len(shares) >= 2
    for key in shares:
        assert now[key] == pytest.approx(then[key], abs=SHARE), key


@pytest.mark.skipif(DRAWN not in TABLES, reason="the day drew a run")
def test_certificates_of_a_table_come_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact radii depend on nothing but the metric; that of ``arml`` is trained, in float64."""
    name = DRAWN
    whole = TRACKS["certified-linear"]
    assert isinstance(whole, TableTrack)
    track = replace(whole, tables={name: None})
    monkeypatch.setattr("holdfast.leaderboard.running.TRACKS", {"certified-linear": track})
    places = Places(runs=tmp_path / "runs", results=tmp_path)
    files = list(run_track("certified-linear", places, entries=["euclidean", "arml"], seeds=[0]))
    old = {entry.name: told(entry) for entry in read_entries(RESULTS / "certified-linear")}
    assert len(files) == 2
    for entry in read_entries(files[0].parent):
        now = told(entry)
        same = now.keys() & old[entry.name].keys()
        assert len(same) >= 8
        for key in same:
            assert now[key] == pytest.approx(old[entry.name][key], abs=0.02), key
