"""The benchmark: rounds, plain data, peers that are missing, the picture. Nothing asserts on time."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from holdfast.bench import (
    CASES,
    Spread,
    Timing,
    bench,
    changes,
    interleaved,
    peers,
    plot,
    ratio,
    read_result,
    recorded,
    spread,
)
from holdfast.bench.cases.search import Noted, bare, replay
from holdfast.bench.job import LIMIT, OURS, Job
from holdfast.bench.memory import forget, peak, peak_in_process, resident
from holdfast.bench.run import against_recorded, place
from holdfast.cli import bench as command
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.files import write_json


def ticking(*durations: float) -> Callable[[], float]:
    """Return a clock on which the measured calls take so long, one after the other."""
    moments: list[float] = []
    now = 0.0
    for d in durations:
        moments += [now, now + d]
        now += d + 100.0
    steps = iter(moments)
    return lambda: next(steps)


def test_rounds_are_interleaved_and_every_variant_has_every_place() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    found = interleaved(works, 3, warm_up=1, clock=ticking(1, 2, 3, 30, 20, 10, 200, 300, 100))
    assert "".join(order) == "abc" + "abc" + "cba" + "bca"
    assert found["a"].seconds == pytest.approx((1, 10, 100))
    assert found["b"].seconds == pytest.approx((2, 20, 200))
    assert found["c"].seconds == pytest.approx((3, 30, 300))
    order.clear()
    interleaved(works, 6, warm_up=0)
    for first in range(3):
        assert sorted(order[first::3]) == list("aabbcc")


@pytest.mark.parametrize(("each", "rounds"), [(1.0, 5), (2.0, 3), (0.01, 8), (50.0, 2)])
def test_short_works_get_more_rounds(each: float, rounds: int) -> None:
    """Two works in two rounds at least, ten seconds at least, four times the rounds at most."""
    found = interleaved({"a": int, "b": int}, 2, warm_up=0, least=10.0, clock=ticking(*[each] * 16))
    assert len(found["a"].seconds) == len(found["b"].seconds) == rounds


def test_warm_up_is_not_measured_and_settle_comes_before_the_clock() -> None:
    calls: list[str] = []

    def clock() -> float:
        calls.append("clock")
        return float(len(calls))

    interleaved({"a": lambda: calls.append("a")}, 1, warm_up=2, clock=clock, settle=lambda: calls.append("s"))
    assert calls == ["a", "a", "s", "clock", "a", "s", "clock"]


def test_spread_by_hand() -> None:
    assert spread([4.0, 1.0, 2.0, 10.0]) == Spread(3.0, 1.0, 10.0, 4)
    assert Timing((3.0, 1.0)).spread == Spread(2.0, 1.0, 3.0, 2)
    assert spread([2.0]).times(3.0) == Spread(6.0, 6.0, 6.0, 1)


def test_ratio_is_that_of_pairs_and_not_of_medians() -> None:
    a, b = Timing((10.0, 1.0, 3.0)), Timing((1.0, 2.0, 3.0))
    assert ratio(a, b) == Spread(1.0, 0.5, 10.0, 3)  # the ratio of the medians is 1.5


@pytest.mark.parametrize(("low", "high", "beyond"), [(2.0, 3.0, False), (2.1, 3.0, True), (0.1, 0.9, True)])
def test_ranges_without_a_common_value_are_apart(low: float, high: float, beyond: bool) -> None:
    here, there = Spread(1.5, 1.0, 2.0, 5), Spread((low + high) / 2, low, high, 5)
    assert here.apart(there) is beyond
    assert there.apart(here) is beyond


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_below_one_are_refused(rounds: int) -> None:
    with pytest.raises(InvalidArgument, match="rounds"):
        interleaved({"a": int}, rounds)
    with pytest.raises(InvalidArgument, match="rounds"):
        bench(size="tiny", rounds=rounds)


def test_other_bad_input() -> None:
    with pytest.raises(UnknownName, match="did you mean search"):
        bench(["serach"], "tiny")
    with pytest.raises(InvalidArgument, match="size"):
        bench(size="huge")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="same rounds"):
        ratio(Timing((1.0,)), Timing((1.0, 2.0)))
    with pytest.raises(InvalidArgument, match="warm_up"):
        interleaved({"a": int}, 1, warm_up=-1)
    with pytest.raises(InvalidArgument, match="values"):
        spread([])


FIELDS = {
    "case",
    "work",
    "unit",
    "units",
    "ours",
    "peak_bytes",
    "note",
    "kind",
    "against",
    "what",
    "theirs",
    "ratio",
}


@pytest.mark.parametrize("case", list(CASES))
def test_every_case_runs_once(case: str) -> None:
    result = bench([case], "tiny", memory=False)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["machine"]) == set(place())
    assert result["machine"]["threads"] == torch.get_num_threads()
    rows = result["rows"]
    assert {row["case"] for row in rows} == {case}
    assert {row["kind"] for row in rows} >= {"limit"}
    for row in rows:
        assert set(row) >= FIELDS
        assert set(row["ours"]) == {"median", "low", "high", "rounds"}
        if row["ratio"] is not None:
            r = row["ratio"]
            assert 0 < r["low"] <= r["median"] <= r["high"]


def test_peers_attack_as_we_do() -> None:
    """The same steps on the same loss give the same images, so that times compare the same work."""
    job = next(j for j in CASES["search"]("tiny") if "cross-entropy" in j.name)
    assert job.note.count("100.0 % of pixels") == len(job.peers) - len(job.absent())


def test_the_limit_repeats_the_passes_of_the_work() -> None:
    noted = Noted(torch.nn.Flatten())
    bare(noted, torch.rand(3, 1, 2, 2), 2)
    replay(noted, torch.rand(3, 1, 2, 2), [(2, False), (1, True)])
    assert noted.passes == [(3, True), (3, True), (2, False), (1, True)]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make a package look as if it were not installed."""
    real = builtins.__import__

    def hide(package: str) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        finder = type("Hidden", (), {"find_spec": staticmethod(lambda name, *_: missing(name))})
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])

        def missing(name: str) -> None:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    yield hide
    assert builtins.__import__ is real


