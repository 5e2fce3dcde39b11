"""Clustering-based inference: the index, its backends and files, and the task of queries against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

import holdfast.inference
from holdfast.errors import (
    CorruptFile,
    DataError,
    HoldfastWarning,
    InvalidArgument,
    MissingExtra,
    UnknownName,
)
from holdfast.evaluation import embed, retrieval_task
from holdfast.files import read_arrays, write_arrays
from holdfast.functional.distance import Cosine, Euclidean, SquaredEuclidean
from holdfast.functional.ranking import retrieval_scores
from holdfast.inference import ClusterIndex, backends, cluster_task
from holdfast.inference.backends import backend_for
from holdfast.rng import stream

CENTRES = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])


def blobs(n: int = 60, spread: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return CENTRES[y] + spread * generator.normal(size=(n, 2)), y


NO_LABELS = "prototypes are the means of labelled classes, and there are as many as classes"
NO_DIRECTION = "a row of zeros has no direction"


def expected_failures(index: ClusterIndex) -> dict[str, str]:
    if index.inference == "spherical":
        return {"check_estimators_dtypes": NO_DIRECTION}
    if index.inference == "kmeans":
        return {}
    return dict.fromkeys(
        (
            "check_dont_overwrite_parameters", "check_clustering", "check_methods_sample_order_invariance",
            "check_methods_subset_invariance", "check_fit2d_1feature", "check_fit2d_predict1d",
        ),
        NO_LABELS,
    )  # fmt: skip


@parametrize_with_checks(
    [
        ClusterIndex(3, n_init=2),
        ClusterIndex("auto", max_clusters=4, n_init=1),
        ClusterIndex(3, backend="minibatch", n_init=1),
        ClusterIndex(3, inference="spherical", n_init=1),
        ClusterIndex(inference="prototype"),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


# Fit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_k_means_is_scikit_learns(dtype: type) -> None:
    X, y = blobs(spread=4.0)
    ours = ClusterIndex(8, random_state=3).fit(X.astype(dtype), y)
    theirs = KMeans(8, n_init=10, random_state=3).fit(X.astype(dtype))
    np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.cluster_centers_.dtype == dtype
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    new = blobs(seed=1, spread=4.0)[0].astype(dtype)
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new), rtol=1e-4)
    assert ours.score(new) == pytest.approx(theirs.score(new), rel=1e-5)
    best = ClusterIndex(8, n_init=30, random_state=11).fit(X).inertia_
    assert best <= 1.01 * KMeans(8, n_init=30, random_state=3).fit(X).inertia_


def test_k_from_labels_and_names() -> None:
    X, y = blobs()
    index = ClusterIndex().fit(X, 10 * y)
    assert index.n_clusters_ == 3
    assert index.names_ is not None
    np.testing.assert_array_equal(index.names_.hungarian.numpy()[index.labels_], 10 * y)
    np.testing.assert_array_equal(index.predict_class(CENTRES), [0, 10, 20])
    np.testing.assert_array_equal(index.predict_class(CENTRES, "majority"), [0, 10, 20])
    np.testing.assert_array_equal(clone(index).fit_predict(X, y), index.labels_)


def test_unknown_labels_do_not_count() -> None:
    X, y = blobs()
    some = np.where(np.arange(60) < 40, y, -1)
    index = ClusterIndex().fit(X, some)
    assert index.n_clusters_ == 3
    assert index.names_ is not None
    np.testing.assert_array_equal(index.names_.majority.numpy()[index.labels_], y)
    assert ClusterIndex(3).fit(X, np.full(60, -1)).names_ is None
    assert ClusterIndex(3).fit(X).names_ is None


@pytest.mark.parametrize("labels", [None, np.full(60, -1), torch.full((60,), -7)])
@pytest.mark.parametrize("inference", ["kmeans", "spherical"])
def test_unlabelled_references_need_a_number(labels: Any, inference: Any) -> None:
    with pytest.raises(InvalidArgument, match="n_clusters: need a number or 'auto' for references without"):
        ClusterIndex(inference=inference).fit(blobs()[0] + 1, labels)


def test_spherical_is_blind_to_lengths() -> None:
    X, y = blobs(spread=0.05)
    X = (X + 1) * np.random.default_rng(0).uniform(1, 50, (60, 1))
    index = ClusterIndex(inference="spherical").fit(X, y)
    np.testing.assert_allclose(np.linalg.norm(index.cluster_centers_, axis=1), 1)
    np.testing.assert_array_equal(index.predict_class(X), y)
    cosine = 1 - F.normalize(torch.from_numpy(X)) @ torch.from_numpy(index.cluster_centers_).T
    np.testing.assert_allclose(index.transform(X), cosine, atol=1e-12)
    assert index.score(X) == pytest.approx(-float(cosine.min(1).values.sum()))


def test_prototypes_are_class_means() -> None:
    X, y = blobs(spread=3.0)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    index = ClusterIndex(inference="prototype").fit(X, y + 5)
    np.testing.assert_allclose(index.cluster_centers_, [X[y == k].mean(0) for k in range(3)])
    assert float(np.linalg.norm(index.cluster_centers_, axis=1).max()) < 1  # not divided by their length
    assert index.names_ is not None
    assert index.names_.hungarian.tolist() == index.names_.majority.tolist() == [5, 6, 7]
    theirs = NearestCentroid().fit(X, y + 5)
    np.testing.assert_array_equal(index.predict_class(X), theirs.predict(X))
    some = np.where(np.arange(60) < 30, y, -1)
    half = ClusterIndex(inference="prototype").fit(X, some)
    np.testing.assert_allclose(half.cluster_centers_[1], X[:30][y[:30] == 1].mean(0))
    assert len(half.labels_) == 60


def test_one_cluster() -> None:
    X, y = blobs()
    for inference in ("kmeans", "spherical"):
        index = ClusterIndex(1, inference=inference).fit(X + 1, y)
        assert set(index.predict(X + 1)) == {0}
        assert index.names_ is not None
        assert index.names_.majority.tolist() == [0]  # 20 rows of each class
    np.testing.assert_allclose(ClusterIndex(1).fit(X).cluster_centers_, X.mean(0, keepdims=True))
    assert ClusterIndex().fit(X[:1], [4]).predict_class(X[:2]).tolist() == [4, 4]


def test_ties_go_to_the_smallest_number() -> None:
    index = ClusterIndex.from_centroids([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert index.predict([[0.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]).tolist() == [0, 0, 1]


# The number of clusters


def test_silhouette_finds_the_blobs() -> None:
    X, _ = blobs()
    index = ClusterIndex("auto", max_clusters=6, n_init=3).fit(X)
    assert index.n_clusters_ == 3
    assert list(index.silhouettes_) == [2, 3, 4, 5, 6]
    theirs = KMeans(4, n_init=3, random_state=0).fit_predict(X)
    assert index.silhouettes_[4] == pytest.approx(silhouette_score(X, theirs))
    chosen = ClusterIndex(3, n_init=3).fit(X)
    np.testing.assert_array_equal(index.cluster_centers_, chosen.cluster_centers_)
    ball = X + 20  # seen from the origin one direction each way
    spherical = ClusterIndex("auto", inference="spherical", max_clusters=4, n_init=2).fit(ball)
    labels = ClusterIndex(2, inference="spherical", n_init=2).fit_predict(ball)
    assert spherical.silhouettes_[2] == pytest.approx(silhouette_score(ball, labels, metric="cosine"))


def test_silhouette_is_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.inference.silhouette.SAMPLE", 30)
    X, _ = blobs(spread=2.0)
    runs = [ClusterIndex("auto", max_clusters=4, n_init=1, random_state=s).fit(X) for s in (0, 0, 1)]
    assert runs[0].silhouettes_ == runs[1].silhouettes_ != runs[2].silhouettes_
    monkeypatch.setattr("holdfast.inference.silhouette.SAMPLE", 60)
    assert ClusterIndex("auto", max_clusters=4, n_init=1).fit(X).silhouettes_ != runs[0].silhouettes_


@pytest.mark.parametrize("rows", [[[0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0]] * 5])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_too_few_rows_for_a_silhouette(rows: list[list[float]]) -> None:
    with pytest.raises(InvalidArgument, match="n_clusters: need at least 3 rows, not all alike"):
        ClusterIndex("auto").fit(rows)


def test_three_rows_are_enough() -> None:
    index = ClusterIndex("auto").fit([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    assert list(index.silhouettes_) == [2]


# Bad input


def test_more_clusters_than_rows() -> None:
    X, y = blobs()
    with pytest.raises(InvalidArgument, match="n_clusters: need 1 to n_samples = 60, got 61"):
        ClusterIndex(61).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("inference", ["kmeans", "spherical"])
def test_fewer_distinct_rows_than_clusters(inference: Any) -> None:
    X, y = np.repeat([[1.0, 0.0], [0.0, 1.0]], 5, axis=0), np.repeat([3, 4], 5)
    with pytest.warns(HoldfastWarning, match="2 of 4 clusters hold no row"):
        index = ClusterIndex(4, inference=inference).fit(X, y)
    used = np.unique(index.labels_)
    assert len(used) == 2
    assert index.names_ is not None
    assert sorted(index.names_.hungarian.tolist()) == sorted(index.names_.majority.tolist()) == [-1, -1, 3, 4]
    np.testing.assert_array_equal(index.predict_class(X), y)
    assert set(map(tuple, index.cluster_centers_)) == {(1.0, 0.0), (0.0, 1.0)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_must_be_finite(value: float) -> None:
    X, y = blobs()
    index = ClusterIndex().fit(X, y)
    X[4, 1] = value
    for call in (lambda: clone(index).fit(X, y), lambda: index.predict(X), lambda: index.transform(X)):
        with pytest.raises(InvalidArgument, match="X: need finite"):
            call()
    with pytest.raises(InvalidArgument, match="X: need finite"):
        ClusterIndex.from_centroids(X)


def test_queries_of_another_width() -> None:
    index = ClusterIndex().fit(*blobs())
    for call in (index.predict, index.transform, index.score, index.fitted_on, index.predict_class):
        with pytest.raises(InvalidArgument, match="X has 3 features, but ClusterIndex is expecting 2"):
            call(np.zeros((4, 3)))


def test_prototypes_refuse() -> None:
    X, y = blobs()
    for labels in (None, np.full(60, -1)):
        with pytest.raises(InvalidArgument, match="y: need labels: inference by prototypes"):
            ClusterIndex(inference="prototype").fit(X, labels)
    for k in (2, "auto"):
        with pytest.raises(InvalidArgument, match="n_clusters: need None or 3, the number of classes"):
            ClusterIndex(k, inference="prototype").fit(X, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 0}, "n_clusters: need an integer >= 1, 'auto' or None, got 0"),
        ({"n_clusters": 2.0}, "n_clusters: need an integer"),
        ({"n_clusters": True}, "n_clusters: need an integer"),
        ({"n_clusters": "all"}, "n_clusters: need an integer"),
        ({"n_init": 0}, "n_init: need an integer >= 1, got 0"),
        ({"max_clusters": 1}, "max_clusters: need an integer >= 2, got 1"),
        ({"inference": "protoype"}, "did you mean prototype"),
        ({"backend": "sklearm"}, "did you mean sklearn"),
    ],
)
def test_bad_parameters(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ClusterIndex(**changes).fit(*blobs())


@pytest.mark.parametrize("labels", [[0, 1], np.full(60, 0.5), np.full(60, "a"), np.zeros((60, 1))])
def test_bad_labels(labels: Any) -> None:
    with pytest.raises(InvalidArgument, match="y: need"):
        ClusterIndex(3).fit(blobs()[0], labels)


def test_classes_need_names() -> None:
    X, y = blobs()
    with pytest.raises(InvalidArgument, match="names_: need an index that was fitted with labels"):
        ClusterIndex(3).fit(X).predict_class(X)
    with pytest.raises(UnknownName, match="naming"):
        ClusterIndex(3).fit(X, y).predict_class(X, "hungary")  # type: ignore[arg-type]


# Tensors, batches, pipelines


def test_tensors_are_as_arrays() -> None:
    X, y = blobs()
    z = torch.from_numpy(X).float().requires_grad_()
    index = ClusterIndex().fit(z, torch.from_numpy(y))
    np.testing.assert_array_equal(index.labels_, ClusterIndex().fit(z.detach().numpy(), y).labels_)
    np.testing.assert_array_equal(index.predict(z), index.labels_)
    half = ClusterIndex(3).fit(z.bfloat16())
    assert half.cluster_centers_.dtype == np.float32


def test_predictions_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(200, spread=6.0)
    index = ClusterIndex(9, n_init=2).fit(X, y)
    whole, far = index.predict(X), index.transform(X)
    np.testing.assert_array_equal([index.predict(row[None])[0] for row in X], whole)
    monkeypatch.setattr("holdfast.inference.silhouette.CHUNK", 7)
    monkeypatch.setattr("holdfast.inference.index.CHUNK", 7)
    np.testing.assert_array_equal(index.predict(X), whole)
    np.testing.assert_allclose(index.transform(X), far, rtol=1e-12)


def test_in_a_pipeline() -> None:
    X, y = blobs()
    line = make_pipeline(StandardScaler(), ClusterIndex(3))
    assert adjusted_rand_score(y, line.fit_predict(X)) == 1
    assert list(line.get_feature_names_out()) == ["clusterindex0", "clusterindex1", "clusterindex2"]


def test_a_random_state_is_drawn_from() -> None:
    X, _ = blobs(spread=4.0)
    a, b = (ClusterIndex(9, n_init=1, random_state=np.random.RandomState(s)).fit(X) for s in (0, 0))
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)


# Backends


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for("auto", 199_999, False) == "sklearn"
    assert backend_for("auto", 10, True) == "minibatch"
    for spec, name in ((object(), "faiss"), (None, "minibatch")):
        monkeypatch.setattr(backends, "find_spec", lambda _, spec=spec: spec)
        assert backend_for("auto", 200_000, False) == name
    assert backend_for("sklearn", 10**9, True) == "sklearn"


@pytest.mark.parametrize("spherical", [False, True])
def test_memory_mapped_rows_are_read_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spherical: bool
) -> None:
    monkeypatch.setattr(backends, "CHUNK", 500)
    seen: list[int] = []
    partial_fit = MiniBatchKMeans.partial_fit

    def spy(self: Any, X: np.ndarray, *rest: Any) -> Any:
        seen.append(len(X))
        return partial_fit(self, X, *rest)

    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", spy)
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 1001)  # class by class, the order that misleads mini-batches
    X = (3 * np.eye(5)[y] + generator.normal(size=(5005, 5))).astype(np.float32)
    np.save(tmp_path / "z.npy", X)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    inference = "spherical" if spherical else "kmeans"
    index = ClusterIndex(5, inference=inference, n_init=3).fit(mapped, y)
    full = ClusterIndex(5, inference=inference, backend="sklearn", n_init=3).fit(X, y)
    assert (index.backend_, full.backend_) == ("minibatch", "sklearn")
    assert min(seen) >= 500
    assert max(seen) < 1000
    assert sum(seen) % 5005 == 0
    assert full.inertia_ <= index.inertia_ < 1.002 * full.inertia_
    assert (index.predict_class(X) == full.predict_class(X)).mean() > 0.99
    assert index.fingerprint_ == full.fingerprint_
    again = ClusterIndex(5, inference=inference, n_init=3).fit(mapped, y)
    np.testing.assert_array_equal(again.cluster_centers_, index.cluster_centers_)
    if spherical:
        np.testing.assert_allclose(np.linalg.norm(index.cluster_centers_, axis=1), 1, rtol=1e-6)


def test_faiss_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"k-means of FAISS needs faiss; .*holdfast\[faiss\]"):
        ClusterIndex(3, backend="faiss").fit(blobs()[0])


@pytest.mark.parametrize("spherical", [False, True])
def test_faiss_finds_the_same_clusters(spherical: bool) -> None:
    pytest.importorskip("faiss")
    y = np.repeat(np.arange(4), 700)
    X = 3 * np.eye(4)[y] + np.random.default_rng(0).normal(size=(2800, 4))
    inference = "spherical" if spherical else "kmeans"
    index = ClusterIndex(4, inference=inference, backend="faiss", n_init=3).fit(X, y)
    full = ClusterIndex(4, inference=inference, n_init=3).fit(X, y)
    assert index.backend_ == "faiss"
    assert index.cluster_centers_.dtype == np.float64
    assert index.inertia_ == pytest.approx(full.inertia_, rel=1e-3)
    assert (index.predict_class(X) == full.predict_class(X)).mean() > 0.99


@pytest.mark.parametrize("backend", ["sklearn", "minibatch"])
def test_a_row_of_zeros_has_no_direction(backend: Any) -> None:
    X, _ = blobs()
    X[3] = 0
    with pytest.raises(InvalidArgument, match="rows of length > 0"):
        ClusterIndex(3, inference="spherical", backend=backend).fit(X)
    with pytest.raises(InvalidArgument, match="centroids: need rows of length > 0"):
        ClusterIndex.from_centroids(X, spherical=True)


# Given centroids


def test_given_centroids() -> None:
    proxies = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    index = ClusterIndex.from_centroids(proxies, torch.tensor([9, 4]), spherical=True)
    np.testing.assert_allclose(index.cluster_centers_, np.eye(2))
    assert index.predict_class([[0.4, 0.5], [5.0, 4.0]]).tolist() == [4, 9]
    assert isinstance(index.distance, Cosine)
    plain = ClusterIndex.from_centroids(proxies)
    np.testing.assert_array_equal(plain.cluster_centers_, proxies)
    assert plain.names_ is None
    assert not plain.fitted_on(proxies)


# Files


@pytest.mark.parametrize(
    "index",
    [
        ClusterIndex(3),
        ClusterIndex("auto", max_clusters=5, n_init=1),
        ClusterIndex(inference="spherical"),
        ClusterIndex(inference="prototype"),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_saved_and_loaded(tmp_path: Path, index: ClusterIndex, labelled: bool) -> None:
    X, y = blobs()
    if not labelled and index.n_clusters is None:
        pytest.skip("needs labels")
    index = clone(index).fit(X.astype(np.float32) + 1, y if labelled else None)
    index.save(tmp_path / "deep" / "index.npz")
    loaded = ClusterIndex.load(tmp_path / "deep" / "index.npz")
    assert loaded.get_params() == index.get_params()
    assert sorted(vars(loaded)) == sorted(vars(index))
    for name, value in vars(index).items():
        other = getattr(loaded, name)
        if name == "names_" and value is not None:
            assert [n.tolist() for n in value] == [n.tolist() for n in other]
        else:
            np.testing.assert_equal(other, value)
    assert loaded.cluster_centers_.dtype == np.float32
    np.testing.assert_array_equal(loaded.predict(X), index.predict(X))


def test_given_centroids_saved(tmp_path: Path) -> None:
    ClusterIndex.from_centroids(CENTRES, [1, 2, -1]).save(tmp_path / "i.npz")
    assert ClusterIndex.load(tmp_path / "i.npz").predict_class(CENTRES).tolist() == [1, 2, -1]


def test_what_an_index_was_fitted_on(tmp_path: Path) -> None:
    X, y = blobs()
    X = X.astype(np.float32)
    index = ClusterIndex().fit(X, y)
    index.save(tmp_path / "i.npz")
    loaded = ClusterIndex.load(tmp_path / "i.npz")
    assert loaded.fitted_on(X)
    assert loaded.fitted_on(torch.from_numpy(X).double())  # the same numbers in another type
    last = X.copy()
    last[-1, -1] = np.nextafter(last[-1, -1], np.float32(9))
    assert not loaded.fitted_on(last)
    assert loaded.fitted_on(last, exact=False)
    for other in (X[::-1], X[:-1], X + 1, X @ np.array([[0, 1], [1, 0]], np.float32)):
        assert not loaded.fitted_on(other)
        assert not loaded.fitted_on(other, exact=False)


def corrupt(path: Path, **changes: Any) -> Path:
    ClusterIndex(random_state=0).fit(*blobs()).save(path)
    arrays = {**read_arrays(path), **changes}
    write_arrays(path, {name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_centers": None},
        {"cluster_centers": np.zeros(3)},
        {"cluster_centers": np.full((3, 2), np.nan)},
        {"cluster_centers": np.zeros((3, 2), dtype=np.int64)},
        {"labels": None},
        {"labels": np.full(60, 3)},
        {"labels": np.full(60, -1)},
        {"labels": np.zeros(60)},
        {"majority": None},
        {"hungarian": np.zeros(2, dtype=np.int64)},
        {"hungarian": np.zeros(3)},
        {"silhouettes": np.zeros(3)},
        {"header": np.array("{")},
        {"header": np.array('{"estimator": "ClusterIndex", "schema": 1, "parameters": {}}')},
        {"header": np.array('{"estimator": "ClusterIndex", "schema": 1, "parameters": {}, "facts": {}}')},
        {
            "header": np.array(
                '{"estimator": "ClusterIndex", "schema": 1, "parameters": {"n_init": 0}, "facts": '
                '{"inertia": 0, "backend": "", "fingerprint": ""}}'
            )
        },
        {
            "header": np.array(
                '{"estimator": "ClusterIndex", "schema": 1, "parameters": {"model": 0}, "facts": {}}'
            )
        },
    ],
)
def test_corrupt_parts(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = corrupt(tmp_path / "i.npz", **changes)
    with pytest.raises(CorruptFile, match=r"i\.npz: cannot be read"):
        ClusterIndex.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "no header"),
        (np.array("[]"), "holds no ClusterIndex"),
        (np.array('{"estimator": "ARML"}'), "holds no ClusterIndex"),
        (
            np.array('{"estimator": "ClusterIndex", "schema": 9}'),
            "written with schema 9, this version reads 1",
        ),
    ],
)
def test_other_files(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClusterIndex.load(corrupt(tmp_path / "i.npz", header=header))


def test_torn_missing_and_pickled_files(tmp_path: Path) -> None:
    path = corrupt(tmp_path / "i.npz")
    data = path.read_bytes()
    for torn in (data[: len(data) // 2], b"", b"no archive"):
        path.write_bytes(torn)
        with pytest.raises(CorruptFile):
            ClusterIndex.load(path)
    np.savez(path, header=np.array([{}], dtype=object))
    with pytest.raises(CorruptFile):
        ClusterIndex.load(path)
    with pytest.raises(FileNotFoundError):
        ClusterIndex.load(tmp_path / "none.npz")


def test_a_random_state_cannot_be_saved(tmp_path: Path) -> None:
    index = ClusterIndex(random_state=np.random.RandomState(0)).fit(*blobs())
    with pytest.raises(InvalidArgument, match="random_state: need plain data"):
        index.save(tmp_path / "i.npz")
    assert list(tmp_path.iterdir()) == []


# Queries against clusters


class Turned(nn.Module):
    """A linear encoder (n, 1, 1, 2) -> (n, 2) with a dropout that evaluation must switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.layer.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.layer(x.flatten(1)))
        return out


