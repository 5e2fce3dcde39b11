"""The sections on clusters and ensembles: figures, maps, words; and what they do with poor files."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn import metrics

from holdfast.files import append_lines, write_arrays, write_json
from holdfast.report import clusters, confusion, ensembles, plots, write_report
from holdfast.report.cluster_files import StoredClusters, worst_moves
from holdfast.report.cluster_map import COLOURED, plane, shown_clusters
from holdfast.report.confusion import MOST, flows, folded, most_confused
from holdfast.report.ensembles import disagreement, shots
from holdfast.report.load import load_runs
from holdfast.report.words import esc
from holdfast.results import append, make

HOSTILE = "<script>alert(1)</script>\"'&$x^2$ \u202e"
EPS = 20 / 255
THIN = "\u202f"
FASHION = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PRINT = "0123456789abcdef"


class Made(NamedTuple):
    """A run folder and what was put into it."""

    path: Path
    arrays: dict[str, np.ndarray]
    attacked: dict[str, np.ndarray]
    flips: dict[str, np.ndarray]


def nearest(z: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(z[:, None] - centroids).sum(2).argmin(1))


def scored(z: np.ndarray, a: dict[str, np.ndarray]) -> dict[str, float]:
    """What an evaluation measures on embeddings, but for retrieval."""
    now, truth = nearest(z, a["centroids"]), a["truth"]
    found = {"flip": float((now != a["cluster_of"]).mean())}
    found["accuracy"] = float((a["hungarian"][now] == truth).mean())
    found["majority"] = float((a["majority"][now] == truth).mean())
    found["nmi"] = metrics.normalized_mutual_info_score(truth, now)
    found["ami"] = metrics.adjusted_mutual_info_score(truth, now)
    found["ari"] = metrics.adjusted_rand_score(truth, now)
    table = metrics.cluster.contingency_matrix(truth, now)
    found["purity"] = float(table.max(0).sum() / table.sum())
    found |= {"recall@1": 0.97 * found["accuracy"], "map@r": 0.8 * found["accuracy"]}
    found |= {
        f"{name}-t": 0.9 * found[name] for name in ("accuracy", "majority", "purity", "nmi", "ami", "ari")
    }
    return found


def clustered_run(
    root: Path,
    name: str = "eat",
    *,
    k: int = 10,
    n: int = 500,
    e: int = 16,
    strength: float = 0.75,
    names: tuple[str, ...] = FASHION,
    members: int = 0,
    labelled: bool = True,
    eps: float = EPS,
    suite: str = "clustering",
) -> Made:
    """A run folder as training and an evaluation of clusters leave it."""
    run, rng = root / name, np.random.default_rng(k)
    store = run / "evaluations" / PRINT
    write_json(
        run / "run.json", {"schema": 1, "name": name, "version": "0.1.0", "run": {"type": "Run", "seed": 0}}
    )
    centres = rng.normal(size=(k, e)) * np.linspace(1.0, 0.4, e)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = np.arange(n) % k
    z = centres[truth] + 0.13 * rng.normal(size=(n, e))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    arrays = {
        "centroids": centres,
        "cluster_of": nearest(z, centres),
        "truth": truth,
        "z": z.astype(np.float32),
    }
    arrays |= {"hungarian": np.arange(k), "majority": np.arange(k), "index": np.arange(n)}
    if not labelled:
        arrays |= {"truth": np.full(n, -1), "hungarian": np.full(k, -1), "majority": np.full(k, -1)}
    write_arrays(store / "clusters.npz", arrays | {"class_names": np.array(names)} if names else arrays)
    attacked: dict[str, np.ndarray] = {}
    d = np.square(z[:, None] - centres).sum(2)
    d[np.arange(n), arrays["cluster_of"]] = np.inf
    aims = d.argsort(1)
    reach = strength * rng.beta(2, 2, size=(n, 1))
    if suite == "clustering":
        for label, aim, part in (("A1", 0, 1.0), ("A3.2", 1, 0.9), ("A4", 3 % k, 0.75), ("A7-label", 0, 0.6)):
            attacked[label] = (z + part * reach * (centres[aims[:, aim % (k - 1)]] - z)).astype(np.float32)
    else:
        attacked["WORST"] = (z + reach * (centres[aims[:, 0]] - z)).astype(np.float32)
    flips = {a: nearest(x, centres) != arrays["cluster_of"] for a, x in attacked.items()}
    half = n // 2
    for label, x in attacked.items():
        file = label.replace(".", "_")
        for start, stop in ((0, half), (half, n)):
            rows = slice(start, stop)
            chunk = {"x": np.empty((stop - start, 0)), "z": x[rows], "seconds": np.array(1.0)}
            chunk |= {"clean.flip": np.zeros(stop - start), "attacked.flip": flips[label][rows].astype(float)}
            write_arrays(store / f"{file}-{start:08d}-{stop:08d}.npz", chunk)

    def records(attack: str, state: str, found: dict[str, float]) -> list[Any]:
        many = []
        for metric, value in found.items():
            if not labelled and metric != "flip":
                continue
            side = 0.01 if metric.endswith("-t") else 1.96 * (max(value * (1 - value), 0.001) / n) ** 0.5
            ci = [max(value - side, 0.0), min(value + side, 1.0)]
            fields: dict[str, Any] = {
                "attack": attack,
                "state": state,
                "suite": suite,
                "steps": 50,
                "alpha": 0.01,
            }
            fields |= {"eps": 0.0 if attack == "none" else eps, "seconds": 3.0, "fingerprint": PRINT}
            many.append(
                make(run=name, metric=metric, value=value, n=n, ci=ci, higher_is_robust=metric != "flip",
                     dataset="fashion-mnist", time="2025-01-01T00:00:00", verdict="TRUSTWORTHY", **fields)
            )  # fmt: skip
        return many

    lines = records("none", "clean", {m: v for m, v in scored(z, arrays).items() if m != "flip"})
    for label, x in attacked.items():
        lines += records(label, "clean", scored(z, arrays)) + records(label, "attacked", scored(x, arrays))
    if suite == "clustering":
        union = np.any(list(flips.values()), 0)
        worst = scored(attacked["A1"], arrays) | {"flip": float(union.mean())}
        worst["accuracy"] = float(((arrays["hungarian"][arrays["cluster_of"]] == truth) & ~union).mean())
        lines += records("UNION", "attacked", worst)
    append(run / "records.jsonl", lines)
    if members:
        append_lines(run / "log.jsonl", logged(members))
        own = np.stack([np.where(rng.random(n) < 0.93, arrays["cluster_of"], rng.integers(0, k, n))
                        for _ in range(members)])  # fmt: skip
        moved = np.where(rng.random(own.shape) < 0.4, rng.integers(0, k, own.shape), own)
        write_arrays(store / "members.npz", {"assigned": own, "attacked": moved})
    return Made(run, arrays, attacked, flips)


def logged(members: int, epochs: int = 12, steps: int = 5) -> list[dict[str, Any]]:
    """The lines that training an ensemble writes."""
    rng, lines = np.random.default_rng(members), []
    for step in range(epochs * steps):
        t = step / (epochs * steps)
        line: dict[str, Any] = {
            "kind": "step",
            "step": step,
            "epoch": step // steps,
            "loss": 3 - t,
            "seconds": step,
        }
        matrix = 0.75 - 0.45 * t + 0.08 * rng.random((members, members)) + 0.15 * np.eye(members)
        line |= {f"transfer.{i}.{j}": float(matrix[i, j]) for i in range(members) for j in range(members)}
        off = matrix[~np.eye(members, dtype=bool)]
        line |= {"transfer": float(off.mean()) if members > 1 else 0.0, "ensemble_error": 0.8 - 0.35 * t}
        line |= {"diversity": 0.5 - 0.4 * t + 0.02 * rng.random(), "disagreement": 0.1 + 0.2 * t}
        if step % steps == 0:
            line |= {f"gradient.{i}": 2.0 - t + 0.1 * i for i in range(members)}
        lines.append(line)
    return lines


class Page(HTMLParser):
    """Text, tags, attributes and table cells of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.cells, self.ids = "", [], [[]], []  # type: ignore[var-annotated]
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "svg":
            self.labels.append(named.get("aria-label", ""))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.lasttag in ("td", "th", "small", "b") and self.cells[-1]:
            self.cells[-1][-1] += data.strip("\n")


