"""A k-nearest-neighbour classifier under a Mahalanobis metric that certifies its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from ..certify.certificate import Certificate
from ..certify.neighbours import certify_neighbours, find_perturbations
from ..certify.references import References
from ..errors import DataError, InvalidArgument
from ..functional.distance import Mahalanobis
from ..functional.projection import psd_cone
from .arml_plan import device as torch_device
from .arml_storage import fitting, read_parts, whole, write_estimator
from .knn_storage import as_arrays, as_references

Array = NDArray[Any]
CHUNK = 1024


class RobustKNeighborsClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """k nearest neighbours by ``(u - v)^T M (u - v)``, with certified radii in the units of the input.

    Parameters
    ----------
    n_neighbors
        Neighbours that vote, 1 to the number of training rows. **Equal votes go to the smaller label**, the
        one that comes first in ``classes_``; certificates count a tie as lost.
    metric
        None for the Euclidean distance; a (D, D) symmetric positive semi-definite M; or an object with
        ``get_mahalanobis_matrix()``. A learner that is not fitted yet is cloned and fitted on the training
        rows; scikit-learn's ``clone``, and so cross-validation, takes the fit from a fitted one, which
        ``sklearn.frozen.FrozenEstimator`` prevents.
    box
        (low, high): perturbed inputs stay inside, which makes radii larger. Points to certify must lie
        inside; references need not.
    project
        Whether an M that is not positive semi-definite is replaced by the nearest matrix that is.
    method
        Of :meth:`certify`: ``"bound"`` the published triplet bound, ``"tight"``, ``"exact"``, or ``"auto"``;
        see :func:`~holdfast.certify.neighbours.certify_neighbours`.
    time_budget
        Seconds that one call of :meth:`certify` may search for tighter radii, or None.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    n_jobs
        Threads of torch during a call, -1 for all cores; None leaves them as they are.

    Attributes
    ----------
    references_
        The training rows, prepared.
    classes_
        (C,) labels, ascending.
    n_features_in_
        D.

    Raises
    ------
    InvalidArgument
        From ``fit`` (a ``ValueError``): fewer rows than neighbours; an M of a wrong shape, not finite, not
        symmetric, or not positive semi-definite.

    Notes
    -----
    A class smaller than ``n_neighbors`` is allowed; without a strict majority of its own it can be answered,
    but only with a radius of 0. Constant columns are allowed. M may carry the rounding of its own type.

    References
    ----------
    Wang, Liu, Yi, Jiang, Hsieh. Provably Robust Metric Learning. NeurIPS 2020, arXiv 2006.07024.

    Examples
    --------
    >>> knn = RobustKNeighborsClassifier().fit([[0.0], [1.0]], ["left", "right"])
    >>> knn.predict([[0.2]]).tolist()
    ['left']
    >>> round(float(knn.certify([[0.2]], ["left"]).radius), 6)
    0.3
    """

    references_: References
    classes_: Array
    n_features_in_: int

    def __init__(
        self,
        n_neighbors: int = 1,
        *,
        metric: Any = None,
        box: tuple[float, float] | None = None,
        project: bool = False,
        method: Literal["auto", "bound", "tight", "exact"] = "auto",
        time_budget: float | None = None,
        device: str = "cpu",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.box = box
        self.project = project
        self.method = method
        self.time_budget = time_budget
        self.device = device
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Take training rows (n, D) and their labels (n,) as references."""
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        _neighbours(self.n_neighbors, len(rows))
        classes, codes = np.unique(labels, return_inverse=True)
        matrix = _matrix(self.metric, rows, labels, self.project)
        device = torch_device(self.device)
        with _threads(self.n_jobs):
            self.references_ = References.prepare(
                torch.tensor(rows, device=device),
                torch.tensor(codes, device=device),
                None if matrix is None else matrix.to(device),
                box=_box(self.box),
            )
        self.classes_ = classes
        return self

    def _inputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return torch.tensor(X, device=self.references_.centre.device)

    def _coordinates(self, X: ArrayLike) -> Tensor:
        """Coordinates of inputs that may lie outside the box."""
        x, r = self._inputs(X), self.references_
        return r.inside(x) if r.box is None else x - r.centre  # with a box there is no other basis

    def kneighbors(
        self, X: ArrayLike, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[Array, Array] | Array:
        """Return distances under M, ascending, and training rows of the nearest neighbours.

        Parameters
        ----------
        X
            (n, D) points.
        n_neighbors
            How many; by default those that vote.
        return_distance
            Whether distances are returned.

        Returns
        -------
        tuple or array
            (n, k) distances, not squared, and (n, k) row numbers; or the latter alone.
        """
        t, r = self._coordinates(X), self.references_
        k = _neighbours(self.n_neighbors if n_neighbors is None else n_neighbors, len(r))
        with _threads(self.n_jobs):
            rows = r.nearest(t, k)
            if not return_distance:
                return np.asarray(rows.cpu())
            parts = []
            for part, near in zip(torch.split(t, CHUNK), torch.split(rows, CHUNK), strict=True):
                apart = torch.stack([part - r.points[near[:, i]] for i in range(k)], 1)
                parts.append((apart if r.factor is None else apart @ r.factor.T).norm(dim=2))
        return np.asarray(torch.cat(parts).cpu()), np.asarray(rows.cpu())

    def _votes(self, X: ArrayLike) -> Tensor:
        t = self._coordinates(X)
        with _threads(self.n_jobs):
            return self.references_.votes(t, self.n_neighbors)

    def predict(self, X: ArrayLike) -> Array:
        """Return the most frequent label among the nearest neighbours; equal votes: the smaller label."""
        codes = self._votes(X).argmax(1).cpu().numpy()
        out: Array = self.classes_[codes]
        return out

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return (n, C) shares of the votes, columns in the order of ``classes_``."""
        out: Array = (self._votes(X).double() / self.n_neighbors).cpu().numpy()
        return out

    def _codes(self, x: Tensor, y: ArrayLike | None) -> Tensor:
        if y is None:
            return self.references_.predict(x, self.n_neighbors)
        labels = column_or_1d(y)
        if len(labels) != len(x):
            raise InvalidArgument("y", f"a label for each of the {len(x)} points", len(labels))
        unseen = np.setdiff1d(labels, self.classes_)
        if len(unseen):
            raise InvalidArgument("y", "labels that occur in training", unseen.tolist())
        return torch.from_numpy(np.searchsorted(self.classes_, labels)).to(x.device)

    def certify(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        norm: float = 2,
        method: Literal["auto", "bound", "tight", "exact"] | None = None,
    ) -> Certificate:
        """Certify that no perturbation shorter than a radius changes the answers.

        Parameters
        ----------
        X
            (n, D) points, inside the box if there is one.
        y
            (n,) right labels; wrong answers get the radius 0. None certifies the answers as they are.
        norm
            Of perturbations: 2, 1 or infinity.
        method
            Instead of the estimator's.

        Returns
        -------
        Certificate
            Radii in the units of ``X``; ``answer`` holds places in ``classes_``.

        Raises
        ------
        InvalidArgument
            For points outside the box, and labels that training has not seen.
        """
        x = self._inputs(X)
        with _threads(self.n_jobs):
            found = certify_neighbours(
                self.references_,
                x,
                self._codes(x, y),
                k=self.n_neighbors,
                norm=float(norm),
                method=self.method if method is None else method,
                time_budget=self.time_budget,
            )
        return found.cpu()

    def attack(self, X: ArrayLike, y: ArrayLike | None = None) -> tuple[Array, Array]:
        """Look for short l2 perturbations that change right answers.

        Parameters
        ----------
        X
            (n, D) points, inside the box if there is one.
        y
            (n,) right labels; None takes the answers as right.

        Returns
        -------
        tuple
            (n,) lengths, 0 where the answer is wrong already, infinite where nothing was found; and (n, D)
            perturbations.
        """
        x = self._inputs(X)
        with _threads(self.n_jobs):
            norms, moves = find_perturbations(self.references_, x, self._codes(x, y), k=self.n_neighbors)
        return norms.cpu().numpy(), moves.cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier to a safetensors file, which appears whole or not at all.

        The metric is stored as its matrix, and that is what the loaded classifier's ``metric`` is.

        Raises
        ------
        InvalidArgument
            If the labels are neither numbers nor text.
        """
        check_is_fitted(self)
        parameters = {**self.get_params(deep=False), "metric": None, "box": self.references_.box}
        learned = {**as_arrays(self.references_), "classes_": self.classes_}
        if hasattr(self, "feature_names_in_"):
            learned["feature_names_in_"] = self.feature_names_in_
        write_estimator(path, type(self).__name__, parameters, learned)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a classifier that :meth:`save` wrote; nothing in the file is executed.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CorruptFile
            If the file is no safetensors file, is damaged, or its parts do not fit each other.
        DataError
            If it holds something else or was written by another schema.
        """
        path = Path(path)
        header, tensors = read_parts(path)
        if header.get("estimator") != cls.__name__:
            raise DataError(f"{path}: holds {header.get('estimator')!r}, need a {cls.__name__}")
        with fitting(path):
            out = cls(**whole("parameter", header["parameters"], tensors))
            learned = whole("learned", header["learned"], tensors)
            out.box, classes = _box(out.box), np.array(learned["classes_"].tolist())
            r = as_references(learned, len(classes), torch_device(out.device), out.box)
        out.metric = None if r.matrix is None else r.matrix.cpu().numpy()
        out.references_, out.classes_, out.n_features_in_ = r, classes, len(r.centre)
        if "feature_names_in_" in learned:
            out.feature_names_in_ = learned["feature_names_in_"]
        return out


def _neighbours(k: Any, rows: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= rows:
        raise InvalidArgument("n_neighbors", f"an integer between 1 and n_samples = {rows}", k)
    return int(k)


def _box(box: Any) -> tuple[float, float] | None:
    if box is None:
        return None
    try:
        low, high = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("box", "(low, high), or None", box) from error
    if not low < high:
        raise InvalidArgument("box", "low < high", box)
    return low, high


def _matrix(metric: Any, X: Array, y: Array, project: bool) -> Tensor | None:
    """Return M as a float64 tensor, or None."""
    if metric is None:
        return None
    if hasattr(metric, "get_mahalanobis_matrix"):
        try:
            if hasattr(metric, "fit"):
                check_is_fitted(metric)
        except NotFittedError:
            metric = clone(metric).fit(X, y)
        metric = metric.get_mahalanobis_matrix()
    array = np.asarray(metric)
    if array.dtype.kind not in "biuf":
        got = metric if isinstance(metric, str) else f"{type(metric).__name__} of {array.dtype}"
        raise InvalidArgument("metric", "None, real numbers, or an object with get_mahalanobis_matrix()", got)
    if array.shape != (X.shape[1], X.shape[1]):
        raise InvalidArgument("metric", f"a ({X.shape[1]}, {X.shape[1]}) matrix", array.shape)
    m = torch.from_numpy(np.ascontiguousarray(array if array.dtype == np.float32 else array.astype(float)))
    if not bool(torch.isfinite(m).all()):
        raise InvalidArgument("metric", "finite numbers", "NaN or infinity")
    if project:
        return psd_cone(m.double())
    Mahalanobis.from_matrix(m)  # raises what is wrong with M, to the precision of its own type
    return psd_cone(m.double()) if m.dtype == torch.float32 else m


@contextmanager
def _threads(n_jobs: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while; -1 is all cores, -2 all but one."""
    before = torch.get_num_threads()
    if n_jobs is not None:
        if n_jobs == 0:
            raise InvalidArgument("n_jobs", "an integer other than 0, or None", n_jobs)
        torch.set_num_threads(n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)
