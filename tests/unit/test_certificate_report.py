"""The section on certificates: figures, curves, gaps, words; and what it does with poor files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.certification import certify_table
from holdfast.certify import Certificate
from holdfast.data.tabular import Table
from holdfast.errors import CorruptFile, RunError
from holdfast.files import read_json, write_json
from holdfast.report import write_report
from holdfast.report.certificates import _curves, read_certified, took
from holdfast.report.load import load_runs
from holdfast.results import append, make

HOSTILE = "<script>alert(1)</script>\"'&$x^2$ \u202e"
RADII = {"euclidean": np.array([0.0, 0.1, 0.2, 0.3, 0.4]), "arml": np.array([0.0, 0.2, 0.4, 0.6, 0.8])}


class Told:
    """A certifier whose radii stand in a table; K = 1 is exact."""

    def __init__(self, k: int, m: Any) -> None:
        self.k, self.radius = k, RADII["euclidean" if m is None else "arml"]

    def fit(self, x: Any, y: Any) -> Told:
        return self

    def certify(self, x: Any, y: Any = None, *, norm: float = 2) -> Certificate:
        radius = torch.from_numpy(self.radius)
        exact = torch.full((5,), self.k == 1)
        return Certificate(radius=radius, correct=radius > 0, norm=norm, exact=exact, method="told")

    def attack(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        return self.radius * (1.0 if self.k == 1 else 1.5), None


def folder(path: Path, *, provenance: str = "made up", **more: Any) -> Path:
    x = np.arange(6.0)[:, None]
    table = Table(
        name="toy", x_train=x, y_train=np.array([0, 0, 0, 1, 1, 1]), x_test=x[:5],
        y_test=np.array([0, 0, 0, 1, 1]), provenance=provenance,
    )  # fmt: skip
    methods = {"euclidean": lambda x, y, s: np.eye(1), "arml": lambda x, y, s: 2 * np.eye(1)}
    settings = {"radii": [0.1, 0.3], "attack": True, "certifier": Told, "report": False, **more}
    certify_table(table, methods, (1, 3), out=path, **settings)
    return path


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.cells = "", [], [[]]  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.lasttag in ("td", "th") and data.strip():
            self.cells[-1].append(data)


def page(path: Path) -> tuple[str, Page]:
    text = write_report([path], path / "report.html", interactive=False).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_tells_figures_curves_comparisons_and_how_to_get_them_again(tmp_path: Path) -> None:
    text, shown = page(folder(tmp_path / "toy"))
    assert re.findall("<h2>(.*?)</h2>", text) == ["What is certified?", "How do I get this again?"]
    rows = {row[0]: row for row in shown.cells if len(row) == 8}
    assert rows["method"] == [
        "method", "clean error", "median radius", "exact", "error at 0.1", "error at 0.3", "learning",
        "certifying",
    ]  # fmt: skip
    plain, arml = rows["Euclidean"], rows["ARML (published)"]
    assert [plain[1], plain[2], plain[4], plain[5]] == ["20.0\u202f%", "0.200", "40.0", "80.0"]
    assert [arml[1], arml[2], arml[4], arml[5]] == ["20.0\u202f%", "0.400", "20.0", "40.0"]
    assert "K = 1, the nearest neighbour decides. Median certified radius: ARML (published) 0.400 and" in text
    assert "K = 3, the 3 nearest neighbours vote" in text
    assert "A certificate is a proof about one test point" in text
    assert "Euclidean length (l2)" in text
    assert "radius 0.400, the median of ARML (published), compared on the same test points" in text
    assert "within noise: Euclidean - ARML (published) is +40.0 points" in text
    assert "made up" in shown.text
    assert "test points" in shown.text


def test_curves_are_the_certified_accuracy(tmp_path: Path) -> None:
    certified = read_certified(folder(tmp_path / "toy"))
    assert certified is not None
    axes = _curves(certified, 1).axes[0]
    for line, name in zip(axes.lines, RADII, strict=True):
        at, share = line.get_data()
        radius = RADII[name]
        expected = [100 * float(((radius > 0) & (radius > r)).mean()) for r in at]
        assert share == pytest.approx(expected)
        assert share[0] == 80.0
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["Euclidean", "ARML (published)"]


def test_gaps_are_drawn_only_where_a_bound_from_above_is_open(tmp_path: Path) -> None:
    text, _ = page(folder(tmp_path / "toy"))
    assert text.count("exact for 0.0\u202f% of the right points") == 4  # two methods, K = 3; title and label
    assert "the median ratio is 1.50" in text
    assert "exact for 100" not in text
    bare, _ = page(folder(tmp_path / "bare", attack=False))
    assert "shortest change known to succeed" not in bare


def test_curves_are_written_as_pictures_and_the_page_twice_alike(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy", report=True)
    for k in (1, 3):
        with Image.open(path / f"curves-k{k}.png") as picture:
            assert picture.size[0] > 900
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    first = (path / "report.html").read_bytes()
    write_report([path], path / "report.html")
    assert (path / "report.html").read_bytes() == first


def test_recorded_figures_are_marked(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy")
    meta = read_json(path / "certify.json")
    meta["failed"] = {"lmnn": "LMNN needs metric-learn"}
    meta["recorded"] = [{
        "method": "lmnn", "k": 1, "clean_error": 0.25, "median": 0.15, "certificate": "exact",
        "certified_error": [{"radius": 0.1, "value": 0.45}, {"radius": 0.2, "value": 0.6}],
        "provenance": "measured with metric-learn 0.7.0",
    }]  # fmt: skip
    write_json(path / "certify.json", meta)
    text, shown = page(path)
    (row,) = [row for row in shown.cells if row and row[0] == "LMNN (recorded)"]
    assert row[1:] == ["25.0\u202f%", "0.150", "100\u202f%", "45.0", "–", "–", "–"]
    assert (
        "LMNN was not measured: LMNN needs metric-learn. Figures recorded elsewhere stand in its place."
        in shown.text
    )
    assert "Crosses: recorded elsewhere, not measured here." in text
    assert "Recorded: measured with metric-learn 0.7.0." in text


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy", provenance=HOSTILE)
    meta = read_json(path / "certify.json")
    meta["failed"] = {HOSTILE: HOSTILE}
    meta["rows"][0]["method"] = HOSTILE
    meta["command"] = HOSTILE
    write_json(path / "certify.json", meta)
    text, shown = page(path)
    assert shown.tags.count("script") == 1  # the page's own
    assert "<script" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "alert(1)" in shown.text
    assert "\u202e" not in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_radii_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy")
    gone, *_, cut = sorted((path / "certificates").glob("*.npz"))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    text, _ = page(path)
    assert text.count("Radii left out") == 2
    assert cut.name in text


@pytest.mark.parametrize(("content", "kind", "message"), [
    ('{"schema": 9}', RunError, "schema 9, need 1"), ("[]", RunError, "schema None"),
    ("{", CorruptFile, "not JSON"), ('{"schema": 1, "rows": []}', CorruptFile, "lacks radii, failed"),
])  # fmt: skip
def test_poor_descriptions_are_refused(
    tmp_path: Path, content: str, kind: type[Exception], message: str
) -> None:
    path = folder(tmp_path / "toy")
    (path / "certify.json").write_text(content)
    with pytest.raises(kind, match=message):
        write_report([path], tmp_path / "r.html", interactive=False)


def test_files_are_read_from_their_own_folder_only(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy")
    meta = read_json(path / "certify.json")
    meta["rows"][0]["files"] = ["../../../etc/passwd"]
    write_json(path / "certify.json", meta)
    certified = read_certified(path)
    assert certified is not None
    assert "../../../etc/passwd" not in certified.arrays
    assert len(certified.notes) == 1


def test_runs_without_certificates_are_as_before_and_both_stand_side_by_side(tmp_path: Path) -> None:
    run = tmp_path / "plain"
    run.mkdir()
    shared: dict[str, Any] = {"run": "plain", "metric": "recall@1", "n": 100, "seconds": 2.0}
    attack = {"attack": "ES", "state": "attacked", "norm": "linf", "eps": 0.1, "steps": 9, "alpha": 0.1}
    append(run / "records.jsonl", [make(**shared, value=0.9), make(**shared, value=0.4, **attack)])
    alone = write_report([run], tmp_path / "a.html", interactive=False).read_text()
    assert "What is certified?" not in alone
    both = write_report([run, folder(tmp_path / "toy")], tmp_path / "b.html", interactive=False).read_text()
    heads = re.findall("<h2>(.*?)</h2>", both)
    assert heads[0] == "Is my model safe?"
    assert heads[4] == "What is certified?"
    assert len(heads) == 10


def test_seconds_count_every_method_once(tmp_path: Path) -> None:
    path = folder(tmp_path / "toy")
    meta = read_json(path / "certify.json")
    for row in meta["rows"]:
        row["train_seconds"] = {"euclidean": 1.0, "arml": 5.0}[row["method"]]
    write_json(path / "certify.json", meta)
    (run,) = load_runs([path])
    assert run.training_seconds == 6.0
    told = {(r["run"], r["suite"]): r["seconds"] for r in run.records}
    assert len(told) == 4
    assert run.evaluation_seconds == pytest.approx(sum(told.values()))


def test_short_times_are_not_told_to_the_microsecond() -> None:
    assert took(0.0002) == "<\u202f0.01\u202fs"
    assert took(1.5) == "1.5\u202fs"
