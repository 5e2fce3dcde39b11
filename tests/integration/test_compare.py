"""Two runs compared query by query: the stored values, the library call and the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import encoders
from holdfast.comparison import compare_runs
from holdfast.config import to_plain
from holdfast.data import Digits, PairSampler
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, RunError
from holdfast.evaluation import SUITES, compare, read_values, retrieval_task, run_suite
from holdfast.evaluation.stored import stored_chunks, stored_name
from holdfast.files import read_arrays, read_json, read_lines, write_arrays, write_json
from holdfast.recipes import recipe
from holdfast.results import record
from holdfast.runs import evaluate_run, train_run
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.training import Run

pytestmark = pytest.mark.integration
N = 97
SEARCH = PGD(steps=2, alpha=0.05)


def small(**changes: Any) -> Run:
    """The plain recipe with a small encoder, 17 steps, and 97 test images."""
    run = replace(
        recipe("plain"), data=Digits(train_images=1700), encoder=SmallCNN(width=4, embedding_dim=8),
        sampler=PairSampler(100), epochs=1, threat=LinfThreat(eps=0.1), device="cpu",
    )  # fmt: skip
    return replace(run, **changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose encoder was replaced by a poor one, and a trained run, evaluated alike."""
    fit = train_run(small(), tmp_path_factory.mktemp("runs") / "fit").path
    raw = fit.with_name("raw")
    shutil.copytree(fit, raw)
    poor = SmallCNN(width=2, embedding_dim=2).build((1, 8, 8), seed=9)
    encoders.save(poor, raw / "encoder.safetensors")
    for path in (raw, fit):
        evaluate_run(path, search=SEARCH)
    return raw, fit


