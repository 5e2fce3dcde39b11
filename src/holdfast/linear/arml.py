"""ARML as a scikit-learn estimator: a linear metric trained for certified nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import Progress
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from ..errors import InvalidArgument, told
from ..rng import stream
from . import arml_plan, arml_start
from .arml_training import Learned, learn, watched_rows
from .base import MahalanobisMixin

Array = NDArray[Any]
NOISE = 0.1
"""Size of the noise that restarts beyond the named starts add, relative to the start."""


class ARML(MahalanobisMixin, BaseEstimator):  # type: ignore[misc]
    r"""Adversarially robust metric learning: maximise the certified radii of nearest-neighbour answers.

    Learns G, and with it ``M = G^T G``, by minimising the mean over anchors of a loss of the triplet margin

    .. math:: \frac{d_M(z, c) - d_M(z, a)}{2 \lVert M (a - c) \rVert_2},

    the l2 length of the smallest perturbation of z that makes c nearer than a, where a is one of the near
    rows of z's class and c one of the near rows of the others.

    Parameters
    ----------
    n_components
        Rows r of G; fewer than the features give a metric of low rank. None: all features, or the rows of an
        array ``init``.
    mode
        ``"default"``, or ``"published"``: the schedule of the paper's code. They set what is left None below.

        ==================== ================================================== ===========
        parameter            default                                            published
        ==================== ================================================== ===========
        loss                 neg                                                neg
        triplets             sampled                                            sampled
        n_candidates         10                                                 10
        refresh              10; with batches a quarter of the epochs            1
        epochs               200; with batches as many as give 300 steps        1000
        lr                   0.003; with batches 0.01                           0.001
        schedule             cosine                                             constant
        batch_size           all rows up to 8192 of them, else 4096             all rows
        normalize_scale      True                                               False
        least denominator    2e-6, of data scaled to unit length                2e-3
        ==================== ================================================== ===========
    loss
        Of a margin m: ``"neg"`` -m; ``"hinge"`` max(0, calibration - m); ``"exp"`` exp(-m); ``"logistic"``
        log(1 + exp(-m)).
    calibration
        Target radius of the hinge, in input units, > 0.
    triplets
        ``"sampled"``: a uniformly drawn positive and negative candidate; ``"nearest"``: the nearest of each;
        ``"binding"``: the triplet that attains the certified radius among the candidates.
    n_candidates
        Near rows of the own class and of the others that are candidates; at most the class size - 1.
    refresh
        Epochs between searches for candidates.
    epochs
        Passes over the anchors; one step each unless there are batches.
    lr, schedule
        Adam's rate and its course: ``"constant"``, or ``"cosine"`` down to 0.
    batch_size
        Anchors in a step; a number >= the rows means all.
    init
        Where training starts: ``"identity"`` (of the first r features), ``"pca"``, ``"lda"``, ``"nca"``,
        ``"auto"`` (identity, or pca where the rank is low), an array (r, D), or a tuple of names, each of
        which is tried.
    normalize_scale
        Whether G keeps the Frobenius norm sqrt(r); certified radii do not depend on it.
    validation_fraction
        Share of each class that is held out of training; the G with the largest median certified radius on
        it is kept. All rows remain references of :meth:`certify`. 0: nothing is held out, the last G counts.
    patience
        Stop after this many evaluations (about 10 in a training) without a larger radius; None: never.
    restarts
        Trainings, of which the best on the held-out rows is kept, or else the one of least final loss. The
        first ones start from the names of ``init``, further ones from these plus noise.
    tol
        Stop when the mean loss between two searches changes by no more than this share; 0: never.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    dtype
        ``"float32"`` or ``"float64"``, of training; the result is float64.
    random_state
        Integer, ``RandomState`` or None.
    verbose
        Whether a progress bar is shown on standard error.
    warm_start
        Whether ``fit`` starts from the ``components_`` of the last one, where their shape fits.

    Attributes
    ----------
    components_
        (r, D) float64, the factor G.
    n_features_in_
        D.
    classes_
        The labels.
    n_iter_
        Epochs of the training that was kept.
    history_
        List of ``{"epoch", "loss"}`` at every search for candidates, with ``"radius"`` (median) and
        ``"error"`` where held-out rows were evaluated.
    references_, reference_labels_
        The training rows and labels, not copied where their type allows.

    Raises
    ------
    InvalidArgument
        From ``fit``: data that are not finite, fewer than two classes, no class of two members, or a
        parameter outside its range.

    Notes
    -----
    A class of one member gives no anchor, for it has no positive; its member is a negative and a reference.
    The published code draws "positives" of other classes where a class has fewer than ``n_candidates`` + 1
    members; here no mode does. Rows are centred before training, which changes no distance.

    References
    ----------
    Wang, Liu, Yi, Jiang, Hsieh. Provably Robust Metric Learning. NeurIPS 2020, arXiv 2006.07024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> metric = ARML(random_state=0).fit(X, y)
    >>> metric.transform(X).shape, metric.get_mahalanobis_matrix().shape
    ((150, 4), (4, 4))
    """

    classes_: Array
    n_iter_: int
    history_: list[dict[str, float]]

    def __init__(
        self,
        n_components: int | None = None,
        *,
        mode: Literal["default", "published"] = "default",
        loss: Literal["neg", "hinge", "exp", "logistic"] | None = None,
        calibration: float = 0.5,
        triplets: Literal["sampled", "nearest", "binding"] | None = None,
        n_candidates: int | None = None,
        refresh: int | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        schedule: Literal["constant", "cosine"] | None = None,
        batch_size: int | None = None,
        init: Any = "auto",
        normalize_scale: bool | None = None,
        validation_fraction: float = 0.0,
        patience: int | None = None,
        restarts: int = 1,
        tol: float = 0.0,
        device: str = "cpu",
        dtype: str = "float32",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        warm_start: bool = False,
    ) -> None:
        self.n_components = n_components
        self.mode = mode
        self.loss = loss
        self.calibration = calibration
        self.triplets = triplets
        self.n_candidates = n_candidates
        self.refresh = refresh
        self.epochs = epochs
        self.lr = lr
        self.schedule = schedule
        self.batch_size = batch_size
        self.init = init
        self.normalize_scale = normalize_scale
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.restarts = restarts
        self.tol = tol
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn the metric from rows (n, D) and their labels (n,)."""
        X, y = self._data(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        settings = {name: getattr(self, name) for name in _PLANNED}
        plan = arml_plan.plan(self.mode, len(X), settings)
        device, dtype = arml_plan.device(self.device), arml_plan.dtype(self.dtype)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held = held_out(codes, plan.validation_fraction, seed)
        check_classes(codes[~held], len(classes))
        rank = arml_start.rank_of(self.n_components, self.init, X.shape[1])

        x = torch.from_numpy(X - X.mean(0, dtype=np.float64).astype(X.dtype)).to(device, dtype)
        t = torch.from_numpy(codes).to(device)
        rows = torch.from_numpy(~held).to(device)
        watched = held_rows(held, seed)[: watched_rows(int(held.sum()), *X.shape)].to(device)
        validation = (x[watched], t[watched]) if len(watched) else None
        starts = self._starts(X[~held], codes[~held], rank, plan.restarts, seed)
        with bar(self.verbose, plan.epochs * len(starts)) as told:
            runs = [
                learn(
                    x[rows], t[rows], start.to(x), plan, seed=seed, run=run, validation=validation, told=told
                )
                for run, start in enumerate(starts)
            ]
        kept = max(runs, key=_quality)
        self.components_, self.classes_ = kept.components.numpy(), classes
        self.n_iter_, self.history_ = kept.epochs, kept.history
        self._remember(X, y)
        return self

    def _data(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        try:
            rows, labels = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
            check_classification_targets(labels)
        except ValueError as error:
            raise InvalidArgument(
                "X, y", f"rows and labels of them ({told(error)})", type(X).__name__
            ) from error
        return rows, labels

    def _starts(self, X: Array, codes: Array, rank: int, restarts: int, seed: int) -> list[torch.Tensor]:
        old = getattr(self, "components_", None)
        if self.warm_start and old is not None and old.shape == (rank, X.shape[1]):
            named = [torch.from_numpy(old)]
        else:
            names = arml_start.names(self.init)
            named = [
                torch.from_numpy(np.ascontiguousarray(arml_start.start(n, X, codes, rank, seed)))
                for n in names
            ]
        starts = []
        for run in range(max(restarts, len(named))):
            start = named[run % len(named)].double()
            if run >= len(named):
                noise = torch.randn(start.shape, generator=stream(seed, "arml", run, "start")).double()
                start = start + NOISE * torch.linalg.norm(start) / torch.linalg.norm(noise) * noise
            starts.append(start)
        return starts


_PLANNED = (
    "loss", "calibration", "triplets", "n_candidates", "refresh", "epochs", "lr", "schedule", "batch_size",
    "normalize_scale", "validation_fraction", "patience", "restarts", "tol",
)  # fmt: skip


def _quality(run: Learned) -> float:
    return -run.history[-1]["loss"] if run.radius is None else run.radius


def held_out(codes: Array, fraction: float, seed: int) -> Array:
    """Mark a share of each class, rounded down, in random order: (n,) codes -> (n,) bool."""
    shuffled = torch.randperm(len(codes), generator=stream(seed, "arml", "held out")).numpy()
    held = np.zeros(len(codes), dtype=bool)
    for k in np.unique(codes):
        members = shuffled[codes[shuffled] == k]
        held[members[: int(fraction * len(members))]] = True
    if fraction > 0 and not held.any():
        raise InvalidArgument("validation_fraction", "a share that leaves a row of some class", fraction)
    return held


def held_rows(held: Array, seed: int) -> torch.Tensor:
    """Return the marked rows in random order, so that a first part of them is a sample."""
    rows = np.flatnonzero(held)
    return torch.from_numpy(rows)[torch.randperm(len(rows), generator=stream(seed, "arml", "watched"))]


def check_classes(codes: Array, classes: int) -> None:
    """Refuse labels that give no triplet."""
    if classes < 2:
        raise InvalidArgument("y", "at least 2 classes", f"{classes} class")
    sizes = np.bincount(codes, minlength=classes)
    if sizes.max() < 2:
        raise InvalidArgument(
            "y", "a class with at least 2 members to train on", f"sizes up to {sizes.max()}"
        )


@contextmanager
def bar(wanted: bool, total: int) -> Iterator[Callable[[int, float], None] | None]:
    """Show a progress bar on standard error and give what moves it, or None."""
    if not wanted:
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ARML", total=total)

        def told(epoch: int, loss: float) -> None:
            progress.update(task, advance=1, description=f"ARML loss {loss:.4f}")

        yield told
