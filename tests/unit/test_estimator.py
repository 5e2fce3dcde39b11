"""DeepMetricLearner: scikit-learn's contract, tables and images, storage, callbacks, certificates."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from holdfast.data import DataSplit, ImageSet
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import MLP, LinearEncoder, SmallCNN
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.estimator import DeepMetricLearner, with_radius
from holdfast.losses import Triplet
from holdfast.miners import Random
from holdfast.recipes import recipe
from holdfast.threat import LinfThreat
from holdfast.training import train

IRIS = load_iris(return_X_y=True)
QUICK: dict[str, Any] = {"epochs": 2, "random_state": 0}


@parametrize_with_checks([DeepMetricLearner(defense="act", eps=0.05, epochs=1, random_state=0)])
def test_scikit_learn(estimator: DeepMetricLearner, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32)[:300], y[:300]


@pytest.fixture(scope="module")
def fitted(digits: tuple[np.ndarray, np.ndarray]) -> DeepMetricLearner:
    X, y = digits
    return DeepMetricLearner(image_shape=(8, 8), eps=0.1, epochs=2, random_state=0).fit(X[:200], y[:200])


def test_images_in_three_forms(fitted: DeepMetricLearner, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    grey = clone(fitted).set_params(image_shape=None).fit(X[:200].reshape(-1, 8, 8), y[:200])
    z = grey.transform(X[200:].reshape(-1, 8, 8))
    assert np.array_equal(z, fitted.transform(X[200:]))
    assert z.shape == (100, 64)
    assert z.dtype == np.float32
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    assert fitted.shape_in_ == grey.shape_in_ == (1, 8, 8)
    assert fitted.low_ is None
    assert fitted.score(X[200:], y[200:]) > 0.6
    assert isinstance(fitted.encoder_.spec, SmallCNN)
    assert fitted.get_feature_names_out()[:2].tolist() == ["deepmetriclearner0", "deepmetriclearner1"]
    assert [line["epoch"] for line in fitted.history_] == [0, 1]


def test_fit_is_the_training_of_a_recipe(
    fitted: DeepMetricLearner, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """The same weights to the bit as :func:`holdfast.train` with the recipe, its radius and search scaled."""
    x, y = torch.from_numpy(digits[0][:200]).reshape(-1, 1, 8, 8), torch.from_numpy(digits[1][:200])
    images = ImageSet(x, y, "digits")
    run = recipe("hm-ics")
    parts: Any = run.defense
    threat = LinfThreat(eps=0.1)
    defense = replace(parts, threat=threat, search=replace(parts.search, alpha=parts.search.alpha / 2))
    encoder = SmallCNN(embedding_dim=64)
    run = replace(run, defense=defense, threat=threat, encoder=encoder, epochs=2, seed=fitted.run_.seed)
    wanted = train(run, DataSplit(images, images, "digits", "closed")).encoder.state_dict()
    got = fitted.encoder_.state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_table_is_scaled_by_the_range_of_training() -> None:
    X, y = IRIS
    wide = np.c_[X * [1.0, 100.0, 1e-3, 1.0] + [0, -5, 7, 0], np.full(len(X), 3.0)]  # a constant column
    learner = DeepMetricLearner(defense="act", eps=0.05, **QUICK).fit(wide, y)
    assert np.array_equal(learner.low_, wide.min(0))
    assert learner.range_[-1] == 1.0
    assert learner.range_[1] == pytest.approx(100 * (X[:, 1].max() - X[:, 1].min()))
    scaled = MinMaxScaler().fit(wide)
    same = DeepMetricLearner(defense="act", eps=0.05, **QUICK).fit(scaled.transform(wide), y)
    assert np.allclose(learner.transform(wide), same.transform(scaled.transform(wide)), atol=1e-4)
    assert learner.transform(wide).dtype == np.float64
    beyond = learner.transform(wide + 10)  # nothing is clipped
    assert np.isfinite(beyond).all()
    assert learner.score(wide, y) > 0.8
    assert learner.shape_in_ == (1, 1, 5)


def test_grid_search_over_eps_in_a_pipeline(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:80], digits[1][:80]
    pipe = make_pipeline(FunctionTransformer(), DeepMetricLearner(image_shape=(8, 8), defense="est", **QUICK))
    search = GridSearchCV(pipe, {"deepmetriclearner__eps": [0.0, 0.1]}, cv=2, error_score="raise").fit(X, y)
    assert search.cv_results_["mean_test_score"].shape == (2,)
    best = search.best_estimator_[-1]
    assert (
        best.run_.threat.eps == best.run_.defense.threat.eps == search.best_params_["deepmetriclearner__eps"]
    )


def test_eps_scales_the_search_everywhere_in_a_recipe() -> None:
    run = with_radius(recipe("act-half"), 0.1)
    moving: Any = run.defense.parts[0]  # type: ignore[attr-defined]
    assert run.threat.eps == moving.threat.eps == 0.1
    assert moving.search.alpha == pytest.approx(recipe("act").defense.search.alpha / 2)  # type: ignore[attr-defined]


def test_the_seed_decides(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = IRIS
    one, two, three = (
        DeepMetricLearner(defense=None, epochs=1, random_state=s).fit(X, y).transform(X) for s in (0, 0, 1)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize("way", ["pickle", "joblib"])
def test_a_fitted_learner_is_stored_by_its_weights(
    fitted: DeepMetricLearner, digits: tuple[np.ndarray, np.ndarray], way: str
) -> None:
    file = io.BytesIO()
    (pickle if way == "pickle" else joblib).dump(fitted, file)
    assert file.tell() < 4 * sum(p.numel() for p in fitted.encoder_.parameters()) + 200_000
    file.seek(0)
    again = (pickle if way == "pickle" else joblib).load(file)
    X = digits[0][200:]
    assert np.array_equal(again.transform(X), fitted.transform(X))
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert not again.encoder_.training
    assert "encoder_" not in fitted.__getstate__()
    assert hasattr(fitted, "encoder_")


class Counting:
    """A callback with all methods."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_train_begin(self, learner: DeepMetricLearner) -> None:
        self.said.append("begin")

    def on_step(self, learner: DeepMetricLearner, line: dict[str, Any]) -> None:
        self.said.append("step")

    def on_epoch(self, learner: DeepMetricLearner, line: dict[str, Any]) -> None:
        assert learner.history_[-1] is line
        self.said.append(f"epoch {line['epoch']}")

    def on_train_end(self, learner: DeepMetricLearner) -> None:
        assert learner.encoder_ is not None
        self.said.append("end")


