"""Learners to compare, all as functions from a table to a matrix M, or to M and references; recorded figures.

Distances are d(a, b)^2 = (a - b)^T M (a - b).
"""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata, resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import HoldfastError, MissingExtra, UnknownName

Matrix = NDArray[np.float64]


class Learned(NamedTuple):
    """What a method learned.

    Attributes
    ----------
    matrix
        (d, d) M.
    x, y
        References (r, d) and their labels (r,), which answer by the nearest alone whatever K; or None for the
        training points and K votes.
    """

    matrix: Matrix
    x: NDArray[Any] | None = None
    y: NDArray[Any] | None = None


MetricLearner = Callable[[NDArray[Any], NDArray[Any], int], Matrix | Learned]
"""(n, d) features, (n,) labels, random state -> (d, d) symmetric positive semi-definite, or more."""
_SLACK = 1e-8  # of the smallest eigenvalue, relative to the largest


class MethodFailed(HoldfastError):
    """A method could not learn a usable metric; the message says why in one line."""


def learn(name: str, x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Learned:
    """Learn a metric, and perhaps references, by name and check them.

    Parameters
    ----------
    name
        A name of ``METHODS``.
    x, y
        (n, d) features and (n,) labels.
    random_state
        Of the methods in ``STOCHASTIC``.

    Returns
    -------
    Learned
        The matrix as in :func:`checked`.

    Raises
    ------
    UnknownName
        If there is no such method.
    MissingExtra
        If metric-learn is needed and not installed.
    MethodFailed
        If the method gives up, or its matrix is no metric.

    Examples
    --------
    >>> learn("euclidean", np.zeros((4, 2)), np.array([0, 0, 1, 1])).matrix.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    return complete(name, METHODS[name](x, y, random_state))


def complete(name: str, found: Matrix | Learned) -> Learned:
    """Return what a method learned in full, its matrix checked."""
    learned = found if isinstance(found, Learned) else Learned(found)
    return learned._replace(matrix=checked(name, learned.matrix))


def checked(name: str, m: Any) -> Matrix:
    """Return M made exactly symmetric, or say why it is no metric.

    Eigenvalues below zero by rounding (1e-8 of the largest) are set to 0; anything below that is refused.

    Raises
    ------
    MethodFailed
        If M is not a square, real, finite, symmetric and positive semi-definite matrix, or is 0.
    """
    m = np.asarray(m)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise MethodFailed(f"{name}: need a square matrix, got shape {m.shape}")
    if np.iscomplexobj(m) and not np.abs(m.imag).max() <= 1e-12 * max(np.abs(m.real).max(), 1e-300):
        raise MethodFailed(f"{name}: the matrix is complex{' and holds NaN' * bool(np.isnan(m).any())}")
    m = np.asarray(m.real, dtype=np.float64)
    if not np.isfinite(m).all():
        raise MethodFailed(f"{name}: the matrix holds NaN or infinity")
    size = float(np.abs(m).max())
    if size == 0:
        raise MethodFailed(f"{name}: the matrix is 0, all distances vanish")
    if float(np.abs(m - m.T).max()) > _SLACK * size:
        raise MethodFailed(f"{name}: the matrix is not symmetric")
    m = (m + m.T) / 2
    values, vectors = np.linalg.eigh(m)
    if values[0] < -_SLACK * values[-1]:
        raise MethodFailed(f"{name}: the matrix has the negative eigenvalue {values[0]:.3g}")
    return np.asarray((vectors * values.clip(0)) @ vectors.T if values[0] < 0 else m, dtype=np.float64)


def euclidean(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Matrix:
    """Return the identity: no learning."""
    return np.eye(x.shape[1])


def nca(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Matrix:
    """Return the metric of scikit-learn's NCA from the identity, at most 50 iterations.

    References
    ----------
    Goldberger et al., *Neighbourhood Components Analysis*, NIPS 2004.
    """
    from sklearn.neighbors import NeighborhoodComponentsAnalysis

    learner = NeighborhoodComponentsAnalysis(init="identity", max_iter=50, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of not having converged
        components = learner.fit(x, y).components_
    return np.asarray(components.T @ components)


def _metric_learn(name: str, title: str) -> MetricLearner:
    def learn_it(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Matrix:
        try:  # an optional package
            module: Any = importlib.import_module("metric_learn")
        except ImportError as error:
            raise MissingExtra("metric-learn", "bench", title.partition(" ")[0]) from error
        kind = getattr(module, name)
        seeded = "random_state" in inspect.signature(kind).parameters
        learner = kind(random_state=random_state) if seeded else kind()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.asarray(learner.fit(x, y).get_mahalanobis_matrix())
        except TypeError as error:
            if "force_all_finite" not in str(error):
                raise MethodFailed(f"{name}: metric-learn failed: {error}") from error
            theirs, ours = metadata.version("metric-learn"), metadata.version("scikit-learn")
            raise MethodFailed(
                f"{name}: metric-learn {theirs} does not run with scikit-learn {ours}; it needs < 1.8"
            ) from error
        except (ValueError, ArithmeticError, np.linalg.LinAlgError, RuntimeError, IndexError) as error:
            raise MethodFailed(f"{name}: metric-learn failed: {error}") from error

    learn_it.__doc__ = f"Return the metric of {title} by metric-learn with its defaults."
    return learn_it


def arml(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Matrix:
    """Return the metric of ARML by the published schedule; see :class:`holdfast.linear.ARML`."""
    from .arml import ARML

    return np.asarray(ARML(mode="published", random_state=random_state).fit(x, y).get_mahalanobis_matrix())


def arml_fast(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Matrix:
    """Return the metric of :class:`holdfast.linear.ARML` with its default, faster schedule."""
    from .arml import ARML

    return np.asarray(ARML(random_state=random_state).fit(x, y).get_mahalanobis_matrix())


def holdfast(x: NDArray[Any], y: NDArray[Any], random_state: int = 0) -> Learned:
    """Return metric and references of :class:`holdfast.linear.RobustPrototypes`."""
    from .prototypes import RobustPrototypes

    model = RobustPrototypes(random_state=random_state).fit(x, y)
    return Learned(model.get_mahalanobis_matrix(), model.references_, model.reference_labels_)


METHODS: Mapping[str, MetricLearner] = {
    "euclidean": euclidean,
    "nca": nca,
    "lmnn": _metric_learn("LMNN", "LMNN (Weinberger and Saul, JMLR 2009)"),
    "itml": _metric_learn("ITML_Supervised", "ITML (Davis et al., ICML 2007)"),
    "lfda": _metric_learn("LFDA", "LFDA (Sugiyama, JMLR 2007)"),
    "arml": arml,
    "arml-fast": arml_fast,
    "holdfast": holdfast,
}
"""Metric learners by name."""

STOCHASTIC = frozenset({"itml", "arml", "arml-fast", "holdfast"})
"""Methods whose metric depends on the random state; the others are learned once."""


def recorded(dataset: str) -> dict[str, Any] | None:
    """Return figures of the methods measured elsewhere, or None where there are none for a data set.

    They were measured with metric-learn 0.7.0 under scikit-learn 1.5.2 by the published protocol and the
    published certificates, on the whole test part of :func:`holdfast.data.tabular.load_table`.

    Returns
    -------
    dict
        ``provenance``, ``n_test``, ``radii`` and ``methods``: name -> K -> ``clean_error``, ``median``,
        ``certified_error`` (one for each radius) and ``certificate``; or name -> ``failed``.

    Examples
    --------
    >>> recorded("digits")["methods"]["lmnn"]["1"]["median"]
    0.4509
    """
    text = resources.files(__package__).joinpath("competitors-2026-11.json").read_text(encoding="utf-8")
    file = json.loads(text)
    if dataset not in file["datasets"]:
        return None
    return {"provenance": file["provenance"], **file["datasets"][dataset]}
