"""``holdfast certify`` and the library call behind it: figures, resuming, comparisons, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.certification import certify_table
from holdfast.certify import Certificate
from holdfast.data.tabular import Table, load_table
from holdfast.errors import InvalidArgument, MissingExtra, RunError, UnknownName
from holdfast.evaluation import mcnemar, wilson
from holdfast.files import read_arrays, read_json
from holdfast.linear import RobustKNeighborsClassifier
from holdfast.linear.competitors import METHODS, MethodFailed
from holdfast.results import record

pytestmark = pytest.mark.integration
Call = Callable[..., tuple[int, str, str]]


X = np.array([[0.0], [1.0], [4.0], [5.0]])
LINE = Table(
    name="line", x_train=X, y_train=np.array([0, 0, 1, 1]), y_test=np.array([0, 0, 0, 1, 0]),
    x_test=np.array([[0.5], [2.0], [3.0], [4.5], [1.0]]),
)  # fmt: skip


class Stand:
    """Radii that are told by the metric: M = (m) gives every right point the radius m times its own."""

    made: list[tuple[int, float]] = []  # noqa: RUF012

    def __init__(self, k: int, m: Any) -> None:
        self.k, self.m = k, 1.0 if m is None else float(m[0, 0])

    def fit(self, x: Any, y: Any) -> Stand:
        if self.k > len(x):
            raise InvalidArgument("n_neighbors", f"an integer up to {len(x)}", self.k)
        return self

    def certify(self, x: Any, y: Any = None, *, norm: float = 2) -> Certificate:
        Stand.made.append((self.k, self.m))
        radius = torch.tensor([2.0, 0.5, 0.0, 2.0, 1.5], dtype=torch.float64)[: len(x)]
        return Certificate(radius=self.m * radius, correct=radius > 0, norm=norm, method="stand-in")

    def attack(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        return 2 * self.m * np.array([2.0, 0.5, 0.0, 2.0, np.inf])[: len(x)], None


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Stand.made.clear()


def scaled(by: float) -> Any:
    return lambda x, y, seed: (by + seed) * np.eye(x.shape[1])


def certify(out: Path, methods: Any = ("euclidean",), k: Any = (1,), **more: Any) -> Any:
    settings = {"certifier": Stand, "report": False, **more}
    return certify_table(LINE, methods, k, out=out, **settings)


def test_euclidean_on_wine_gives_the_published_figures(holdfast: Call, tmp_path: Path) -> None:
    """Baseline page, more data sets: 0.0 %, 0.2575, and the certified errors of the exact 1-NN radii."""
    out = tmp_path / "wine"
    code, text, err = holdfast(
        "certify", "--data", "wine", "--methods", "euclidean,nca", "--k", "1", "--out", out
    )
    assert code == 0, err
    meta = read_json(out / "certify.json")
    row = meta["rows"][0]
    assert (row["method"], row["k"], row["n"], row["exact"]) == ("euclidean", 1, 54, 1.0)
    assert row["clean_error"]["value"] == 0.0
    assert row["median"]["value"] == pytest.approx(0.2575, abs=5e-5)
    errors = [round(e["value"], 3) for e in row["certified_error"]]
    assert errors == [0.037, 0.093, 0.185, 0.352, 0.444, 0.648, 0.889, 0.944]
    assert [row["certified_error"][0][side] for side in ("low", "high")] == list(wilson(2, 54))
    assert "K = 1" in text
    assert "0.2575" in text
    for name in ("records.jsonl", "report.html", "curves-k1.png"):
        assert (out / name).is_file(), name
    assert str(out / "report.html") in text

    kept = record.read(out / "records.jsonl")
    assert {r["run"] for r in kept} == {"euclidean", "nca"}
    median = [
        r for r in kept if (r["run"], r["suite"], r["metric"]) == ("euclidean", "knn-1", "certified-median")
    ]
    assert len(median) == 1
    assert median[0]["value"] == row["median"]["value"]
    at = {r["eps"]: r["value"] for r in kept if r["metric"].startswith("certified@") and r["suite"] == "knn-1"
          and r["run"] == "euclidean"}  # fmt: skip
    assert at[0.2] == pytest.approx(1 - row["certified_error"][3]["value"])


def test_json_is_the_same_and_nothing_is_measured_again(
    holdfast: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "certify",
        "--data",
        "iris",
        "--methods",
        "euclidean,nca",
        "--k",
        "1",
        "--out",
        tmp_path / "i",
        "--json",
    )
    code, first, _ = holdfast(*words)
    assert code == 0

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(RobustKNeighborsClassifier, "certify", never)
    monkeypatch.setattr("sklearn.neighbors.NeighborhoodComponentsAnalysis.fit", never)
    code, second, _ = holdfast(*words)
    assert code == 0
    one, two = json.loads(first), json.loads(second)
    assert one == two
    assert one["rows"][0]["n"] == 45
    assert len(one["records"]) == len(record.read(tmp_path / "i" / "records.jsonl")) == 20


def test_hand_numbers(tmp_path: Path) -> None:
    found = certify(tmp_path / "o", radii=[1.0, 0.5], attack=True)
    (row,) = found.meta["rows"]
    assert found.meta["radii"] == [0.5, 1.0]
    assert row["clean_error"]["value"] == pytest.approx(0.2)
    assert [e["value"] for e in row["certified_error"]] == pytest.approx(
        [0.4, 0.4]
    )  # a radius of 0.5 is lost at 0.5
    assert [e["value"] for e in row["attacked_error"]] == pytest.approx([0.2, 0.4])
    assert row["median"]["value"] == 1.5
    values = {r["metric"]: r for r in found.records}
    assert list(values) == ["clean-error", "certified@0.5", "certified@1", "certified-median"]
    assert values["certified@0.5"]["value"] == pytest.approx(0.6)
    assert values["certified@0.5"]["ci"] == list(wilson(3, 5))
    assert (values["certified@1"]["eps"], values["certified@1"]["norm"]) == (1.0, "l2")
    assert not values["clean-error"]["higher_is_robust"]
    arrays = read_arrays(tmp_path / "o" / row["files"][0])
    assert arrays["radius"].tolist() == [2.0, 0.5, 0.0, 2.0, 1.5]
    assert arrays["upper"].tolist() == [4.0, 1.0, 0.0, 4.0, math.inf]


def test_a_stopped_call_goes_on(tmp_path: Path) -> None:
    stopping = {"euclidean": METHODS["euclidean"], "wide": scaled(2.0)}

    class Stops(Stand):
        def certify(self, x: Any, y: Any = None, *, norm: float = 2) -> Certificate:
            if self.m == 2.0 and self.k == 3:
                raise KeyboardInterrupt
            return super().certify(x, y, norm=norm)

    with pytest.raises(KeyboardInterrupt):
        certify(tmp_path / "o", stopping, (1, 3), certifier=Stops)
    assert Stand.made == [(1, 1.0), (3, 1.0), (1, 2.0)]
    (tmp_path / "o" / ".certify.json.1.tmp").write_text("{")  # as a killed process may leave it
    Stand.made.clear()
    found = certify(tmp_path / "o", stopping, (1, 3))
    assert Stand.made == [(3, 2.0)]
    assert len(found.measured) == 4
    whole = certify(tmp_path / "p", stopping, (1, 3))
    assert [r["value"] for r in found.records] == [r["value"] for r in whole.records]

    Stand.made.clear()
    more = certify(tmp_path / "o", {**stopping, "third": scaled(3.0)}, (1, 3), radii=[0.7])
    assert Stand.made == [(1, 3.0), (3, 3.0)]
    assert {r["metric"] for r in more.records} >= {"certified@0.7"}
    assert len({(r["fingerprint"], r["metric"]) for r in more.records}) == len(more.records)


def test_several_seeds_show_their_spread_and_settled_methods_run_once(tmp_path: Path) -> None:
    found = certify(
        tmp_path / "o", {"euclidean": METHODS["euclidean"], "mine": scaled(1.0)}, seeds=[0, 1, 2], radii=[1.0]
    )
    plain, mine = found.meta["rows"]
    assert plain["seeds"] == [0]
    assert plain["median"]["spread"] is None
    assert mine["seeds"] == [0, 1, 2]
    assert mine["median"]["value"] == pytest.approx(3.0)  # 1.5, 3 and 4.5
    assert mine["median"]["spread"] == [1.5, 4.5]
    assert mine["certified_error"][0]["spread"] == pytest.approx(
        [0.2, 0.4]
    )  # 0.5 becomes 1.0, still lost, then 1.5


def test_each_method_is_compared_with_arml_at_its_median(tmp_path: Path) -> None:
    methods = {"euclidean": METHODS["euclidean"], "arml": scaled(1.0), "mine": scaled(2.0)}
    found = certify(tmp_path / "o", methods, (1, 3))
    one = found.meta["comparisons"]
    assert [(c["k"], c["method"], c["baseline"], c["radius"]) for c in one] == [
        (1, "euclidean", "arml", 1.5), (1, "mine", "arml", 1.5), (3, "euclidean", "arml", 1.5),
        (3, "mine", "arml", 1.5),
    ]  # fmt: skip
    assert one[0]["difference"] == 0.0
    assert one[1]["difference"] == pytest.approx(-0.2)  # the point of radius 1.5 has 3.0 now
    assert one[1]["discordant"] == [1, 0]
    assert one[1]["p_value"] == mcnemar([0, 1, 1, 0, 1], [0, 1, 1, 0, 0]) == 1.0
    assert "mine - arml is -20.0 points" in one[1]["words"]
    alone = certify(tmp_path / "p", {"euclidean": METHODS["euclidean"], "mine": scaled(2.0)})
    assert [(c["method"], c["baseline"]) for c in alone.meta["comparisons"]] == [("mine", "euclidean")]


def test_radii_fit_what_was_found_where_no_table_was_published(tmp_path: Path) -> None:
    found = certify(tmp_path / "o", {"mine": scaled(0.01)})
    assert found.meta["radii"] == pytest.approx([0.0025 * i for i in range(1, 9)])  # 90 % quantile 0.02


def failing(x: Any, y: Any, seed: int) -> Any:
    raise MissingExtra("metric-learn", "bench", "LMNN")


def test_a_method_that_fails_is_told_and_recorded_figures_stand_in(tmp_path: Path) -> None:
    breast = load_table("breast-cancer")
    methods = {
        "euclidean": METHODS["euclidean"],
        "lmnn": failing,
        "bad": lambda x, y, s: np.full((30, 30), np.nan),
    }

    class Quick(Stand):
        def certify(self, x: Any, y: Any = None, *, norm: float = 2) -> Certificate:
            radius = torch.linspace(0, 1, len(x), dtype=torch.float64)
            return Certificate(radius=radius, correct=radius > 0, norm=norm)

    def run(**more: Any) -> Any:
        return certify_table(breast, methods, (1, 3, 5), certifier=Quick, report=False, **more)

    meta = run(out=tmp_path / "o").meta
    assert meta["failed"]["bad"] == "bad: the matrix holds NaN or infinity"
    assert "pip install" in meta["failed"]["lmnn"]
    assert [(r["method"], r["k"], r["median"]) for r in meta["recorded"]] == [
        ("lmnn", 1, 0.1741),
        ("lmnn", 3, 0.1801),
    ]
    assert meta["recorded"][0]["certified_error"][3] == {"radius": 0.2, "value": 0.573}
    assert "scikit-learn 1.5.2" in meta["recorded"][0]["provenance"]
    for other in ({"n_test": 100, "out": tmp_path / "n"}, {"norm": "linf", "out": tmp_path / "i"}):
        assert run(**other).meta["recorded"] == []  # other points, another norm
    with pytest.raises(MethodFailed, match="no method gave a metric: LMNN needs metric-learn"):
        certify(tmp_path / "p", {"lmnn": failing})


def test_n_test_norm_and_method_are_part_of_what_is_kept(tmp_path: Path) -> None:
    certify(tmp_path / "o")
    certify(tmp_path / "o", n_test=2)
    certify(tmp_path / "o", norm="linf")
    assert len(Stand.made) == 3
    again = certify(tmp_path / "o", norm="linf")
    assert len(Stand.made) == 3
    assert again.measured[0].certificate.norm == math.inf
    assert {r["norm"] for r in again.records} == {"linf"}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"methods": []}, InvalidArgument, "methods: need at least one of euclidean"),
        ({"methods": ["eucldean"]}, UnknownName, "did you mean euclidean"),
        ({"methods": {"../up": scaled(1.0)}}, InvalidArgument, "names of letters"),
        ({"k": []}, InvalidArgument, "k: need one or more integers >= 1"),
        ({"k": [0]}, InvalidArgument, "k: need one or more integers >= 1"),
        ({"k": [5]}, InvalidArgument, "n_neighbors: need an integer up to 4, got 5"),
        ({"seeds": [-1]}, InvalidArgument, "seeds: need one or more integers >= 0"),
        ({"seeds": []}, InvalidArgument, "seeds"),
        ({"norm": "l3"}, UnknownName, "norm"),
        ({"radii": []}, InvalidArgument, "radii: need finite numbers > 0"),
        ({"radii": [0.0]}, InvalidArgument, "radii: need finite numbers > 0"),
        ({"n_test": 6}, InvalidArgument, "n_test"),
        ({"certifier": None, "method": "tigt"}, UnknownName, "did you mean tight"),
        ({"attack": True, "norm": "l1"}, InvalidArgument, "attack: need the norm l2"),
    ],
)
def test_bad_input_is_refused_before_anything_is_learned(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        certify(tmp_path / "o", **change)
    assert not (tmp_path / "o").exists()


def test_a_class_smaller_than_k_has_no_radius_but_no_error_either(tmp_path: Path) -> None:
    table = Table(
        name="few", x_train=np.array([[0.0], [0.1], [0.2], [0.3], [2.0]]), y_train=np.array([0, 0, 0, 0, 1]),
        x_test=np.array([[0.15], [2.0]]), y_test=np.array([0, 1]),
    )  # fmt: skip
    found = certify_table(table, ["euclidean"], (3,), out=tmp_path / "o", report=False)
    radius = found.measured[0].certificate.radius
    assert radius[0] > 0
    assert radius[1] == 0


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="exists and holds no certificates"):
        certify(tmp_path / "o")
    certify(tmp_path / "p")
    with pytest.raises(RunError, match="certificates of other data"):
        certify_table(load_table("iris"), ["euclidean"], (1,), out=tmp_path / "p", certifier=Stand)
    (tmp_path / "p" / "certify.json").write_text('{"schema": 99}')
    with pytest.raises(RunError, match="another schema"):
        certify(tmp_path / "p")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "euclidean"), "data: need a data set, such as --data digits"),
        (("--data", "wnie"), "did you mean wine"),
        (("--data", "wine", "--methods", "arlm"), "did you mean arml"),
        (("--data", "wine", "--methods", ","), "methods: need at least one of"),
        (("--data", "wine", "--k", "one"), "k: need whole numbers with commas between"),
        (("--data", "wine", "--k", "125"), "n_neighbors: need an integer between 1 and n_samples = 124"),
        (("--data", "dna"), "name their folder with --data-dir"),
        (("--data", "dna", "--data-dir", "nowhere"), "missing dna.scale and dna.scale.t"),
        (("--data", "wine", "--seeds", "-1"), "seeds: need one or more integers >= 0"),
        (("--data", "wine", "--budget", "soon"), "budget: need a time > 0"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(
    holdfast: Call, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = holdfast("certify", *words, "--out", tmp_path / "o")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) in (1, 2)
    assert not (tmp_path / "o").exists()
