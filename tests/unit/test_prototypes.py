from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from holdfast.errors import InvalidArgument
from holdfast.linear import ARML, MahalanobisMixin, RobustPrototypes
from holdfast.linear.competitors import learn
from holdfast.linear.prototype_training import Design, centres, learn_prototypes

QUICK: dict[str, Any] = {"steps": 60, "random_state": 0}


@parametrize_with_checks([RobustPrototypes(2, **QUICK)])
def test_scikit_learn_conventions(estimator: Any, check: Any) -> None:
    check(estimator)


def wine() -> tuple[Any, Any, Any, Any]:
    x, y = load_wine(return_X_y=True)
    a, b, c, d = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)
    scale = MinMaxScaler().fit(a)
    return scale.transform(a), scale.transform(b), c, d


def test_centres_are_the_rows_or_k_means() -> None:
    x = np.array([[0.0], [0.2], [1.0], [1.2], [5.0], [5.2]])
    codes = np.array([0, 0, 0, 0, 1, 1])
    found, labels = centres(x, codes, 2, 0)
    assert sorted(found[labels == 0, 0].tolist()) == pytest.approx([0.1, 1.1])
    assert found[labels == 1, 0].tolist() == pytest.approx([5.1])  # at most half of the rows
    rows, same = centres(x, codes, None, 0)
    assert np.array_equal(rows, x)
    assert np.array_equal(same, codes)
    assert rows is not x


def test_training_pushes_prototypes_of_two_points_apart() -> None:
    """Rows at 0 and 1: the bisector of the prototypes ends half-way, whatever side they begin on."""
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    y = torch.tensor([0, 0, 1, 1])
    g, r = learn_prototypes(
        x, y, torch.tensor([[0.3], [0.9]]), torch.tensor([0, 1]), torch.eye(1), Design(1, 1.0, 0.0),
        scale=0.5, steps=300, lr=0.01, batch=4, seed=0,
    )  # fmt: skip
    assert float(r.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(g.abs()) == pytest.approx(1.0)


def test_a_row_is_not_its_own_neighbour() -> None:
    """Every row a prototype: with itself as neighbour the loss would be flat, and nothing would move."""
    x = torch.tensor([[0.0], [0.1], [0.55], [1.0], [1.1]])
    y = torch.tensor([0, 0, 0, 1, 1])
    _, r = learn_prototypes(
        x,
        y,
        x.clone(),
        y,
        torch.eye(1),
        Design(None, 1.0, 0.0),
        scale=0.05,
        steps=50,
        lr=0.0,
        batch=5,
        seed=0,
    )
    assert float(r[1]) != 0.1  # the nearest of 0.55 but itself


def test_wine_beats_arml_at_no_more_errors() -> None:
    x, z, y, w = wine()
    model = RobustPrototypes(random_state=0).fit(x, y)
    ours, theirs = model.certify(z, w), ARML(random_state=0).fit(x, y).certify(z, w)
    assert ours.median() > 1.1 * theirs.median()
    assert ours.error_at(0.0) <= theirs.error_at(0.0) + 1 / len(z)
    assert model.design_ is not None
    assert model.trials_[0]["target"] is None  # ARML stands first
    assert np.array_equal(model.predict(z) == w, ours.correct.numpy())


def test_same_seed_same_model() -> None:
    x, _, y, _ = wine()
    a, b = (RobustPrototypes(3, **QUICK).fit(x, y) for _ in range(2))
    assert np.array_equal(a.references_, b.references_)
    assert not np.array_equal(
        a.references_, RobustPrototypes(3, steps=60, random_state=1).fit(x, y).references_
    )


def test_shift_of_the_features_changes_little() -> None:
    x, z, y, w = wine()
    near = RobustPrototypes(3, **QUICK).fit(x, y).certify(z, w)
    far = RobustPrototypes(3, **QUICK).fit(x + 100, y).certify(z + 100, w)
    torch.testing.assert_close(far.radius, near.radius, rtol=0.05, atol=5e-3)


def test_labels_may_be_words_and_files_bring_them_back(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    words = np.array(["setosa", "versicolor", "virginica"])[y]
    model = RobustPrototypes(2, **QUICK).fit(x, words)
    assert model.score(x, words) > 0.9
    model.save(tmp_path / "m.safetensors")
    back = MahalanobisMixin.load(tmp_path / "m.safetensors")
    assert isinstance(back, RobustPrototypes)
    assert np.array_equal(back.predict(x), model.predict(x))
    assert back.get_params() == model.get_params()
    assert back.design_ == model.design_ == {"prototypes": 2, "target": 0.6, "noise": 0.4}


def test_stands_in_a_pipeline_and_the_table_of_methods() -> None:
    x, _, y, _ = wine()
    scores = cross_val_score(make_pipeline(MinMaxScaler(), RobustPrototypes(1, **QUICK)), x, y, cv=2)
    assert scores.min() > 0.8
    learned = learn("holdfast", x, y, 0)
    assert learned.x is not None
    assert learned.matrix.shape == (13, 13)
    assert set(np.asarray(learned.y)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_prototypes", 0), ("n_prototypes", "many"), ("n_prototypes", True), ("target", 0.0),
        ("target", float("nan")), ("noise", -0.1), ("lr", -1.0), ("steps", 0), ("batch_size", 1.5),
        ("validation_fraction", 0.0), ("validation_fraction", 1.0),
    ],
)  # fmt: skip
def test_bad_settings_are_named(field: str, value: Any) -> None:
    x, _, y, _ = wine()
    with pytest.raises(InvalidArgument, match=field):
        clone(RobustPrototypes(**QUICK)).set_params(**{field: value}).fit(x, y)


def test_classes_need_two_rows_and_there_must_be_two() -> None:
    x = np.random.default_rng(0).random((6, 2))
    with pytest.raises(InvalidArgument, match="at least 2 rows of every class"):
        RobustPrototypes(**QUICK).fit(x, [0, 0, 0, 1, 1, 2])
    with pytest.raises(InvalidArgument, match="at least 2 classes"):
        RobustPrototypes(**QUICK).fit(x, np.zeros(6))
    with pytest.raises(InvalidArgument, match="NaN"):
        RobustPrototypes(**QUICK).fit(np.full((6, 2), np.nan), [0, 0, 0, 1, 1, 1])


def test_constant_columns_do_no_harm() -> None:
    x, z, y, w = wine()
    pad = np.ones((len(x), 2))
    model = RobustPrototypes(2, **QUICK).fit(np.hstack((x, pad)), y)
    assert model.certify(np.hstack((z, pad[: len(z)])), w).median() > 0.1