def images(n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % 3
    centres = torch.tensor([[0.1, 0.2], [0.8, 0.2], [0.2, 0.9]])
    x = centres[y] + 0.03 * torch.randn(n, 2, generator=stream(seed, "images"))
    return x.clamp(0, 1).view(n, 1, 1, 2), y


def test_task_against_training_images() -> None:
    encoder = Turned().train()
    (x, y), (references, labels) = images(12, 1), images()
    task = cluster_task(encoder, x, y, references=references, reference_labels=labels + 4)
    assert encoder.training
    assert encoder.layer.weight.grad is None
    z = x.flatten(1).flip(1)
    torch.testing.assert_close(task.z, z)
    index = ClusterIndex().fit(references.flatten(1).flip(1), labels + 4)
    np.testing.assert_array_equal(task.gallery.z, index.cluster_centers_)
    assert task.gallery.y.tolist() == task.gallery.ids.tolist() == [0, 1, 2]
    assert task.cluster_of.tolist() == task.y.tolist() == index.predict(z).tolist()
    assert isinstance(task.distance, SquaredEuclidean)
    assert not task.spherical
    assert task.self_index.tolist() == [-1] * 12
    assert task.index.tolist() == list(range(12))
    assert task.truth.tolist() == y.tolist()
    assert task.names is not None
    assert task.names.hungarian[task.cluster_of].tolist() == (y + 4).tolist()
    assert task.member_of is not None
    np.testing.assert_array_equal(task.member_of, index.labels_)
    assert task.references is references
    expected = retrieval_task(encoder, x, y, gallery=references, gallery_y=labels + 4)
    assert task.images is not None
    assert isinstance(task.images.distance, Euclidean)
    for part in ("z", "y", "self_index", "index"):
        assert torch.equal(getattr(task.images, part), getattr(expected, part))
    assert torch.equal(task.images.gallery.z, expected.gallery.z)
    assert torch.equal(task.images.gallery.y, labels + 4)


def test_queries_that_are_the_references() -> None:
    x, y = images()
    task = cluster_task(Turned(), x, y, references=x)
    assert task.images is not None
    assert task.images.self_index.tolist() == list(range(30))
    assert task.self_index.tolist() == [-1] * 30
    assert task.names is not None
    assert task.names.majority[task.cluster_of].tolist() == y.tolist()
    assert torch.equal(task.images.gallery.y, y)
    scores = retrieval_scores(
        task.images.z, y, task.images.gallery.z, y, task.images.distance, task.images.self_index
    )
    assert bool(scores.recall(1).all())
    copy = cluster_task(Turned(), x, y, references=x.clone(), reference_labels=y)
    assert copy.images is not None
    assert copy.images.self_index.tolist() == [-1] * 30
    assert torch.equal(copy.gallery.z, task.gallery.z)
    other = cluster_task(Turned(), x, y, references=x, reference_labels=y + 1)
    assert other.images is not None
    assert torch.equal(other.images.gallery.y, y + 1)


def test_references_that_are_embeddings() -> None:
    (x, y), (references, labels) = images(12, 1), images()
    z = embed(Turned(), references)
    a = cluster_task(Turned(), x, y, references=z, reference_labels=labels)
    b = cluster_task(Turned(), x, y, references=references, reference_labels=labels)
    assert torch.equal(a.gallery.z, b.gallery.z)
    assert a.references is None
    assert a.member_of is None


def test_without_labels() -> None:
    (x, y), (references, _) = images(12, 1), images()
    with pytest.raises(InvalidArgument, match="n_clusters: need a number"):
        cluster_task(Turned(), x, y, references=references)
    task = cluster_task(Turned(), x, references=references, index=ClusterIndex(3))
    assert task.names is None
    assert task.images is None
    assert task.truth.tolist() == [-1] * 12
    assert len(task.gallery.z) == 3
    some = y.clone()
    some[0] = -1
    task = cluster_task(Turned(), x, some, references=x)
    assert task.names is not None
    assert task.images is None  # Recall@1 of a query without a label means nothing


@pytest.mark.parametrize("inference", ["spherical", "prototype"])
def test_other_inference(inference: Any) -> None:
    (x, y), (references, labels) = images(12, 1), images()
    index = ClusterIndex(inference=inference)
    task = cluster_task(Turned(), x, y, references=references, reference_labels=labels, index=index)
    assert task.spherical == (inference == "spherical")
    assert not hasattr(index, "cluster_centers_")  # a clone is fitted
    assert task.images is not None
    if task.spherical:
        torch.testing.assert_close(task.gallery.z.norm(dim=1), torch.ones(3))
        assert isinstance(task.distance, Cosine)
        assert isinstance(task.images.distance, Cosine)
    else:
        z = references.flatten(1).flip(1)
        torch.testing.assert_close(task.gallery.z, torch.stack([z[labels == k].mean(0) for k in range(3)]))


def test_a_fitted_index_is_used_as_it_is() -> None:
    (x, y), (references, labels) = images(12, 1), images()
    index = ClusterIndex(5, n_init=1).fit_images(Turned(), references, labels)
    np.testing.assert_array_equal(
        index.labels_, ClusterIndex(5, n_init=1).fit(embed(Turned(), references)).labels_
    )
    task = cluster_task(Turned(), x, y, references=references, reference_labels=labels, index=index)
    np.testing.assert_array_equal(task.gallery.z, index.cluster_centers_)
    given = ClusterIndex.from_centroids(index.cluster_centers_)
    named = cluster_task(Turned(), x, y, references=references, reference_labels=labels, index=given)
    assert named.names is not None
    assert task.names is not None
    assert torch.equal(named.names.hungarian, task.names.hungarian)
    with pytest.warns(HoldfastWarning, match="fitted on other embeddings"):
        cluster_task(nn.Flatten(), x, y, references=references, reference_labels=labels, index=index)
    wide = ClusterIndex(2).fit(np.eye(3))
    with pytest.raises(InvalidArgument, match="index: need centroids of width 2, got 3"):
        cluster_task(Turned(), x, y, references=references, reference_labels=labels, index=wide)


def test_rows_of_a_task() -> None:
    x, y = images()
    task = cluster_task(Turned(), x, y, references=x)
    for which in (slice(4, 9), torch.tensor([7, 2])):
        part = task.rows(which)
        assert torch.equal(part.x, x[which])
        assert torch.equal(part.truth, y[which])
        assert torch.equal(part.cluster_of, task.cluster_of[which])
        assert torch.equal(part.y, part.cluster_of)
        assert torch.equal(part.index, task.index[which])
        assert part.images is not None
        assert task.images is not None
        assert torch.equal(part.images.self_index, task.images.self_index[which])
        assert torch.equal(part.images.z, part.z)
        assert part.gallery is task.gallery
        assert part.names is task.names
        assert part.references is x
        assert part.member_of is task.member_of


def test_a_task_does_not_depend_on_the_batch() -> None:
    (x, y), (references, labels) = images(12, 1), images()
    whole, bits = (
        cluster_task(Turned(), x, y, references=references, reference_labels=labels, batch_size=b)
        for b in (256, 5)
    )
    torch.testing.assert_close(whole.gallery.z, bits.gallery.z)
    assert torch.equal(whole.cluster_of, bits.cluster_of)


def test_a_task_refuses() -> None:
    (x, y), (references, labels) = images(12, 1), images()
    with pytest.raises(DataError, match="labels: need one for each of 12 images, got 30"):
        cluster_task(Turned(), x, labels, references=references, reference_labels=labels)
    with pytest.raises(DataError, match="reference_labels: need one for each of 30, got 12"):
        cluster_task(Turned(), x, y, references=references, reference_labels=y)
    with pytest.raises(InvalidArgument, match=r"gallery: need embeddings \(m, 2\)"):
        cluster_task(Turned(), x, y, references=torch.zeros(30, 5), reference_labels=labels)
    with pytest.raises(InvalidArgument, match="n_clusters: need 1 to n_samples = 30"):
        cluster_task(Turned(), x, y, references=references, reference_labels=labels, index=ClusterIndex(31))
    with pytest.raises(DataError, match="at least one image"):
        cluster_task(Turned(), x[:0], y[:0], references=references, reference_labels=labels)


# The package


def test_every_name_can_be_had() -> None:
    assert all(hasattr(holdfast.inference, name) for name in holdfast.inference.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Index'"):
        _ = holdfast.inference.Index


def test_scikit_learn_waits_until_an_index_is_asked_for() -> None:
    code = (
        "import sys, holdfast; from holdfast.inference import cluster_task; a = 'sklearn' in sys.modules; "
        "from holdfast.inference import ClusterIndex; print(a, 'faiss' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False False"
