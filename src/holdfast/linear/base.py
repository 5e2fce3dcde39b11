"""What every learner of a linear metric offers: transform, distances, certificates, and files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ..errors import CorruptFile, DataError, InvalidArgument, told
from .arml_storage import fitting, read_parts, whole, write_estimator

if TYPE_CHECKING:
    from ..certify import Certificate

Array = NDArray[Any]
ESTIMATORS: Mapping[str, str] = {
    "ARML": "holdfast.linear.arml",
    "RobustPrototypes": "holdfast.linear.prototypes",
}
"""Estimators that a file may name, and the module that holds each; nothing else is built from a file."""


class MahalanobisMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):  # type: ignore[misc]
    """Methods of a fitted linear metric ``d(u, v) = ||G (u - v)||_2`` with ``G = components_``.

    A learner derives from this and from scikit-learn's ``BaseEstimator``; its ``fit`` sets ``components_``
    (r, D) and calls :meth:`_remember`. Method names are those of metric-learn.
    """

    components_: Array
    references_: Array
    reference_labels_: Array
    n_features_in_: int

    def _remember(self, X: Array, y: Array) -> None:
        """Keep the training rows (n, D) and labels (n,) as the references of :meth:`certify`."""
        self.references_, self.reference_labels_ = X, y

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: ArrayLike) -> Array:
        """Return ``X @ components_.T``: Euclidean distances there are the learned ones, (n, D) -> (n, r)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        out: Array = rows @ self.components_.astype(rows.dtype, copy=False).T
        return out

    def pair_distance(self, pairs: ArrayLike) -> Array:
        """Return the learned distance of each pair: (n, 2, D) -> (n,) float64, >= 0.

        Raises
        ------
        InvalidArgument
            If ``pairs`` is not of that shape or not finite.
        """
        check_is_fitted(self)
        try:
            array = check_array(pairs, allow_nd=True, ensure_2d=False, dtype=np.float64, input_name="pairs")
        except ValueError as error:
            raise InvalidArgument("pairs", f"finite numbers ({told(error)})", type(pairs).__name__) from error
        if array.ndim != 3 or array.shape[1:] != (2, self.n_features_in_):
            raise InvalidArgument("pairs", f"the shape (n, 2, {self.n_features_in_})", array.shape)
        out: Array = np.linalg.norm((array[:, 1] - array[:, 0]) @ self.components_.T, axis=1)
        return out

    def score_pairs(self, pairs: ArrayLike) -> Array:
        """Return :meth:`pair_distance`, under metric-learn's older name."""
        return self.pair_distance(pairs)

    def pair_score(self, pairs: ArrayLike) -> Array:
        """Return a similarity, larger for more similar pairs: minus :meth:`pair_distance`."""
        return -self.pair_distance(pairs)

    def get_mahalanobis_matrix(self) -> Array:
        """Return M = G^T G, (D, D) float64, symmetric and positive semi-definite."""
        check_is_fitted(self)
        factor = np.asarray(self.components_, dtype=np.float64)
        out: Array = factor.T @ factor
        return out

    def get_metric(self) -> Callable[..., float]:
        """Return ``distance(u, v, squared=False)`` of two vectors (D,); it keeps its own copy of G.

        It can be given to scikit-learn's neighbours and clusterings as ``metric``.
        """
        check_is_fitted(self)
        factor = np.array(self.components_, dtype=np.float64)

        def distance(u: ArrayLike, v: ArrayLike, squared: bool = False) -> float:
            u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
            if u.shape != v.shape or u.shape != factor.shape[1:]:
                raise InvalidArgument("u, v", f"two vectors ({factor.shape[1]},)", (u.shape, v.shape))
            moved = factor @ (u - v)
            value = float(moved @ moved)
            return value if squared else value**0.5

        return distance

    def certify(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        n_neighbors: int = 1,
        norm: float = 2,
        **options: Any,
    ) -> Certificate:
        """Certify k-nearest-neighbour answers under this metric, with the training rows as references.

        Parameters
        ----------
        X
            (n, D) points in the input space of this estimator.
        y
            (n,) their labels; without labels the predictions themselves are certified.
        n_neighbors
            Neighbours that vote.
        norm
            Norm of the perturbation: 1, 2 or infinity.
        **options
            Further arguments of :class:`~holdfast.linear.knn.RobustKNeighborsClassifier`, such as ``method``,
            ``box`` or ``device``.

        Returns
        -------
        Certificate
            Radii in the units of ``X``.
        """
        from .knn import RobustKNeighborsClassifier

        check_is_fitted(self)
        if getattr(self, "references_", None) is None:
            raise InvalidArgument("references_", "training rows; this file was saved without them", None)
        classifier = RobustKNeighborsClassifier(n_neighbors, metric=self, **options)
        classifier.fit(self.references_, self.reference_labels_)
        out: Certificate = classifier.certify(X, y, norm=norm)
        return out

    def save(self, path: str | Path, *, references: bool = True) -> None:
        """Write the fitted estimator to a safetensors file, which appears whole or not at all.

        Arrays are tensors; parameters, and what else ``fit`` learned, are JSON in the header. Nothing is
        pickled.

        Parameters
        ----------
        path
            The file.
        references
            Whether the training rows go along; without them the loaded estimator cannot :meth:`certify`.

        Raises
        ------
        InvalidArgument
            If the class stands not in :data:`ESTIMATORS`, or a parameter or an attribute is neither an array
            of numbers nor plain data (such as a ``RandomState``).
        """
        check_is_fitted(self)
        name = type(self).__name__
        if ESTIMATORS.get(name) != type(self).__module__:
            raise InvalidArgument("estimator", f"one of {', '.join(sorted(ESTIMATORS))}", name)
        learned = {key: value for key, value in vars(self).items() if key.endswith("_") and key[0] != "_"}
        if not references:
            learned.update(references_=None, reference_labels_=None)
        write_estimator(path, name, self.get_params(deep=False), learned)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an estimator that :meth:`save` wrote; nothing in the file is executed.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CorruptFile
            If the file is no safetensors file, is damaged, or its parts do not fit each other.
        DataError
            If it holds something else, was written by another schema, names an estimator that stands not in
            :data:`ESTIMATORS`, or one that is not a ``cls``.
        """
        path = Path(path)
        header, tensors = read_parts(path)
        name = header.get("estimator")
        if not isinstance(name, str) or name not in ESTIMATORS:
            raise DataError(f"{path}: holds {name!r}, known are {', '.join(sorted(ESTIMATORS))}")
        kind = getattr(importlib.import_module(ESTIMATORS[name]), name)
        if not issubclass(kind, cls):
            raise DataError(f"{path}: holds an estimator {name}, not a {cls.__name__}")
        with fitting(path):
            estimator: Self = kind(**whole("parameter", header["parameters"], tensors))
            learned = whole("learned", header["learned"], tensors)
        estimator.__dict__.update(learned)
        _check(path, learned)
        return estimator


def _check(path: Path, learned: Mapping[str, Any]) -> None:
    """Refuse tensors that do not fit each other."""
    factor, width = learned.get("components_"), learned.get("n_features_in_")
    if not isinstance(factor, np.ndarray) or factor.ndim != 2 or factor.shape[1] != width:
        raise CorruptFile(path, None, f"need components_ (r, {width})")
    if factor.dtype.kind not in "fiu" or not np.isfinite(factor).all():
        raise CorruptFile(path, None, "components_ holds values that are not finite numbers")
    rows, labels = learned.get("references_"), learned.get("reference_labels_")
    if rows is None and labels is None:
        return
    if not (
        isinstance(rows, np.ndarray) and isinstance(labels, np.ndarray) and rows.shape == (labels.size, width)
    ):
        raise CorruptFile(path, None, f"need references_ (n, {width}) and as many reference_labels_")
    if rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
        raise CorruptFile(path, None, "references_ holds values that are not finite numbers")