def test_callbacks() -> None:
    counting, lines = Counting(), list[dict[str, Any]]()
    X, y = IRIS
    learner = DeepMetricLearner(
        defense=None, batch_size=150, callbacks=[counting, lambda _, line: lines.append(line)], **QUICK
    )
    learner.fit(X, y)
    assert counting.said == ["begin", "step", "step", "epoch 0", "step", "step", "epoch 1", "end"]
    assert [line["kind"] for line in lines] == ["step", "step", "epoch"] * 2


def test_encoders_by_name_spec_and_module() -> None:
    X, y = IRIS
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Dropout(0.5))
    before = module[1].weight.clone()
    expected = {"linear": LinearEncoder(8), "mlp": MLP(embedding_dim=8), "auto": MLP(embedding_dim=8)}
    for name, spec in expected.items():
        learner = DeepMetricLearner(encoder=name, embedding_dim=8, defense=None, **QUICK).fit(X, y)
        assert learner.encoder_.spec == spec
        assert learner.transform(X).shape == (150, 8)
    learner = DeepMetricLearner(encoder=LinearEncoder(2), defense=None, **QUICK).fit(X, y)
    assert learner.transform(X).shape == (150, 2)
    learner = DeepMetricLearner(encoder=module, defense=None, **QUICK).fit(X, y)
    assert learner.transform(X).shape == (150, 6)
    assert torch.equal(module[1].weight, before)  # a copy was trained
    assert not torch.equal(learner.encoder_.module[1].weight, before)
    assert np.array_equal(pickle.loads(pickle.dumps(learner)).transform(X), learner.transform(X))