def page(*paths: Path) -> tuple[str, Page]:
    text = write_report(paths, paths[0] / "report.html", interactive=False).read_text(encoding="utf-8")
    return text, Page(text)


def heads(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave charts empty but for their labels: drawing takes most of the time."""

    def empty(*args: Any, **more: Any) -> str:
        label, prefix = args[-2:]
        return f'<svg id="{prefix}" aria-label="{esc(label)}"></svg>'

    for module in (confusion, ensembles):
        monkeypatch.setattr(module, "heat_map", empty)
    for name in ("curve", "several", "dot_plot"):
        monkeypatch.setattr(plots, name, empty)
    monkeypatch.setattr(clusters, "draw", empty)


@pytest.fixture(scope="module")
def eat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, str, Page]:
    made = clustered_run(tmp_path_factory.mktemp("one"), members=3)
    return made, *page(made.path)


def test_the_answer_and_the_cards_are_the_records(eat: tuple[Made, str, Page]) -> None:
    made, text, shown = eat
    union = np.any(list(made.flips.values()), 0).mean()
    words = re.sub(r"\s+", " ", shown.text)
    said = (
        f"{round(100 * (1 - union))} of 100 pictures stay in their cluster when attacked with changes of at"
    )
    assert said + " most 20 of 255 grey levels (95 % interval" in words
    assert "In the cluster of their own class are more than 99 of 100 without an attack and" in words
    assert "TRUSTWORTHY" in text.upper()
    assert f"<dd>{100 * (1 - union):.1f}{THIN}%" in text
    assert heads(text) == [
        "Do pictures stay in their cluster?",
        "What happened in training?",
        "How different are the members?",
        "How do I get this again?",
    ]


def test_the_table_holds_every_attack_and_measure_worst_first(eat: tuple[Made, str, Page]) -> None:
    made, _, shown = eat
    start = next(i for i, row in enumerate(shown.cells) if row[:1] == ["attack"] and len(row) == 10)
    assert shown.cells[start] == [
        "attack", "leave their cluster\u00a0↓", "right cluster (one-to-one)\u00a0↑",
        "right cluster (majority)\u00a0↑", "purity\u00a0↑", "NMI\u00a0↑", "AMI\u00a0↑", "ARI\u00a0↑",
        "recall@1\u00a0↑", "MAP@R\u00a0↑",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in shown.cells[start + 1 : start + 7]}
    assert list(rows)[:2] == ["UNION", "no attack"]
    assert set(rows) == {"UNION", "no attack", *made.attacked}
    metric_of = ("flip", "accuracy", "majority", "purity", "nmi", "ami", "ari", "recall@1", "map@r")
    for label, x in made.attacked.items():
        found = scored(x, made.arrays)
        for metric, cell in zip(metric_of, rows[label], strict=True):
            value, side = found[metric], 1.96 * (max(found[metric] * (1 - found[metric]), 0.001) / 500) ** 0.5
            low, high = max(value - side, 0), min(value + side, 1)
            assert cell == f"{100 * value:.1f}{THIN}%{100 * low:.1f} to {100 * high:.1f}{THIN}%"
    anew = shown.cells[start + 7 : start + 14]
    assert len(anew[0]) == 7
    a1 = next(row for row in anew if row[0] == "A1")
    accuracy = scored(made.attacked["A1"], made.arrays)["accuracy"]
    assert a1[1] == f"{90 * accuracy:.1f}{THIN}% ±{THIN}1.0frozen {100 * accuracy:.1f}{THIN}%"


def test_the_worst_case_goes_where_the_margin_is_largest(tmp_path: Path) -> None:
    """One dimension, centres at -1, 1 and 5: by hand."""
    centroids = np.array([[-1.0], [1.0], [5.0]])
    z = np.array([[-0.5], [-0.5], [-0.5], [0.5]], dtype=np.float32)
    own = np.array([0, 0, 0, 1])
    stored = StoredClusters(centroids, z, own, own, np.arange(3))
    first, second = np.array([[0.2], [-0.1], [-0.9], [3.5]]), np.array([[0.1], [-0.2], [-0.4], [-0.6]])
    for name, x in (("A1", first), ("A4", second)):
        write_arrays(tmp_path / f"{name}-00000000-00000004.npz", {"z": x, "clean.flip": np.zeros(4)})
    moved = worst_moves(tmp_path, stored, ["A1", "A4"])
    # margins d_own - d_other: query 3 under A1: 6.25 - 2.25 = 4, under A4: 2.56 - 0.16 = 2.4
    assert moved.z[:, 0].tolist() == pytest.approx([0.2, -0.1, -0.4, 3.5])
    assert moved.cluster.tolist() == [1, 0, 0, 2]
    assert flows(stored, moved).tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert worst_moves(tmp_path, stored, ["A4"]).cluster.tolist() == [1, 0, 0, 0]


def test_flips_and_moves_agree(eat: tuple[Made, str, Page]) -> None:
    made, text, shown = eat
    (run,) = load_runs([made.path])
    assert run.clustering is not None
    assert run.clustering.folder is not None
    stored = run.clustering.stored[PRINT]
    moved = worst_moves(run.clustering.folder / PRINT, stored, list(made.attacked))
    union = np.any(list(made.flips.values()), 0)
    assert ((moved.cluster != stored.cluster_of) == union).all()
    table = flows(stored, moved)
    assert table.sum() == 500
    assert table.trace() == (~union).sum()
    assert ["leave their cluster, of all", str(union.sum())] in shown.cells
    named = np.arange(10)
    right = int((named[moved.cluster] == stored.truth).sum())
    assert f"Classes and clusters under attack: {right} of 500 pictures with their class" in text
    assert "Ankle boot" in text


def test_the_plane_is_orthonormal_and_separates(tmp_path: Path) -> None:
    """Clusters differ in two of six directions, those of small spread: the principal ones show nothing."""
    rng = np.random.default_rng(0)
    centres = np.zeros((5, 6))
    centres[:, :2] = [[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]]
    own = np.arange(200) % 5
    z = (centres[own] + rng.normal(size=(200, 6)) * [0.1, 0.1, 4, 4, 4, 4]).astype(np.float32)
    stored = StoredClusters(centres, z, own, own, np.arange(5))
    flat = plane(stored, range(5))
    assert flat.name == "linear discriminants"
    assert flat.kept > 0.95
    assert flat.axes.T @ flat.axes == pytest.approx(np.eye(2), abs=1e-9)
    gap = np.linalg.norm(flat(z)[:100] - flat(z)[100:], axis=1)
    assert (gap <= np.linalg.norm(z[:100] - z[100:], axis=1) + 1e-6).all()
    for few in (1, 2):
        part = StoredClusters(centres[:few], z[own < few], own[own < few], own[own < few], np.arange(few))
        assert np.isfinite(plane(part, range(few)).axes).all()
    none = np.array([0])
    line = StoredClusters(np.array([[0.0], [1.0]]), np.array([[0.1]], np.float32), none, none, np.arange(2))
    assert plane(line, range(2))(line.z).shape == (1, 2)


def test_of_many_clusters_those_of_the_commonest_moves_are_shown() -> None:
    counts = 10 * np.eye(40, dtype=np.int64)
    counts[30, 7], counts[3, 21], counts[21, 5] = 9, 8, 2
    assert most_confused(counts, 5) == [3, 7, 21, 30]
    assert most_confused(counts[:12, :12]) == list(range(12))
    shown = folded(counts, [7, 30], [7, 30])
    assert shown.counts.tolist() == [[10, 0, 0], [9, 10, 0], [0, 0, counts.sum() - 29]]
    assert shown.rows == [7, 30, None]
    centres, own = np.eye(40), np.arange(40)
    stored = StoredClusters(centres, centres.astype(np.float32), own, own, own)
    assert len(shown_clusters(stored, None)) < COLOURED < 40


def test_members_up_to_eight_and_200_clusters_stay_readable(tmp_path: Path) -> None:
    made = clustered_run(tmp_path, k=200, n=400, e=24, members=8, names=())
    text, shown = page(made.path)
    assert len(text) < 1_200_000
    assert "the 10 clusters of the commonest moves, of 200" in text
    assert "189 others" in text
    wide = [len(row) for row in shown.cells]
    assert max(wide) <= MOST + 1
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert max(chart.count("<text") for chart in charts) < 250
    assert sum("After epoch" in label for label in shown.labels) == 3
    assert text.count("member 8") > 0


def test_transfer_matrices_are_those_of_the_first_middle_and_last_epoch(eat: tuple[Made, str, Page]) -> None:
    made, text, _ = eat
    lines = logged(3)
    (run,) = load_runs([made.path])
    first, middle, last = shots(run)
    assert [s.when for s in (first, middle, last)] == ["epoch 1 of 12", "epoch 7 of 12", "epoch 12 of 12"]
    for shot, at in ((first, 4), (middle, 34), (last, 59)):
        matrix = [[lines[at][f"transfer.{i}.{j}"] for j in range(3)] for i in range(3)]
        assert shot.matrix.tolist() == matrix
        assert shot.mean == pytest.approx(lines[at]["transfer"])
    assert f"fooled another in <b>{100 * last.mean:.0f} of 100</b> cases" in text
    assert "The diversity term went from" in text
    assert "Input gradients went from 2.10 to 1.18" in text


def test_disagreement_by_hand() -> None:
    share, pairs = disagreement(np.array([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 0]]))
    assert share == 0.5
    assert pairs.tolist() == [[0, 0.25, 0.5], [0.25, 0, 0.25], [0.5, 0.25, 0]]


def test_members_are_told_from_their_file(eat: tuple[Made, str, Page]) -> None:
    made, text, shown = eat
    with np.load(made.path / "evaluations" / PRINT / "members.npz") as file:
        clean, attacked = disagreement(file["assigned"])[0], disagreement(file["attacked"])[0]
        both = (file["assigned"] != file["attacked"]).sum(0)
    assert f"Members disagree without an attack: {100 * clean:.1f}{THIN}% of pictures" in text
    assert f"Members disagree under attack: {100 * attacked:.1f}{THIN}% of pictures" in text
    assert ["3", f"{(both == 3).sum()}", f"{100 * (both == 3).mean():.1f}{THIN}%"] in shown.cells


@pytest.mark.usefixtures("undrawn")
def test_sections_stand_there_only_if_their_files_do(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shared: dict[str, Any] = {"run": "plain", "metric": "recall@1", "n": 100, "seconds": 2.0}
    attack: dict[str, Any] = {"attack": "ES", "state": "attacked", "eps": 0.1, "steps": 9, "alpha": 0.1}
    append(plain / "records.jsonl", [make(**shared, value=0.9), make(**shared, value=0.4, **attack)])
    before, _ = page(plain)
    assert "cluster" not in re.split("<main.*?>", before.lower())[1].split("<script")[0]
    assert "members" not in before.lower()
    made = clustered_run(tmp_path, "c")
    alone, shown = page(made.path)
    assert "How different are the members?" not in alone
    assert any("Where attacks move pictures" in label for label in shown.labels)
    both, _ = page(plain, made.path)
    assert heads(both) == [
        "Is my model safe?", "Show me.", "How far can it be pushed?", "Where is it weak?",
        "Do pictures stay in their cluster?", "What happened in training?",
        "What does the space look like?", "Compare.", "Can I believe it?", "How do I get this again?",
    ]  # fmt: skip
    assert "Not measured with this attack: c." in both
    safe = both.split("<h2>Is my model safe?</h2>")[1].split("</section>")[0]
    assert "for <b>60 of 100</b> queries" in safe
    shutil.rmtree(made.path / "evaluations")
    bare, shown = page(made.path)
    assert "No clusters were stored with this evaluation, so there is no map of them." in bare
    assert not any("move" in label for label in shown.labels)
    assert "All measures of c" in bare


@pytest.mark.usefixtures("undrawn")
def test_an_ensemble_without_an_evaluation_has_its_training_told(tmp_path: Path) -> None:
    append_lines(tmp_path / "r" / "log.jsonl", logged(2, epochs=2, steps=3))
    text, _ = page(tmp_path / "r")
    assert "How different are the members?" in text
    assert "After step 0" in text
    assert "After step 5" in text
    append_lines(tmp_path / "single" / "log.jsonl", logged(1))
    assert "How different are the members?" not in page(tmp_path / "single")[0]


@pytest.mark.usefixtures("undrawn")
def test_several_runs_have_one_table_and_unlike_ones_a_warning(tmp_path: Path) -> None:
    runs = [clustered_run(tmp_path, name, strength=s, n=200) for name, s in (("none", 1.8), ("eat", 0.7))]
    text, shown = page(*(made.path for made in runs))
    assert ["measure", "none", "eat"] in shown.cells
    row = next(
        row for row in shown.cells if row[:1] and row[0] == "leave their cluster under the worst attack ↓"
    )
    for cell, made in zip(row[1:], runs, strict=True):
        union = np.any(list(made.flips.values()), 0).mean()
        assert cell.startswith(f"{100 * union:.1f}{THIN}%")
    assert len(shown.ids) == len(set(shown.ids))
    assert "Read with care" not in text
    worst = clustered_run(tmp_path, "staged", n=200, suite="clustering-worst")
    text, shown = page(runs[1].path, worst.path)
    assert "the suites clustering and clustering-worst attack in different ways" in text
    flips = worst.flips["WORST"].mean()
    assert any(row[0] == "WORST" and row[1].startswith(f"{100 * flips:.1f}") for row in shown.cells if row)


@pytest.mark.usefixtures("undrawn")
def test_the_repaired_figure_is_the_headline_where_it_is_worse(tmp_path: Path) -> None:
    made = clustered_run(tmp_path, n=200)
    fields: dict[str, Any] = {
        "state": "attacked",
        "suite": "clustering",
        "eps": EPS,
        "steps": 50,
        "alpha": 0.01,
    }
    line = make(run="eat", metric="flip", value=0.93, n=200, ci=[0.9, 0.95], attack="REPAIRED",
                higher_is_robust=False, fingerprint=PRINT, **fields)  # fmt: skip
    append(made.path / "records.jsonl", [line])
    assert "<b>7 of 100</b> pictures stay in their cluster" in page(made.path)[0]


@pytest.mark.usefixtures("undrawn")
def test_without_a_worst_case_the_hardest_single_attack_is_told_as_such(tmp_path: Path) -> None:
    made = clustered_run(tmp_path, n=200)
    lines = (made.path / "records.jsonl").read_text().splitlines()
    (made.path / "records.jsonl").write_text("\n".join(x for x in lines if "UNION" not in x) + "\n")
    text, _ = page(made.path)
    assert "The worst case over many attacks was not measured" in text
    assert f"<b>{round(100 * (1 - made.flips['A1'].mean()))} of 100</b> pictures stay" in text


@pytest.mark.usefixtures("undrawn")
def test_without_labels_only_flips_are_told(tmp_path: Path) -> None:
    text, shown = page(clustered_run(tmp_path, labelled=False, n=200).path)
    assert "No class labels were stored, so classes and clusters are not compared." in text
    assert "own class are" not in text
    assert ["attack", "leave their cluster\u00a0↓"] in shown.cells
    assert any("from cluster #" in label for label in shown.labels)


def test_hostile_names_stay_words(tmp_path: Path) -> None:
    names = tuple(f"{HOSTILE}{i}" for i in range(4))
    made = clustered_run(tmp_path, "r&d", k=4, names=names, members=2, n=80)
    lines = (made.path / "records.jsonl").read_text()
    (made.path / "records.jsonl").write_text(lines.replace('"A4"', '"<img src=x>"'))
    text, shown = page(made.path)
    assert "<script" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert shown.tags.count("script") == 1  # the page's own
    assert "alert(1)" in shown.text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


@pytest.mark.parametrize(("file", "told", "kept"), [
    ("clusters.npz", "Clusters left out: 0123456789abcdef: clusters.npz: cannot be read", False),
    ("members.npz", "Members left out: 0123456789abcdef: members.npz: cannot be read", True),
    ("A4-00000000-00000100.npz", "Where attacked pictures went is left out: A4-00000000-00000100.npz", True),
])  # fmt: skip
@pytest.mark.usefixtures("undrawn")
def test_files_that_cannot_be_read_are_told(tmp_path: Path, file: str, told: str, kept: bool) -> None:
    made = clustered_run(tmp_path, members=2, n=200)
    path = made.path / "evaluations" / PRINT / file
    path.write_bytes(path.read_bytes()[:60])
    text, shown = page(made.path)
    assert told in text
    assert str(tmp_path) not in text
    assert "on a plane" in text or any("Where attacks move" in label for label in shown.labels) or not kept
    assert "of 100</b> pictures stay" in text


@pytest.mark.parametrize(("change", "told"), [
    ({"z": None}, "it lacks z"),
    ({"cluster_of": np.full(200, 10)}, "need clusters from 0 to 9"),
    ({"centroids": np.full((10, 16), np.nan)}, "need finite embeddings and centroids"),
    ({"hungarian": np.zeros(3, dtype=int)}, "unexpected shape or kind of hungarian"),
    ({"majority": np.array(["a"] * 10)}, "unexpected shape or kind of majority"),
    ({"truth": np.zeros(200)}, "unexpected shape or kind of truth"),
    ({"z": np.zeros((0, 16), np.float32)}, "unexpected shape or kind of cluster_of, truth"),
])  # fmt: skip
@pytest.mark.usefixtures("undrawn")
def test_clusters_that_do_not_fit_are_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    made = clustered_run(tmp_path, n=200)
    arrays = {k: v for k, v in {**made.arrays, **change}.items() if v is not None}
    write_arrays(made.path / "evaluations" / PRINT / "clusters.npz", arrays)
    text, _ = page(made.path)
    assert told in text


@pytest.mark.usefixtures("undrawn")
def test_missing_chunks_and_budgets_are_told(tmp_path: Path) -> None:
    made = clustered_run(tmp_path, n=200)
    store = made.path / "evaluations" / PRINT
    (store / "A1-00000000-00000100.npz").unlink()
    assert "A1 lacks the queries from 0 on" in page(made.path)[0]
    for path in store.glob("A*.npz"):
        path.unlink()
    assert "no attacked embeddings are stored" in page(made.path)[0]
    write_arrays(store / "A1-mixed-0-128-00000000.npz", {"z": made.attacked["A1"]})
    assert "the evaluation had a time budget" in page(made.path)[0]


def test_the_same_folders_give_the_same_bytes(eat: tuple[Made, str, Page], tmp_path: Path) -> None:
    made, text, shown = eat
    assert (
        write_report([made.path], tmp_path / "again.html", interactive=False).read_text(encoding="utf-8")
        == text
    )
    assert len(shown.ids) == len(set(shown.ids))
    assert all(shown.labels)
    charts = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert "#010203" not in charts
    assert {"currentColor", "var(--wrong)", "var(--clean)"} <= set(
        re.findall(r"currentColor|var\(--\w+\)", charts)
    )


def test_clusters_stay_out_of_the_figures_of_retrieval(tmp_path: Path) -> None:
    (run,) = load_runs([clustered_run(tmp_path, n=200).path])
    assert run.records == []
    assert run.clustering is not None
    assert {r["suite"] for r in run.clustering.records} == {"clustering"}
    assert run.evaluation_seconds == 5 * 3.0  # four attacks and the clean measures; their union costs nothing
