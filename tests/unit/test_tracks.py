"""Tracks: entries that are trained, measured and filed by one command; boards of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.config import replace as replace_path
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.leaderboard import (
    TRACKS,
    Entry,
    Places,
    TableTrack,
    Track,
    boards,
    plot,
    read_entries,
    run_track,
    running,
    tracks,
)
from holdfast.leaderboard.tracks import Attacked, Certified
from holdfast.recipes import RECIPES, SETTINGS
from holdfast.results import Record, make
from holdfast.training import Run

ROOT = Path(__file__).resolve().parents[2]


def tiny(run: Run) -> Run:
    return replace(replace_path(run, "data.train_images", 1700), epochs=1)


SMALL = Track(
    "small", title="a small one", setting="digits", adapt=tiny,
    entries=("plain", "plain defense.loss.margin=0.3"),
    steps=(Attacked(suite="benign"), Attacked(suite="worst-case", queries=3, eps=0.05)),
)  # fmt: skip
TABLE = TableTrack("table", title="wine", tables={"wine": 20}, entries=("euclidean", "arml"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (running, tracks):
        monkeypatch.setattr(module, "TRACKS", {**TRACKS, "small": SMALL, "table": TABLE})


@pytest.mark.usefixtures("known")
def test_a_track_is_filed_entry_by_entry_and_goes_on(tmp_path: Path) -> None:
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
    steps: list[tuple[str, str]] = []
    work = run_track(
        "small", places, seeds=(1,), on_step=lambda label, words, *_: steps.append((label, words))
    )
    first = next(work)
    work.close()
    assert first == tmp_path / "results" / "small" / "digits-plain-seed1.json"
    assert ("plain, seed 1", "training") in steps
    weights = tmp_path / "runs" / "small" / "plain-1" / "encoder.safetensors"
    before, text = weights.stat().st_mtime_ns, json.loads(first.read_text())
    files = list(run_track("small", places, seeds=(1,)))
    assert weights.stat().st_mtime_ns == before
    assert [path.name for path in files] == [first.name, "digits-plain-defense.loss.margin-0.3-seed1.json"]
    again = json.loads(files[0].read_text())
    assert (again["weights"], again["records"]) == (text["weights"], text["records"])
    plain, wider = read_entries(tmp_path / "results" / "small")  # in the order of their names
    assert {plain.recipe, wider.recipe} == {"plain", "plain defense.loss.margin=0.3"}
    assert (plain.track, plain.seed) == ("small", 1)
    assert again["commands"] == ["holdfast leaderboard run small --entries 'plain' --seeds 1"]
    (board,) = boards([plain, wider])
    assert board.terms.eps == 0.05
    assert len(board.rows) == 2
    assert board.rows[0].mean("clean") is not None
    clean = [r for r in plain.records if r["metric"] == "recall@1" and r["attack"] == "none"]
    assert max(r["n"] for r in clean) == 97  # of all test images, though three were attacked


@pytest.mark.usefixtures("known")
def test_a_table_is_filed_with_its_errors_at_the_median_of_arml(tmp_path: Path) -> None:
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
    files = [path.name for path in run_track("table", places, seeds=(0, 1))]
    assert files == [f"wine-{name}.json" for name in ("euclidean-seed0", "arml-seed0", "arml-seed1")]
    (board,) = boards(read_entries(tmp_path / "results"))
    assert (board.terms.kind, board.terms.words()) == (
        "neighbours", "table: wine, closed, l2 certified (certificates of nearest neighbours)",
    )  # fmt: skip
    arml = next(row for row in board.rows if row.recipe == "arml")
    assert arml.seeds == (0, 1)
    radii = [float(name.partition("@")[2]) for name in board.measures if "@" in name]
    median = arml.mean("median")
    assert median is not None
    assert min(abs(r - median) for r in radii) < 1e-3
    assert radii == sorted(radii)
    errors = [arml.mean(name) or 0.0 for name in board.measures if "@" in name]
    assert errors == sorted(errors)  # more room, more errors
    assert (arml.mean("clean") or 0.0) <= errors[0]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("name", "more", "error"),
    [
        ("smal", {}, UnknownName),
        ("small", {"entries": ["hm"]}, UnknownName),
        ("small", {"seeds": ()}, InvalidArgument),
        ("small", {"seeds": (-1,)}, InvalidArgument),
        ("small", {"entries": []}, InvalidArgument),
    ],
)
def test_what_there_is_not_is_refused(tmp_path: Path, name: str, more: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        next(run_track(name, Places(runs=tmp_path, results=tmp_path), **more))


@pytest.mark.parametrize("track", [t for t in TRACKS.values() if isinstance(t, Track)], ids=lambda t: t.name)
def test_every_entry_is_a_run_of_its_setting(track: Track) -> None:
    assert track.setting in SETTINGS
    for entry in track.entries:
        usual, run = track.recipe(entry)
        assert run.name == usual.name == entry.split()[0]
        assert run.name in RECIPES
        assert (run == usual) == (" " not in entry)
    assert all(isinstance(step, Attacked | Certified) for step in track.steps)


def of(name: str, records: list[Record], track: str = "t") -> Entry:
    content = {"name": name, "recipe": name, "seed": 0, "training_seconds": 1.0, "track": track}
    return Entry(Path(f"{name}.json"), content, tuple(records))


def test_kinds_never_share_a_table_and_each_has_its_columns() -> None:
    def at(**fields: Any) -> Record:
        return make(run="r", n=10, **{"state": "attacked", "norm": "l2", **fields})

    clean = make(run="r", n=10, metric="recall@1", value=0.9)
    found = boards([
        of("a", [clean, at(suite="ers", attack="all", metric="ers", value=40.0, eps=0.1)]),
        of("a", [clean, at(suite="ers-robrank", attack="all", metric="ers", value=30.0, eps=0.1)]),
        of("b", [clean, at(suite="certified", attack="votes", metric="certified@0.5", value=0.25, eps=0.5),
                 at(suite="certified", attack="votes", metric="certified-median", value=0.3)]),
        of("c", [make(run="r", n=10, metric="accuracy", value=0.8, suite="clustering-worst"),
                 at(suite="clustering-worst", attack="WORST", metric="accuracy", value=0.3, eps=0.1),
                 at(suite="clustering-worst", attack="WORST", metric="flip", value=0.6, eps=0.1)]),
        of("d", [make(run="r", n=10, metric="clean-error", value=0.1, suite="knn-1", norm="l2"),
                 make(run="r", n=10, metric="certified@0.5", value=0.75, suite="knn-1", norm="l2", eps=0.5)]),
    ])  # fmt: skip
    shown = {b.terms.kind: {n: b.rows[0].mean(n) for n in b.measures} for b in found}
    assert shown == {
        "ranking": {"clean": 90.0, "ers": 40.0},
        "published": {"clean": 90.0, "published": 30.0},
        "certified": {"clean": 90.0, "median": 0.3, "certified@0.5": 25.0},
        "clusters": {"clean": 80.0, "worst": 30.0, "flip": 60.0},
        "neighbours": {"clean": 10.0, "certified@0.5": 25.0},  # errors
    }
    titles = {b.terms.kind: [m.title for m in b.measures.values()][-1] for b in found}
    assert (titles["certified"], titles["neighbours"]) == ("certified at 0.5", "error at 0.5")


def test_a_row_that_means_nothing_is_neither_first_nor_on_the_front() -> None:
    def at(name: str, clean: float, worst: float, verdict: str) -> Entry:
        records = [make(run="r", n=10, metric="recall@1", value=clean)]
        more: dict[str, Any] = {"suite": "ers", "state": "attacked", "attack": "ES", "eps": 0.1}
        return of(
            name, [*records, make(run="r", n=10, metric="recall@1", value=worst, verdict=verdict, **more)]
        )

    (board,) = boards([at("collapsed", 0.9, 0.9, "VACUOUS"), at("sound", 0.8, 0.2, "TRUSTWORTHY")])
    assert [(r.recipe, r.front, r.against) for r in board.rows] == [
        ("sound", True, "first"), ("collapsed", False, "not counted"),
    ]  # fmt: skip


def test_the_commands(holdfast: Callable[..., Any], tmp_path: Path) -> None:
    said = holdfast("leaderboard", "tracks", "--json")
    assert {t["name"] for t in json.loads(said.out)} == set(TRACKS)
    said = holdfast("leaderboard", "run", "digit", "--runs", tmp_path, "--results", tmp_path)
    assert said.code == 2
    assert "digits" in said.err  # a near match
    said = holdfast("leaderboard", ROOT / "results" / "digits", "--plot", tmp_path / "a.jpg")
    assert (said.code, ".png or .svg" in said.err) == (2, True)
    said = holdfast("leaderboard", tmp_path / "none")
    assert (said.code, "no results" in said.err) == (2, True)


def test_a_picture_has_a_panel_for_every_board_that_can_be_drawn(tmp_path: Path) -> None:
    def at(name: str, clean: float, worst: float) -> Entry:
        under = {"suite": "ers", "state": "attacked", "attack": "ES", "eps": 0.1}
        records = [
            make(run="r", n=10, metric="recall@1", value=clean),
            make(run="r", n=10, metric="recall@1", value=worst, **under),  # type: ignore[arg-type]
        ]
        return of(name, records)

    found = boards([at("a", 0.9, 0.1), at("<b>$\\frac$", 0.8, 0.2)])
    path = plot(found, tmp_path / "new" / "a.svg")
    text = path.read_text("utf-8")
    assert text.count('<g id="axes_') == 1
    with pytest.raises(DataError, match="two rows"):
        plot(boards([at("a", 0.9, 0.1)]), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
