"""Competitors: what each returns, how failures are told, and the recorded figures."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import NeighborhoodComponentsAnalysis

from holdfast.data.tabular import load_table
from holdfast.errors import MissingExtra, UnknownName
from holdfast.linear import arml as arml_module
from holdfast.linear.competitors import METHODS, STOCHASTIC, MethodFailed, checked, learn, recorded

IRIS = load_table("iris")
X, Y = IRIS.x_train, IRIS.y_train


def test_the_names() -> None:
    assert list(METHODS) == ["euclidean", "nca", "lmnn", "itml", "lfda", "arml", "arml-fast", "holdfast"]
    assert set(METHODS) >= STOCHASTIC
    with pytest.raises(UnknownName, match="did you mean euclidean"):
        learn("euclid", X, Y)


def test_euclidean_is_the_identity_and_nca_is_scikit_learns() -> None:
    assert np.array_equal(learn("euclidean", X, Y).matrix, np.eye(4))
    nca = NeighborhoodComponentsAnalysis(init="identity", max_iter=50, random_state=0).fit(X, Y)
    assert learn("nca", X, Y).matrix == pytest.approx(nca.components_.T @ nca.components_, rel=1e-9)
    assert np.array_equal(learn("nca", X, Y, 0).matrix, learn("nca", X, Y, 1).matrix)


@pytest.mark.parametrize(("name", "mode"), [("arml", "published"), ("arml-fast", "default")])
def test_both_armls_are_asked_for_by_mode(monkeypatch: pytest.MonkeyPatch, name: str, mode: str) -> None:
    asked: list[tuple[str, int]] = []

    class Fake:
        def __init__(self, mode: str = "default", random_state: int = 0) -> None:
            asked.append((mode, random_state))

        def fit(self, x: Any, y: Any) -> Fake:
            return self

        def get_mahalanobis_matrix(self) -> Any:
            return 2 * np.eye(4)

    monkeypatch.setattr(arml_module, "ARML", Fake)
    assert np.array_equal(learn(name, X, Y, 5).matrix, 2 * np.eye(4))
    assert asked == [(mode, 5)]


def fake_metric_learn(monkeypatch: pytest.MonkeyPatch, fit: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    class Learner:
        def __init__(self, random_state: int | None = None) -> None:
            made.append({"random_state": random_state})

        def fit(self, x: Any, y: Any) -> Learner:
            self.m = fit(x)
            return self

        def get_mahalanobis_matrix(self) -> Any:
            return self.m

    class Plain(Learner):
        def __init__(self) -> None:
            made.append({})

    module = ModuleType("metric_learn")
    module.LMNN, module.ITML_Supervised, module.LFDA = Learner, Learner, Plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metric_learn", module)
    return made


def test_metric_learn_gets_a_seed_where_it_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake_metric_learn(monkeypatch, lambda x: 3 * np.eye(x.shape[1]))
    for name in ("lmnn", "itml", "lfda"):
        assert np.array_equal(learn(name, X, Y, 4).matrix, 3 * np.eye(4))
    assert made == [{"random_state": 4}, {"random_state": 4}, {}]


def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metric_learn", None)
    with pytest.raises(MissingExtra, match=r"LMNN needs metric-learn; .*pip install 'holdfast\[bench\]'"):
        learn("lmnn", X, Y)


def test_the_break_with_new_scikit_learn_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Any) -> Any:
        raise TypeError("check_X_y() got an unexpected keyword argument 'force_all_finite'")

    fake_metric_learn(monkeypatch, broken)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: {"metric-learn": "0.7.0"}.get(name, "1.9.1")
    )
    with pytest.raises(MethodFailed) as failed:
        learn("lmnn", X, Y)
    assert (
        str(failed.value) == "LMNN: metric-learn 0.7.0 does not run with scikit-learn 1.9.1; it needs < 1.8"
    )


@pytest.mark.parametrize("error", [TypeError("other"), ValueError("rank"), np.linalg.LinAlgError("singular")])
def test_other_failures_keep_their_words(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(x: Any) -> Any:
        raise error

    fake_metric_learn(monkeypatch, broken)
    with pytest.raises(MethodFailed, match=f"LFDA: metric-learn failed: {error}"):
        learn("lfda", X, Y)


def test_complex_nan_of_lfda_is_a_failed_method(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_metric_learn(monkeypatch, lambda x: np.full((4, 4), np.nan + 1j))
    with pytest.raises(MethodFailed, match="lfda: the matrix is complex and holds NaN"):
        learn("lfda", X, Y)


@pytest.mark.parametrize(
    ("m", "message"),
    [
        (np.diag([1.0, np.nan]), "holds NaN or infinity"),
        (np.diag([1.0, np.inf]), "holds NaN or infinity"),
        (np.diag([1.0, -0.1]), "negative eigenvalue -0.1"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.zeros((2, 2)), "is 0"),
        (np.ones((2, 3)), "square matrix"),
        (np.array([[1.0, 1j], [-1j, 1.0]]), "is complex"),
    ],
)
def test_what_is_no_metric_is_refused(m: Any, message: str) -> None:
    with pytest.raises(MethodFailed, match=f"mine: .*{message}"):
        checked("mine", m)


def test_rounding_is_mended() -> None:
    m = np.diag([1.0, -1e-12])
    m[0, 1] = 1e-12
    fixed = checked("mine", m)
    assert np.linalg.eigvalsh(fixed)[0] >= 0
    assert np.array_equal(fixed, fixed.T)
    assert fixed == pytest.approx(np.diag([1.0, 0.0]), abs=1e-11)
    assert np.array_equal(checked("mine", np.array([[2.0 + 0j, 0], [0, 1]])), np.diag([2.0, 1.0]))


def test_recorded_figures_are_those_of_the_baseline_page() -> None:
    digits, breast = recorded("digits"), recorded("breast-cancer")
    assert digits is not None
    assert breast is not None
    assert "metric-learn 0.7.0 under scikit-learn 1.5.2" in digits["provenance"]
    assert digits["methods"]["lmnn"]["1"] == {
        "clean_error": 0.011, "median": 0.4509, "certificate": "exact",
        "certified_error": [0.028, 0.076, 0.189, 0.372, 0.637, 0.854, 0.998, 1.0],
    }  # fmt: skip
    assert digits["methods"]["itml"]["11"]["certified_error"] == [
        0.059,
        0.156,
        0.331,
        0.556,
        0.757,
        0.904,
        0.998,
        1,
    ]
    assert digits["methods"]["lfda"] == {"failed": "the matrix is complex and holds NaN"}
    assert breast["methods"]["arml"]["3"]["median"] == 0.2812
    assert breast["methods"]["nca"]["3"]["certified_error"] == [
        0.076,
        0.129,
        0.24,
        0.415,
        0.532,
        0.661,
        0.795,
    ]
    assert recorded("wine") is None


@pytest.mark.parametrize(("name", "n"), [("digits", 540), ("breast-cancer", 171)])
def test_recorded_figures_make_sense(name: str, n: int) -> None:
    file = recorded(name)
    assert file is not None
    assert file["n_test"] == n
    assert file["norm"] == "l2"
    assert sorted(file["radii"]) == file["radii"]
    for method, figures in file["methods"].items():
        assert method in METHODS
        for k, row in figures.items():
            if k == "failed":
                continue
            errors = row["certified_error"]
            assert len(errors) == len(file["radii"])
            assert sorted(errors) == errors
            assert row["clean_error"] <= errors[0] + 5e-4
            below = [e for r, e in zip(file["radii"], errors, strict=True) if r < row["median"]]
            assert all(e <= 0.5 + 1e-3 for e in below)