@pytest.fixture
def runs(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the two that a test may change."""
    for path in pair:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "raw", tmp_path / "fit"


def evaluation(run: Path) -> Path:
    (found,) = (run / "evaluations").iterdir()
    return found


# --- Stored values -----------------------------------------------------------------------------------------


def test_stored_values_are_those_of_the_records(pair: tuple[Path, Path]) -> None:
    values = read_values(evaluation(pair[0]))
    assert set(values) == {"CA+", "CA-", "ES"}
    assert {m: v.shape for m, v in values["ES"]["attacked"].items()} == {"shift": (N,), "recall@1": (N,)}
    for r in record.read(pair[0] / "records.jsonl"):
        if r["attack"] != "none":
            stored = values[r["attack"]]["clean" if r["state"] == "clean" else "attacked"][r["metric"]]
            assert stored.mean() == pytest.approx(r["value"], abs=1e-6)


def test_chunks_join_whatever_their_sizes_and_need_no_images(runs: tuple[Path, Path]) -> None:
    folder = evaluation(runs[0])
    whole = read_values(folder)
    arrays = read_arrays(folder / "ES-00000000-00000097.npz")
    for start, stop in ((0, 60), (60, 90), (90, 97), (0, 50)):  # the last is of a run with other chunks
        part = {k: v[start:stop] for k, v in arrays.items() if "." in k}
        write_arrays(folder / f"ES-{start:08d}-{stop:08d}.npz", part)
    (folder / "ES-00000000-00000097.npz").unlink()
    assert [part.name for part in stored_chunks(folder)["ES"]] == [
        "00000000-00000060", "00000060-00000090", "00000090-00000097",
    ]  # fmt: skip
    for state, measures in read_values(folder)["ES"].items():
        for metric, found in measures.items():
            assert np.array_equal(found, whole["ES"][state][metric])
    (folder / "ES-00000060-00000090.npz").unlink()
    with pytest.raises(RunError, match="ES lacks the queries from 60 on; the evaluation is not finished"):
        read_values(folder)


def test_stored_names_are_those_of_the_files(tmp_path: Path) -> None:
    test = Digits().load().test
    task = retrieval_task(lambda x: x.flatten(1), test.x[:6], test.y[:6])
    suite = SUITES["ers-robrank"]
    run_suite(task, suite, PGD(steps=1, alpha=0.1), LinfThreat(eps=0.1), folder=tmp_path)
    assert set(read_values(tmp_path)) == {stored_name(entry.label) for entry in suite.entries}
    assert stored_name("ES:D") == "ES_D"


@pytest.mark.parametrize(
    "arrays",
    [
        {"seconds": np.array(1.0), "x": np.zeros((N, 1))},
        {"clean.rank": np.zeros(N), "attacked.rank": np.zeros(N - 1)},
        {"clean.rank": np.zeros(N), "attacked.rank": np.full(N, np.nan)},
        {"clean.rank": np.zeros((N, 2))},
    ],
)
def test_chunks_without_sound_values_are_refused(
    arrays: dict[str, np.ndarray], runs: tuple[Path, Path]
) -> None:
    path = evaluation(runs[0]) / "CA+-00000000-00000097.npz"
    write_arrays(path, arrays)
    with pytest.raises(CorruptFile, match="one finite number for each query"):
        read_values(path.parent)
    path.write_bytes(b"PK nothing")
    with pytest.raises(CorruptFile, match=r"CA\+-00000000-00000097.npz: cannot be read"):
        read_values(path.parent)


def test_no_folder_has_no_values(tmp_path: Path) -> None:
    assert read_values(tmp_path) == {}
    with pytest.raises(RunError, match="no such evaluation"):
        read_values(tmp_path / "nothing")


# --- The library call --------------------------------------------------------------------------------------


def test_two_runs_are_compared_attack_by_attack(pair: tuple[Path, Path]) -> None:
    found = compare_runs(*pair)
    assert (found.a, found.b) == ("raw", "fit")
    assert found.settings["suite"] == "core"
    assert found.differing == ()
    assert found.fingerprints == tuple(evaluation(path).name for path in pair)
    values = [read_values(evaluation(path)) for path in pair]
    assert [(r.attack, r.state, r.metric) for r in found.rows] == [
        (attack, state, metric)
        for attack, metrics in (("CA+", ["rank"]), ("CA-", ["rank"]), ("ES", ["shift", "recall@1"]))
        for state in ("clean", "attacked")
        for metric in metrics
    ]
    for row in found.rows:
        a, b = (v[row.attack][row.state][row.metric] for v in values)
        assert row.comparison == compare(a, b)
        assert (row.a, row.b) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
        assert row.comparison.n == N


def test_verdicts_follow_what_is_better_for_the_defender(pair: tuple[Path, Path]) -> None:
    claimed = 0
    for found, better in ((compare_runs(*pair), "B better"), (compare_runs(*pair[::-1]), "A better")):
        for row in found.rows:
            c = row.comparison
            if not c.supported:
                assert row.verdict == "within noise"
                assert row.words().startswith("within noise")
                continue
            claimed += 1
            higher = row.attack != "CA-" and row.metric != "shift"
            assert row.higher_is_robust == higher
            gained = (c.difference > 0) == higher
            assert row.verdict == ("B better" if gained else "A better")
            assert row.words("one", "two").startswith("two is ")
            assert ("points" in row.words()) == (row.metric != "shift")
        (clean,) = [r for r in found.rows if (r.attack, r.state, r.metric) == ("ES", "clean", "recall@1")]
        assert clean.comparison.supported  # training raises the clean recall
        assert clean.verdict == better
    assert claimed > 4


def test_a_run_equals_itself(pair: tuple[Path, Path]) -> None:
    found = compare_runs(pair[0], pair[0])
    assert found.a == found.b == str(pair[0])
    for row in found.rows:
        assert row.comparison.difference == 0
        assert row.comparison.p_value == 1
        assert row.words().startswith("within noise: B - A is 0.0")


def rewrite(settings: Path, **changes: Any) -> None:
    """Change stored settings; a dict changes only its own keys."""
    old = read_json(settings)
    new = {k: {**old[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
    write_json(settings, {**old, **new})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat": {"eps": 0.2}}, r"threat \(eps 0.1 and 0.2\)"),
        ({"threat": to_plain(L2Threat(eps=0.1))}, r"threat \(type 'LinfThreat' and 'L2Threat'\)"),
        ({"search": {"steps": 1, "alpha": 0.1}}, r"search \(steps 2 and 1, alpha 0.05 and 0.1\)"),
        ({"seed": 1}, r"seed \(0 and 1\)"),
        ({"seed": 1, "threat": {"eps": 0.2}}, r"threat \(eps 0.1 and 0.2\); seed \(0 and 1\)"),
        ({"data": "another"}, r"data fingerprint \('.*' and 'another'\)"),
        ({"suite": "ers"}, r"suite \('core' and 'ers'\)"),
        ({"queries": 50}, r"sample of queries \(None and 50\)"),
    ],
)
def test_other_settings_are_no_pairs(changes: dict[str, Any], message: str, runs: tuple[Path, Path]) -> None:
    rewrite(evaluation(runs[1]) / "settings.json", **changes)
    with pytest.raises(RunError, match=rf"raw and .*fit: .* query by query, they differ in {message}$"):
        compare_runs(*runs)


def test_what_may_differ_is_named(runs: tuple[Path, Path]) -> None:
    rewrite(evaluation(runs[1]) / "settings.json", precision="bf16", distance={"type": "Cosine"})
    assert compare_runs(*runs).differing == ("distance", "precision")


def test_of_several_common_evaluations_the_last_counts_unless_told(runs: tuple[Path, Path]) -> None:
    def also(run: Path, eps: float) -> None:
        """Let a run have its first evaluation at another radius too."""
        first = read_lines(run / "records.jsonl")[0]["fingerprint"]
        folder = run / "evaluations" / f"at {eps}"
        shutil.copytree(run / "evaluations" / first, folder)
        rewrite(folder / "settings.json", threat={"eps": eps})
        new = [r for r in record.read(run / "records.jsonl") if r["fingerprint"] == first]
        record.append(run / "records.jsonl", [{**r, "fingerprint": folder.name} for r in new])

    a, b = runs
    for run, eps in ((a, 0.2), (a, 0.3), (b, 0.3), (b, 0.2), (a, 0.05)):
        also(run, eps)
    assert compare_runs(a, b).settings["threat"]["eps"] == 0.2
    assert compare_runs(b, a).settings["threat"]["eps"] == 0.3
    assert compare_runs(a, b, eps=0.1, suite="core").settings["threat"]["eps"] == 0.1
    with pytest.raises(RunError, match=r"fit: no finished evaluation of suite core, eps 0.05 with"):
        compare_runs(a, b, suite="core", eps=0.05)


def test_runs_without_values_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = runs
    with pytest.raises(RunError, match=r"raw: no finished evaluation of suite ers with per-query values"):
        compare_runs(a, b, suite="ers")
    evaluate_run(b, suite="benign")
    with pytest.raises(RunError, match="of suite benign"):
        compare_runs(b, b, suite="benign")
    assert compare_runs(a, b).settings["suite"] == "core"
    (evaluation(a) / "settings.json").write_text("{}")
    with pytest.raises(CorruptFile, match="lacks data, suite, threat, search, seed"):
        compare_runs(a, b)
    shutil.rmtree(a / "evaluations")
    with pytest.raises(RunError, match="raw: no finished evaluation with per-query values"):
        compare_runs(a, b)
    (a / "records.jsonl").unlink()
    with pytest.raises(RunError, match="has the run been evaluated"):
        compare_runs(a, b)
    with pytest.raises(RunError, match="no such run folder"):
        compare_runs(tmp_path / "nowhere", b)


def test_lost_chunks_are_noticed(runs: tuple[Path, Path]) -> None:
    path = evaluation(runs[1]) / "ES-00000000-00000097.npz"
    half = {k: v[:50] for k, v in read_arrays(path).items() if "." in k}
    path.unlink()
    write_arrays(path.with_name("ES-00000000-00000050.npz"), half)
    with pytest.raises(RunError, match="ES holds 50 of 97 queries; chunks are missing"):
        compare_runs(*runs)


def test_of_evaluations_with_a_budget_the_common_chunks_count(runs: tuple[Path, Path]) -> None:
    """Chunks of one name are the same random queries, whichever of the two reached more of them."""
    for run, kept in zip(runs, ((0, 1, 2), (1, 2, 3)), strict=True):
        folder = evaluation(run)
        for label in ("CA+", "CA-", "ES"):
            arrays = read_arrays(folder / f"{label}-00000000-00000097.npz")
            (folder / f"{label}-00000000-00000097.npz").unlink()
            for i in kept:
                part = {k: v[20 * i : 20 * i + 20] for k, v in arrays.items() if "." in k}
                write_arrays(folder / f"{label}-mixed-0-20-{i:08d}.npz", part)
    found = compare_runs(*runs)
    assert {row.comparison.n for row in found.rows} == {40}
    values = [read_values(evaluation(run)) for run in runs]
    a, b = (v["ES"]["attacked"]["shift"] for v in values)
    assert found.rows[-2].metric == "shift"
    assert found.rows[-2].comparison == compare(a[20:], b[:40])

    for path in evaluation(runs[1]).glob("*-0000000[12].npz"):
        path.unlink()
    with pytest.raises(RunError, match="reached no query in common"):
        compare_runs(*runs)


def test_a_budget_and_none_are_no_pairs(runs: tuple[Path, Path]) -> None:
    for path in evaluation(runs[1]).glob("*.npz"):
        path.rename(path.with_name(path.name.replace("00000000-00000097", "mixed-0-97-00000000")))
    with pytest.raises(RunError, match=r"they differ in having had a budget \(False and True\)"):
        compare_runs(*runs)


# --- The command -------------------------------------------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


def test_the_table(pair: tuple[Path, Path], holdfast: Call) -> None:
    code, out, err = holdfast("compare", *pair)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].strip() == "A = raw, B = fit: core, eps 0.1"
    cells = [[c.strip() for c in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    rows = {tuple(c[:2]): c[2:] for c in cells if len(c) == 8}
    assert list(rows) == [
        ("attack", "metric"), ("clean", "R@1"), ("CA+", "rank"), ("CA-", "rank"), ("ES", "shift"),
        ("ES", "R@1"),
    ]  # fmt: skip
    found = {(r.attack, r.state, r.metric): r for r in compare_runs(*pair).rows}
    clean = found["ES", "clean", "recall@1"]
    low, high = (f"{100 * v:.1f}" for v in (clean.comparison.low, clean.comparison.high))
    a, b, d = (f"{100 * v:.1f}" for v in (clean.a, clean.b, clean.comparison.difference))
    assert rows["clean", "R@1"][:4] == [a, b, f"+{d}", f"{low} to {high}"]
    assert rows["clean", "R@1"][5] == "B better"
    assert rows["ES", "shift"][0] == f"{found['ES', 'attacked', 'shift'].a:.3f}"


def test_json_holds_every_row(pair: tuple[Path, Path], holdfast: Call) -> None:
    code, out, _ = holdfast("compare", *pair, "--json", "--suite", "core", "--eps", "0.1")
    assert code == 0
    plain = json.loads(out)
    found = compare_runs(*pair)
    assert plain == json.loads(json.dumps(found.to_plain()))
    assert len(plain["rows"]) == 8
    last = plain["rows"][-1]
    assert last["words"] == found.rows[-1].words("raw", "fit")
    assert last["verdict"] == found.rows[-1].verdict
    assert last["difference"] == pytest.approx(last["b"] - last["a"])
    assert (last["attack"], last["state"], last["metric"], last["n"]) == ("ES", "attacked", "recall@1", N)


def test_the_command_refuses_in_one_line(pair: tuple[Path, Path], holdfast: Call) -> None:
    before = read_lines(pair[0] / "records.jsonl")
    code, out, err = holdfast("compare", *pair, "--suite", "ers", "--json")
    assert code == 2
    assert json.loads(out)["error"]["type"] == "RunError"
    assert err.startswith("holdfast: error: ")
    assert err.count("\n") in (1, 2)
    assert read_lines(pair[0] / "records.jsonl") == before
