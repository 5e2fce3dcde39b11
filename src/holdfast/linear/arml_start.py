"""Where ARML's training starts: the identity, principal directions, discriminants, NCA, or an array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.neighbors import NeighborhoodComponentsAnalysis

from ..errors import InvalidArgument

Array = NDArray[Any]
Start = Callable[[Array, Array, int, int], Array]
"""(rows (n, D), class codes (n,), rank, seed) -> (rank, D)."""

SHRINKAGE = 0.1
"""Share of the mean variance that discriminants add to every direction."""
NCA_ROWS = 2000
"""Most rows that NCA sees: its cost grows with their square."""


def identity(x: Array, y: Array, rank: int, seed: int) -> Array:
    """The Euclidean metric, on the first ``rank`` features only."""
    return np.eye(rank, x.shape[1])


def pca(x: Array, y: Array, rank: int, seed: int) -> Array:
    """The ``rank`` principal directions, unscaled: the Euclidean metric where the rank is full."""
    centred = x - x.mean(0)
    directions: Array = np.linalg.eigh(centred.T @ centred)[1][:, ::-1].T[:rank]
    return directions


def lda(x: Array, y: Array, rank: int, seed: int) -> Array:
    """The ``rank`` best linear discriminants, of unit within-class variance after shrinkage."""
    means = np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])
    within, between = x - means[y], means[y] - x.mean(0)
    scatter = within.T @ within / len(x)
    shrunk = scatter + SHRINKAGE * max(np.trace(scatter) / len(scatter), 1e-12) * np.eye(len(scatter))
    directions: Array = eigh(between.T @ between / len(x), shrunk)[1][:, ::-1].T[:rank]
    return directions


def nca(x: Array, y: Array, rank: int, seed: int) -> Array:
    """Neighbourhood components analysis (scikit-learn), 30 iterations on at most 2 000 rows."""
    rows = np.random.default_rng(seed).permutation(len(x))[:NCA_ROWS]
    first = pca(x, y, rank, seed)
    model = NeighborhoodComponentsAnalysis(rank, init=first, max_iter=30, random_state=seed)
    components: Array = model.fit(x[rows], y[rows]).components_
    return components


STARTS: Mapping[str, Start] = {"identity": identity, "pca": pca, "lda": lda, "nca": nca}
"""Starting points by name; ``"auto"`` is the identity, or ``"pca"`` where the rank is not full."""


def rank_of(n_components: Any, init: Any, width: int) -> int:
    """Return r, the rows of G, from ``n_components``, or from an array ``init``, or else the full width."""
    if n_components is None:
        return np.shape(init)[0] if _is_array(init) and np.ndim(init) == 2 else width
    integer = isinstance(n_components, int | np.integer) and not isinstance(n_components, bool)
    if not integer or not 1 <= n_components <= width:
        raise InvalidArgument(
            "n_components", f"None or an integer in [1, {width}], the number of features", n_components
        )
    return int(n_components)


def start(init: Any, x: Array, y: Array, rank: int, seed: int) -> Array:
    """Return the (rank, D) float64 array that a name stands for, or a checked copy of an array."""
    if isinstance(init, str):
        name = ("identity" if rank == x.shape[1] else "pca") if init == "auto" else init
        if name not in STARTS:
            raise InvalidArgument("init", f"an array, or one of auto, {', '.join(sorted(STARTS))}", init)
        return STARTS[name](np.asarray(x, dtype=np.float64), y, rank, seed)
    try:
        array = np.array(init, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("init", "a name or an array of numbers", type(init).__name__) from error
    if array.shape != (rank, x.shape[1]):
        raise InvalidArgument("init", f"an array of shape {(rank, x.shape[1])}", array.shape)
    if not np.isfinite(array).all() or not array.any():
        raise InvalidArgument("init", "finite numbers, not all of them 0", array)
    return array


def names(init: Any) -> tuple[Any, ...]:
    """Return the starts that ``init`` names: one, or each of a tuple or list of names."""
    several = isinstance(init, tuple | list) and all(isinstance(item, str) for item in init)
    return tuple(init) if several and len(init) else (init,)


def _is_array(init: Any) -> bool:
    return not isinstance(init, str) and not (len(names(init)) > 1 or isinstance(names(init)[0], str))
