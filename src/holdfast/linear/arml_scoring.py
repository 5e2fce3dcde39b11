"""Certified radii as a score for cross-validation and grid search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import ArrayLike
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from ..certify import Certificate
from ..errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class CertifiedRadiusScorer:
    """Score an estimator by what it certifies on held-out rows; larger is better.

    Attributes
    ----------
    radius
        None: ``statistic`` of the radii. Otherwise the share of rows that are right and certified beyond
        this radius.
    statistic
        ``"median"`` or ``"mean"`` of the radii, wrong rows counted as 0.
    n_neighbors
        Neighbours that vote, where the estimator does not say.
    options
        Further arguments of ``certify``, such as ``norm`` or ``method``.
    """

    radius: float | None = None
    statistic: Literal["median", "mean"] = "median"
    n_neighbors: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.statistic not in ("median", "mean"):
            raise InvalidArgument("statistic", "'median' or 'mean'", self.statistic)
        if self.radius is not None and not 0 <= self.radius < math.inf:
            raise InvalidArgument("radius", "a finite number >= 0, or None", self.radius)

    def __call__(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> float:
        """Return the score of a fitted estimator."""
        certificate = certify_last(estimator, X, y, self.n_neighbors, self.options)
        if self.radius is not None:
            return certificate.accuracy_at(self.radius)
        return certificate.median() if self.statistic == "median" else float(certificate.radius.mean())


def certified_radius_scorer(
    radius: float | None = None,
    *,
    statistic: Literal["median", "mean"] = "median",
    n_neighbors: int = 1,
    **options: Any,
) -> CertifiedRadiusScorer:
    """Return a scorer for ``GridSearchCV(..., scoring=...)`` and ``cross_val_score``.

    It takes a linear metric such as :class:`~holdfast.linear.ARML`, a classifier with ``certify``, or a
    pipeline that ends in one of these, or in a metric and scikit-learn's ``KNeighborsClassifier`` on its
    Euclidean distance with uniform weights. Radii are in the units of that last step's input: behind a
    scaler, those of the scaled features. A label that training has not seen is an error: give
    cross-validation a ``StratifiedKFold``; scikit-learn stratifies by itself only for classifiers.

    Parameters
    ----------
    radius
        None for the ``statistic`` of the radii; otherwise the certified accuracy at this radius.
    statistic
        ``"median"`` or ``"mean"``.
    n_neighbors
        Neighbours that vote where the estimator is a metric.
    **options
        Further arguments of ``certify``; ``method="bound"`` is the fastest.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import StratifiedKFold, cross_val_score
    >>> from holdfast.linear import ARML
    >>> X, y = load_iris(return_X_y=True)
    >>> score = certified_radius_scorer(0.1, method="bound")
    >>> scores = cross_val_score(ARML(random_state=0), X, y, scoring=score, cv=StratifiedKFold(3))
    >>> bool((scores > 0.7).all())
    True
    """
    return CertifiedRadiusScorer(radius=radius, statistic=statistic, n_neighbors=n_neighbors, options=options)


def certify_last(
    estimator: Any, X: ArrayLike, y: ArrayLike, n_neighbors: int, options: Mapping[str, Any]
) -> Certificate:
    """Certify with the last part of an estimator that can, on what the parts before make of X."""
    if isinstance(estimator, Pipeline):
        last, before = estimator[-1], estimator[:-1]
        if _is_plain_vote(last) and len(before) and hasattr(before[-1], "get_mahalanobis_matrix"):
            n_neighbors, last, before = last.n_neighbors, before[-1], before[:-1]
        inner = before.transform(X) if len(before) else X
        return certify_last(last, inner, y, n_neighbors, options)
    if not hasattr(estimator, "certify"):
        raise InvalidArgument("estimator", "a metric or classifier with certify", type(estimator).__name__)
    metric = {"n_neighbors": n_neighbors} if hasattr(estimator, "get_mahalanobis_matrix") else {}
    out: Certificate = estimator.certify(X, y, **metric, **options)
    return out


def _is_plain_vote(estimator: Any) -> bool:
    if not isinstance(estimator, KNeighborsClassifier):
        return False
    euclidean: bool = estimator.metric == "euclidean" or (
        estimator.metric == "minkowski" and estimator.p == 2
    )
    uniform: bool = estimator.weights == "uniform"
    return euclidean and uniform