def test_defenses_as_objects_and_runs() -> None:
    X, y = IRIS
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    learner = DeepMetricLearner(defense=plain, **QUICK).fit(X, y)
    assert learner.run_.defense is plain
    run = recipe("act")
    assert DeepMetricLearner(defense=run, **QUICK).fit(X, y).run_.threat == run.threat  # it keeps its radius


def test_a_class_of_one_row_may_pair_with_itself() -> None:
    X, y = IRIS
    y = np.where(np.arange(150) == 0, "alone", np.where(y > 0, "others", "setosa"))
    learner = DeepMetricLearner(defense=None, n_neighbors=1, **QUICK).fit(X, y)
    assert learner.run_.sampler.self_pairs
    assert learner.predict(X[:1]).tolist() == ["alone"]


def test_certificates_of_a_lipschitz_encoder(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    learner = DeepMetricLearner(
        defense="lipschitz", image_shape=(8, 8), n_neighbors=1, epochs=1, random_state=0
    ).fit(X[:200], y[:200])
    found = learner.certify(X[200:240], y[200:240])
    right = learner.predict(X[200:240]) == y[200:240]
    assert np.array_equal(found.correct.numpy(), right)
    assert found.norm == 2
    assert float(found.radius[found.correct].min()) > 0
    step = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)))
    inside = X[200:240] + (0.9 * found.radius[:, None] * step).numpy().astype(np.float32)
    ok = ((inside >= 0) & (inside <= 1)).all(1)
    inside = np.clip(inside, 0, 1)  # clipping only shortens the change
    assert np.array_equal(learner.predict(inside)[right], y[200:240][right]), ok.sum()
    assert bool(learner.certify(X[200:240]).correct.all())  # the predictions themselves
    with pytest.raises(InvalidArgument, match="labels"):
        learner.certify(X[200:202], [0, 77])
    with pytest.raises(InvalidArgument, match="n_neighbors"):
        learner.set_params(n_neighbors=5).certify(X[:2])


def test_what_fit_refuses(fitted: DeepMetricLearner, digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = IRIS
    for wrong, error, message in (
        ({"eps": -1}, InvalidArgument, "eps"),
        ({"epochs": 0}, InvalidArgument, "epochs"),
        ({"batch_size": 2}, InvalidArgument, "batch_size"),
        ({"n_neighbors": 0}, InvalidArgument, "n_neighbors"),
        ({"encoder": "cnn"}, InvalidArgument, "image_shape"),
        ({"encoder": "cnm"}, UnknownName, "encoder"),
        ({"encoder": 3}, InvalidArgument, "encoder"),
        ({"defense": "hm-isc"}, UnknownName, "hm-ics"),
        ({"defense": 3}, InvalidArgument, "defense"),
        ({"image_shape": (3, 3)}, InvalidArgument, "9 numbers"),
        ({"image_shape": (4,)}, InvalidArgument, "image_shape"),
        ({"lr": 0.0}, InvalidArgument, "lr"),
    ):
        with pytest.raises(error, match=message):
            DeepMetricLearner(**{**QUICK, **wrong}).fit(X, y)
    images = digits[0][:20].reshape(-1, 1, 8, 8)
    for bad, message in (
        (images * 255, "divide by 255"),
        ((images * 255).astype(np.uint8), "divide integer"),
    ):
        with pytest.raises(DataError, match=message):
            DeepMetricLearner(**QUICK).fit(bad, digits[1][:20])
    with pytest.raises(InvalidArgument, match="pixels in"):
        fitted.transform(digits[0] * 2)
    with pytest.raises(InvalidArgument, match="Lipschitz"):
        fitted.certify(digits[0][:2])
    with pytest.raises(ValueError, match="64 features"):
        fitted.transform(digits[0][:, :60])