def test_a_missing_peer_is_a_row(without: Callable[[str], None]) -> None:
    without("foolbox")
    model, x, y = torch.nn.Flatten(), torch.rand(4, 1, 2, 2), torch.arange(4)
    assert peers.foolbox_pgd(model, x, y, 0.1, 0.01, 2) == peers.INSTALL


def test_every_peer_can_be_missing(without: Callable[[str], None]) -> None:
    for package in ("faiss", "pytorch_metric_learning", "art", "metric_learn"):
        without(package)
    z, y, x = torch.rand(8, 4), torch.arange(8) % 2, torch.rand(4, 1, 2, 2)
    n = np.arange(8)
    said = [
        peers.accuracy_calculator(z, y), peers.flat_search(z, z, 2, 1), peers.faiss_kmeans(z, 2, 2, 1),
        peers.art_pgd(torch.nn.Flatten(), x, torch.arange(4), 0.1, 0.01, 2),
        peers.metric_learn_nca(z.numpy(), n % 2, 2),
    ]  # fmt: skip
    assert all(isinstance(text, str) and text.startswith("not installed: pip install") for text in said)


def test_a_peer_that_breaks_on_import_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenpeer.py").write_text("raise RuntimeError('bad build')")
    (tmp_path / "lackingpeer.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.loaded("brokenpeer") == "cannot be imported: RuntimeError: bad build"
    assert "not_there_either" in peers.loaded("lackingpeer")


def test_recorded_figures_are_scaled_by_their_yardstick() -> None:
    found = recorded.recorded()
    for figure in found["figures"].values():
        assert figure["source"]
        assert figure["what"]
        assert figure["yardstick"] is None or figure["yardstick"] in found["yardsticks"]
        assert 0 < figure["rate"][0] <= figure["rate"][1]
    figure = {"rate": [100.0, 200.0], "yardstick": "c2f2"}
    assert recorded.expected(figure, {"c2f2": 1205.0}) == Spread(
        75.0, 50.0, 100.0, 1
    )  # half as fast a machine
    assert recorded.expected({"rate": [3.0, 5.0], "yardstick": None}, {}) == Spread(4.0, 3.0, 5.0, 1)
    assert set(recorded.YARDSTICKS) == set(found["yardsticks"])
    suite = found["figures"]["reference suite"]["rate"]
    assert suite == pytest.approx([9 * 500 * 32 / 119, 9 * 500 * 32 / 112], rel=1e-3)


def test_against_recorded_is_rate_over_rate() -> None:
    ours = Timing((2.0, 1.0, 4.0))  # 40, 80 and 20 units/s
    assert against_recorded(ours, 80.0, Spread(20.0, 10.0, 40.0, 1)) == Spread(2.0, 0.5, 8.0, 3)


def test_peak_memory_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is run here: a fresh interpreter only to import torch would cost the test seconds."""
    threads = torch.get_num_threads()

    def here(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-c"]
        assert kwargs["env"]["OMP_NUM_THREADS"] == str(threads)
        monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(command[2], {})
        return subprocess.CompletedProcess(command, 0, stdout=out.getvalue(), stderr="")

    monkeypatch.setattr(subprocess, "run", here)
    found = peak_in_process("ranking", "10 nearest: 40 x 40 x 8", OURS, "tiny", threads)
    assert found is not None
    assert 0 <= found < 2**29


def test_a_process_that_fails_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, out in ((1, '{"peak": 1}'), (0, "Traceback"), (0, "")):
        done = subprocess.CompletedProcess([], code, stdout=out, stderr="")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        assert peak_in_process("ranking", "x", OURS, "tiny", 1) is None


@pytest.mark.skipif(not forget(), reason="the system does not forget a peak")
def test_a_peak_is_forgotten() -> None:
    forget()
    before = resident()
    with mmap.mmap(-1, 2**26) as block:  # 64 MiB that no allocator has kept from before
        block.write(b"\1" * 2**26)
        assert peak() - before > 2**25
    forget()
    assert peak() - before < 2**25


def _row(against: str, kind: str, median: float, low: float, high: float) -> dict[str, Any]:
    seconds = {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": 3}
    return {
        "case": "search", "work": "PGD", "unit": "images", "units": 1, "ours": seconds, "theirs": seconds,
        "peak_bytes": 2**20, "note": "", "kind": kind, "against": against, "what": "",
        "ratio": {"median": median, "low": low, "high": high, "rounds": 3},
    }  # fmt: skip


def _result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1, "date": "2026-11-21T00:00:00Z", "version": "0", "size": "tiny", "seconds": 1.0,
        "clock": "wall", "machine": place(), "versions": {}, "yardsticks": {}, "rows": list(rows),
    }  # fmt: skip


def test_the_plot_is_written_whole(tmp_path: Path) -> None:
    missing = {**_row("foolbox", "peer", 1, 1, 1), "ratio": None, "theirs": None, "what": peers.INSTALL}
    result = _result(_row(LIMIT, "limit", 0.9, 0.8, 1.0), _row("faiss", "peer", 40.0, 9.0, 120.0), missing)
    png, svg = plot(result, tmp_path / "deep" / "bench")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    assert svg.stat().st_size > 2000
    assert "nan" not in text
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["bench.png", "bench.svg"]
    with pytest.raises(DataError, match="no row"):
        plot(_result(missing), tmp_path / "none")


def test_changes_beyond_their_spread() -> None:
    old = _result(
        _row("a", "peer", 1.0, 0.9, 1.1), _row("b", "peer", 1.0, 0.9, 1.1), _row("c", "peer", 1, 1, 1)
    )
    new = _result(
        _row("a", "peer", 1.2, 1.05, 1.3), _row("b", "peer", 2.0, 1.9, 2.1), _row("d", "peer", 1, 1, 1)
    )
    assert [(c.against, c.beyond) for c in changes(old, new)] == [("a", False), ("b", True)]


def test_other_files_are_no_results(tmp_path: Path) -> None:
    for value in ([], {"schema": 99, "rows": []}, {"schema": 1}):
        write_json(tmp_path / "x.json", value)
        with pytest.raises(DataError, match="no result of holdfast bench"):
            read_result(tmp_path / "x.json")


def _job(size: str) -> Iterator[Job]:
    yield Job(
        name="sum", ours=lambda: sum(range(50)), limit=lambda: sum(range(20)), peers={"other": "why not"}
    )


def test_the_command_writes_a_dated_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.bench.run.CASES", {"sum": _job})
    app = typer.Typer()
    app.command()(command.bench_command)
    done = CliRunner().invoke(app, ["--quick", "--rounds", "2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "why not" in done.output
    (path,) = tmp_path.glob("bench-20*.json")
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    assert [row["against"] for row in read_result(path)["rows"]] == [LIMIT, "other"]
    again = CliRunner().invoke(
        app, ["--quick", "--rounds", "1", "--out", str(tmp_path / "2"), "--compare", str(path)]
    )
    assert "common ratios changed beyond their spread" in again.output
    machine = CliRunner().invoke(
        app, ["--quick", "--rounds", "1", "--json", "--out", str(tmp_path / "3"), "--only", "sum"]
    )
    assert json.loads(machine.stdout)["schema"] == 1
