"""Results as files: hashes, rows over seeds, ranking, Markdown; and the README's table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast import recipe
from holdfast.config import replace as replace_path
from holdfast.errors import CorruptFile, RunError
from holdfast.leaderboard import Entry, add, boards, markdown, page, read_entries
from holdfast.leaderboard.entries import signature
from holdfast.results import Record, make
from holdfast.runs import evaluate_run, train_run
from holdfast.search import PGD

ROOT = Path(__file__).resolve().parents[2]


def entry(name: str, seed: int, records: Sequence[Record]) -> Entry:
    content = {"name": f"{name}-{seed}", "recipe": name, "seed": seed, "training_seconds": 10.0}
    return Entry(Path(f"{name}-{seed}.json"), content, tuple(records))


def measured(clean: float, attacked: float, ers: float | None = None, **more: Any) -> list[Record]:
    fields = {"run": "r", "n": 100, "suite": "ers", "eps": 0.2, "verdict": "TRUSTWORTHY", **more}
    under = {**fields, "state": "attacked"}
    found = [
        make(metric="recall@1", value=clean, **{**fields, "eps": 0.0}),
        make(metric="recall@1", value=attacked, attack="ES", **under),
        make(metric="recall@1", value=attacked + 0.1, attack="GTM", **under),
    ]
    score = [] if ers is None else [make(metric="ers", value=ers, attack="all", **under)]
    return found + score


def test_a_row_is_the_mean_over_seeds_and_the_lowest_of_the_attacks() -> None:
    (board,) = boards([
        entry("a", 1, measured(0.9, 0.3, 40.0)), entry("a", 0, measured(0.8, 0.1, 50.0)),
        entry("b", 0, measured(0.95, 0.05, 30.0)),
    ])  # fmt: skip
    assert board.ranked_by == "ers"
    a, b = board.rows
    assert (a.recipe, a.seeds, a.values["clean"]) == ("a", (0, 1), (80.0, 90.0))
    assert (a.mean("worst"), a.mean("ers"), b.mean("worst")) == (pytest.approx(20), 45, pytest.approx(5))
    assert a.spread("ers") == pytest.approx(7.0710678)
    assert b.spread("ers") is None
    assert (a.against, b.against) == ("first", "too few seeds")
    assert (a.front, b.front) == (True, True)  # b is more accurate, a more robust
    assert a.verdicts == {"TRUSTWORTHY": 2}


def test_what_another_row_beats_twice_is_not_on_the_front_and_noise_is_called_noise() -> None:
    def three(name: str, clean: float, worst: float, ers: Sequence[float]) -> list[Entry]:
        return [entry(name, i, measured(clean, worst, v)) for i, v in enumerate(ers)]

    (board,) = boards([
        *three("good", 0.9, 0.3, [50.0, 50.5, 51.0]), *three("same", 0.8, 0.3, [49.5, 50.2, 50.9]),
        *three("bad", 0.9, 0.2, [20.0, 20.5, 21.0]),
    ])  # fmt: skip
    assert [(r.recipe, r.against, r.front) for r in board.rows] == [
        ("good", "first", True), ("same", "within noise", False), ("bad", "behind", False),
    ]  # fmt: skip


def test_tracks_are_kept_apart_and_ranked_by_what_was_measured() -> None:
    found = boards([
        entry("a", 0, measured(0.9, 0.3)), entry("a", 0, measured(0.9, 0.5, eps=0.1)),
        entry("b", 0, measured(0.7, 0.2, norm="l2")), entry("c", 0, measured(0.7, 0.2, suite="benign")),
    ])  # fmt: skip
    assert [(b.terms.norm, b.terms.eps, [r.recipe for r in b.rows]) for b in found] == [
        ("l2", 0.2, ["b"]), ("linf", 0.1, ["a"]), ("linf", 0.2, ["a"]),
    ]  # fmt: skip
    assert {b.ranked_by for b in found} == {"worst"}
    assert list(found[0].measures) == ["clean", "worst"]
    assert "l2 eps 51/255" in found[0].terms.words()


def test_markdown_cannot_be_broken_by_a_name() -> None:
    text = markdown(boards([entry("a|b<script>*", 0, measured(0.9, 0.3, 50.0))]))
    assert text.splitlines()[2].startswith(
        "| a\\|b&lt;script>\\* \\* | 90.0 | 30.0 | 50.0 | 1 | 1 TRUSTWORTHY |"
    )


def test_a_page_stands_alone() -> None:
    html = page(boards([entry("<b>x", 0, measured(0.9, 0.3, 50.0)), entry("y", 0, measured(0.8, 0.2, 40.0))]))
    assert "<b>x" not in html
    assert "&lt;b&gt;x" in html
    assert "Content-Security-Policy" in html
    assert "http" not in html.replace("http-equiv", "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = recipe("plain")
    run = replace(plain, epochs=1, seed=3)
    for path, value in (("data.train_images", 60), ("defense.loss.margin", 0.3)):
        run = replace_path(run, path, value)
    folder = tmp_path_factory.mktemp("runs") / "r"
    opened = train_run(run, folder, defaults=plain)
    evaluate_run(opened, suite="core", search=PGD(steps=1, alpha=0.1), queries=40)
    return folder


def test_an_entry_holds_all_and_its_hash(trained: Path, tmp_path: Path) -> None:
    path = add(trained, tmp_path)
    assert path == add(trained, tmp_path)  # the same run is one entry
    (found,) = read_entries(tmp_path)
    assert found.recipe == "plain data.train_images=60 defense.loss.margin=0.3 epochs=1"
    assert (found.seed, found.name) == (3, path.stem)
    assert found.content["weights"]
    assert found.content["commands"][0].startswith(
        "holdfast train plain --seed 3 --set data.train_images=60 --set defense.loss.margin=0.3 --set epochs"
    )
    assert (
        "--suite core --norm linf --eps 0.2 --steps 1 --alpha 0.1 --precision fp32 --queries 40"
        in found.content["commands"][1]
    )
    assert {r["attack"] for r in found.records} == {"none", "CA+", "CA-", "ES"}
    (board,) = boards([found])
    assert board.rows[0].mean("clean") is not None


def test_whatever_is_changed_by_hand_is_noticed(trained: Path, tmp_path: Path) -> None:
    path = add(trained, tmp_path)
    whole = json.loads(path.read_text())
    worse = json.loads(path.read_text())
    worse["records"][0]["value"] = 0.99
    path.write_text(json.dumps(worse))
    with pytest.raises(CorruptFile, match="hash"):
        read_entries(tmp_path)

    def signed(content: dict[str, Any]) -> None:
        path.write_text(json.dumps({**content, "sha256": signature(content)}))

    signed({**whole, "records": [{**whole["records"][0], "value": 7.0}]})
    with pytest.raises(CorruptFile, match="value"):
        read_entries(tmp_path)
    signed({**whole, "records": [3]})
    with pytest.raises(CorruptFile, match="objects"):
        read_entries(tmp_path)
    signed({**whole, "schema": 9})
    with pytest.raises(RunError, match="schema 9"):
        read_entries(tmp_path)
    with pytest.raises(RunError, match="no results"):
        read_entries(tmp_path / "none")


def test_only_what_was_attacked_and_checked_is_added(trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.json", "encoder.safetensors", "log.jsonl"):
        (bare / name).write_bytes((trained / name).read_bytes())
    lines = [json.loads(line) for line in (trained / "records.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["attack"] == "none"]
    (bare / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    with pytest.raises(RunError, match="no record under attack"):
        add(bare, tmp_path / "out")
    unchecked = [{**line, "verdict": "UNCHECKED"} for line in lines]
    (bare / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in unchecked))
    with pytest.raises(RunError, match="was checked"):
        add(bare, tmp_path / "out")
    (bare / "encoder.safetensors").unlink()
    with pytest.raises(RunError, match="not finished"):
        add(bare, tmp_path / "out")


def test_the_command(trained: Path, tmp_path: Path, holdfast: Callable[..., Any]) -> None:
    out = tmp_path / "page.html"
    said = holdfast("leaderboard", tmp_path / "results", "--add", trained, "--html", out)
    assert said.code == 0, said.err
    assert "plain data.train_images=60" in said.out.replace("\n", " ")
    assert out.read_text().startswith("<!DOCTYPE html>")
    said = holdfast("leaderboard", tmp_path / "results", "--json")
    assert json.loads(said.out)["boards"][0]["rows"][0]["seeds"] == [3]
    said = holdfast("leaderboard", tmp_path / "results", "--markdown")
    assert said.out.startswith("| recipe |")


def test_the_tables_of_the_pages_are_made_from_the_results() -> None:
    words = [sys.executable, ROOT / "benchmarks" / "pages.py", "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
