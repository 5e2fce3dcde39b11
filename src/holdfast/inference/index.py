"""Clusters of reference embeddings as a scikit-learn clusterer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from warnings import warn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..errors import CorruptFile, HoldfastWarning, InvalidArgument, UnknownName
from ..evaluation.embed import embed
from ..functional.clustering import name_clusters
from ..functional.distance import Cosine, SquaredEuclidean
from ..functional.ranking import chunks
from ..types import ClusterNames, Encoder, Images
from .backends import CHUNK, backend_for, find_centroids
from .prototype import class_labels, prototypes
from .silhouette import by_silhouette, double, nearest
from .storage import check_arrays, fingerprint, read_index, write_index

Array = NDArray[Any]
INFERENCES = ("kmeans", "spherical", "prototype")


class ClusterIndex(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClusterMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Clustering-based inference: clusters of clean references; a query goes to the nearest centroid.

    Our design, after the abstract of the paper (its own inference is not public): centroids are frozen, so
    a query is assigned alone. Arguments ``X`` are embeddings (n, e), finite, as arrays, tensors or
    memory-mapped arrays; results are arrays.

    Parameters
    ----------
    n_clusters
        Number of clusters K, at most the rows; ``None``: the number of classes in the labels; ``"auto"``:
        that of 2 to ``max_clusters`` with the largest silhouette, the smallest of equals.
    inference
        ``"kmeans"``: squared Euclidean distances to means. ``"spherical"``: cosine distances to mean
        directions of length 1. ``"prototype"``: squared Euclidean distances to class means, which are not
        divided by their length whatever the embeddings are, as those of k-means are not; needs labels.
    n_init
        Starts of k-means.
    backend
        Who computes: ``"sklearn"``, ``"minibatch"`` (of scikit-learn, reads in chunks), ``"faiss"``
        (float32; the extra ``faiss``), or ``"auto"``: minibatch for a memory-mapped array, sklearn below
        200,000 rows, and beyond that faiss where it is installed, else minibatch.
    max_clusters
        Largest K that ``"auto"`` tries; at most n - 1 are tried.
    random_state
        Integer, ``RandomState`` or None.

    Attributes
    ----------
    cluster_centers_
        (K, e), of the type of ``X``.
    labels_
        (n,) nearest centroid of every row that was fitted, among equals the one of smallest number.
    inertia_
        Sum of the distances of these rows to their centroids.
    names_
        :class:`~holdfast.types.ClusterNames`, class labels of the clusters; ``None`` without labels. A
        prototype is called by its class, in both ways.
    n_clusters_
        K.
    silhouettes_
        Silhouette of every K that ``"auto"`` tried, in [-1, 1]; empty otherwise.
    backend_
        Who computed; empty for prototypes.
    fingerprint_
        SHA-256 of what was fitted on, see :meth:`fitted_on`; empty for given centroids.
    n_features_in_
        e.

    Raises
    ------
    InvalidArgument
        From ``fit``: rows that are not finite, more clusters than rows, no labels where K or the prototypes
        come from them, too few rows for a silhouette, or a parameter outside its range.
    MissingExtra
        If ``backend`` is ``"faiss"`` and FAISS is not installed.

    Warns
    -----
    HoldfastWarning
        If clusters hold no row, as where fewer distinct rows than K exist: their centroids repeat a row,
        the one of smallest number is assigned, and the others have no name (-1).

    Notes
    -----
    Labels name clusters and, where asked for, give K or prototypes; k-means itself never sees them. A
    negative label means unknown. Silhouettes are taken on at most 2048 rows, the same for every K.

    References
    ----------
    Ke. Towards Adversarially Robust Deep Metric Learning. arXiv 2501.01025 (the problem).

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]]), np.array([4, 4, 2, 2])
    >>> index = ClusterIndex(random_state=0).fit(X, y)
    >>> index.predict_class([[8.0, 0.0], [1.0, 1.0]])
    array([2, 4])
    """

    cluster_centers_: Array
    labels_: Array
    inertia_: float
    names_: ClusterNames | None
    n_clusters_: int
    silhouettes_: dict[int, float]
    backend_: str
    fingerprint_: str
    n_features_in_: int

    def __init__(
        self,
        n_clusters: int | Literal["auto"] | None = None,
        *,
        inference: Literal["kmeans", "spherical", "prototype"] = "kmeans",
        n_init: int = 10,
        backend: Literal["auto", "sklearn", "minibatch", "faiss"] = "auto",
        max_clusters: int = 20,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.inference = inference
        self.n_init = n_init
        self.backend = backend
        self.max_clusters = max_clusters
        self.random_state = random_state

    @property
    def spherical(self) -> bool:
        """Whether directions are compared, by the cosine distance."""
        return self.inference == "spherical"

    @property
    def distance(self) -> SquaredEuclidean | Cosine:
        """The distance to centroids."""
        return Cosine() if self.spherical else SquaredEuclidean()

    @property
    def _n_features_out(self) -> int:
        return self.n_clusters_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = self.inference == "prototype"
        return tags

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> Self:
        """Find clusters of embeddings (n, e); ``y`` (n,) are integer class labels, negative if unknown."""
        self._check_parameters()
        rows = self._rows(X, reset=True)
        labels = class_labels(y, len(rows))
        given = self.random_state
        seed = int(given) if isinstance(given, int | np.integer) else check_random_state(given).randint(2**31)
        self.silhouettes_, self.backend_ = {}, ""
        if self.inference == "prototype":
            self.cluster_centers_, classes = prototypes(rows, labels)
            if self.n_clusters not in (None, len(classes)):
                need = f"None or {len(classes)}, the number of classes, for prototypes"
                raise InvalidArgument("n_clusters", need, self.n_clusters)
        else:
            self.backend_ = backend_for(self.backend, len(rows), isinstance(X, np.memmap))
            self.cluster_centers_ = self._centroids(rows, labels, seed)
        self.n_clusters_ = len(self.cluster_centers_)
        self.labels_, self.inertia_ = nearest(rows, self.cluster_centers_, self.distance)
        if self.inference == "prototype":
            self.names_ = ClusterNames(classes, classes)
        else:
            self._warn_of_empty()
            found = torch.from_numpy(self.labels_)
            self.names_ = None if labels is None else name_clusters(labels, found, self.n_clusters_)
        self.fingerprint_ = fingerprint(rows)
        return self

    def fit_images(
        self, encoder: Encoder, x: Images, y: ArrayLike | Tensor | None = None, batch_size: int = 256
    ) -> Self:
        """Find the clusters of images in the space of an encoder; see :meth:`fit`."""
        return self.fit(embed(encoder, x, batch_size), y)

    def fit_predict(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> Array:
        """Fit, and return ``labels_``."""
        return self.fit(X, y).labels_

    def predict(self, X: ArrayLike | Tensor) -> Array:
        """Return the nearest centroid of every row: (n, e) -> (n,) int64; each row by itself."""
        return self._assigned(X)[0]

    def predict_class(
        self, X: ArrayLike | Tensor, naming: Literal["hungarian", "majority"] = "hungarian"
    ) -> Array:
        """Return the class label of the nearest centroid, -1 where it has no name: (n, e) -> (n,)."""
        check_is_fitted(self)
        if naming not in ClusterNames._fields:
            raise UnknownName("naming", naming, ClusterNames._fields)
        if self.names_ is None:
            raise InvalidArgument("names_", "an index that was fitted with labels", None)
        out: Array = getattr(self.names_, naming).cpu().numpy()[self.predict(X)]
        return out

    def transform(self, X: ArrayLike | Tensor) -> Array:
        """Return distances to all centroids, (n, e) -> (n, K): Euclidean, not squared, or cosine."""
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        centers = torch.from_numpy(self.cluster_centers_).double()
        parts = [self.distance.matrix(double(rows[part]), centers) for part in chunks(len(rows), CHUNK)]
        d = torch.cat(parts)
        out: Array = (d if self.spherical else d.sqrt()).numpy().astype(rows.dtype)
        return out

    def score(self, X: ArrayLike | Tensor, y: Any = None) -> float:
        """Return minus the sum of the distances to the nearest centroids, as ``KMeans`` does."""
        return -self._assigned(X)[1]

    def fitted_on(self, X: ArrayLike | Tensor, *, exact: bool = True) -> bool:
        """Return whether the index was built from these embeddings.

        Parameters
        ----------
        X
            (n, e) embeddings.
        exact
            All of them, in this order, to the last bit of float32, by ``fingerprint_``. Otherwise up to the
            rounding of another device or batch size: as many rows, of which 99 % have the cluster they had,
            and ``inertia_`` within 1 % (and one millionth of the sum of squared lengths).
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        if not self.fingerprint_ or len(rows) != len(self.labels_):
            return False
        if exact:
            return fingerprint(rows) == self.fingerprint_
        labels, inertia = nearest(rows, self.cluster_centers_, self.distance)
        squares = float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
        near = abs(inertia - self.inertia_) <= 0.01 * self.inertia_ + 1e-6 * squares
        return bool(near and (labels == self.labels_).mean() >= 0.99)

    @classmethod
    def from_centroids(
        cls, centroids: ArrayLike | Tensor, names: ArrayLike | Tensor | None = None, spherical: bool = False
    ) -> Self:
        """Return an index of given centroids, such as learned proxies.

        Parameters
        ----------
        centroids
            (K, e); divided by their length if ``spherical``.
        names
            (K,) class labels, -1 for none.
        spherical
            Whether the cosine distance counts.
        """
        out = cls(inference="spherical" if spherical else "kmeans")
        rows = out._rows(centroids, reset=True)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if spherical and not lengths.all():
            raise InvalidArgument("centroids", "rows of length > 0, for directions are compared", 0.0)
        out.n_clusters = out.n_clusters_ = len(rows)
        out.cluster_centers_ = rows / lengths if spherical else rows.copy()
        labels = None if names is None else class_labels(names, len(rows))
        out.names_ = None if labels is None else ClusterNames(labels, labels)
        out.labels_, out.inertia_ = np.empty(0, dtype=np.int64), 0.0
        out.silhouettes_, out.backend_, out.fingerprint_ = {}, "", ""
        return out

    def save(self, path: str | Path) -> None:
        """Write the fitted index to an .npz file, which appears whole or not at all; nothing is pickled.

        Raises
        ------
        InvalidArgument
            If ``random_state`` is a ``RandomState``.
        """
        check_is_fitted(self)
        arrays = {"cluster_centers": self.cluster_centers_, "labels": self.labels_}
        if self.names_ is not None:
            arrays |= {name: value.cpu().numpy() for name, value in self.names_._asdict().items()}
        if self.silhouettes_:
            arrays["silhouettes"] = np.array(list(self.silhouettes_.items()))
        if hasattr(self, "feature_names_in_"):
            arrays["feature_names_in"] = self.feature_names_in_.astype(str)
        facts = {"inertia": self.inertia_, "backend": self.backend_, "fingerprint": self.fingerprint_}
        write_index(path, self.get_params(deep=False), facts, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an index that :meth:`save` wrote; nothing in the file is executed.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CorruptFile
            If the file is no archive of plain arrays, is damaged, or its parts do not fit each other.
        DataError
            If it holds something else or was written by another schema.
        """
        parameters, facts, arrays = read_index(path)
        try:
            out = cls(**parameters)
            out._check_parameters()
            out._restore(facts, arrays)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise CorruptFile(path, None, f"its parts do not fit each other: {error!r}") from error
        return out

    def _restore(self, facts: dict[str, Any], arrays: dict[str, Array]) -> None:
        check_arrays(arrays)
        self.cluster_centers_, self.labels_ = arrays["cluster_centers"], arrays["labels"]
        self.n_clusters_, self.n_features_in_ = self.cluster_centers_.shape
        named = "hungarian" in arrays
        parts = [torch.from_numpy(arrays[name]) for name in ClusterNames._fields] if named else []
        self.names_ = ClusterNames(*parts) if named else None
        self.silhouettes_ = {int(key): float(value) for key, value in arrays.get("silhouettes", ())}
        self.inertia_, self.backend_ = float(facts["inertia"]), str(facts["backend"])
        self.fingerprint_ = str(facts["fingerprint"])
        if "feature_names_in" in arrays:
            self.feature_names_in_ = arrays["feature_names_in"].astype(object)

    def _check_parameters(self) -> None:
        if self.inference not in INFERENCES:
            raise UnknownName("inference", self.inference, INFERENCES)
        backend_for(self.backend, 0, False)
        k = self.n_clusters
        if not (k is None or k == "auto" or _counts(k, 1)):
            raise InvalidArgument("n_clusters", "an integer >= 1, 'auto' or None", k)
        if not _counts(self.n_init, 1):
            raise InvalidArgument("n_init", "an integer >= 1", self.n_init)
        if not _counts(self.max_clusters, 2):
            raise InvalidArgument("max_clusters", "an integer >= 2", self.max_clusters)

    def _rows(self, X: ArrayLike | Tensor, reset: bool) -> Array:
        """Return embeddings as an array; a memory-mapped one is not read into memory."""
        if isinstance(X, Tensor):
            X = X.detach().cpu()
            X = (X if X.dtype in (torch.float32, torch.float64) else X.float()).numpy()
        try:
            rows: Array = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        except ValueError as error:
            got = getattr(X, "shape", type(X).__name__)
            raise InvalidArgument("X", f"finite embeddings (n, e) ({error})", got) from error
        return rows

    def _assigned(self, X: ArrayLike | Tensor) -> tuple[Array, float]:
        check_is_fitted(self)
        return nearest(self._rows(X, reset=False), self.cluster_centers_, self.distance)

    def _centroids(self, rows: Array, labels: Tensor | None, seed: int) -> Array:
        def find(k: int) -> Array:
            return find_centroids(
                rows, k, backend=self.backend_, spherical=self.spherical, seed=seed, n_init=self.n_init
            )

        if self.n_clusters == "auto":
            found, self.silhouettes_ = by_silhouette(rows, find, self.distance, self.max_clusters, seed)
            return found
        if self.n_clusters is not None:
            k = int(self.n_clusters)
        elif labels is not None:
            k = len(torch.unique(labels[labels >= 0]))
        else:
            raise InvalidArgument("n_clusters", "a number or 'auto' for references without labels", None)
        if k > len(rows):
            raise InvalidArgument("n_clusters", f"1 to n_samples = {len(rows)}", k)
        return find(k)

    def _warn_of_empty(self) -> None:
        empty = int((np.bincount(self.labels_, minlength=self.n_clusters_) == 0).sum())
        if empty:
            warn(
                f"{empty} of {self.n_clusters_} clusters hold no row; are there as many distinct rows?",
                HoldfastWarning,
                stacklevel=3,
            )


def _counts(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
