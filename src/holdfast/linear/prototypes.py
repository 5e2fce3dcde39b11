"""A nearest-prototype classifier whose prototypes and metric are learned for certified radii."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..certify import Certificate
from ..certify.neighbours import certify_neighbours
from ..certify.references import References
from ..errors import InvalidArgument, told
from . import arml_plan
from .arml import ARML, held_out
from .base import MahalanobisMixin
from .knn import RobustKNeighborsClassifier
from .prototype_training import Design, centres, learn_prototypes

Array = NDArray[Any]
FEW = 8192
"""Up to so many rows each of them may become a prototype; of more, so many teach the metric to start from."""
DESIGNS = (Design(None, 0.6, 0.4), Design(None, 0.4, 0.2), Design(1, 1.2, 0.6))
DESIGNS_OF_MANY = (Design(100, 0.6, 0.4), Design(100, 0.4, 0.2), Design(1, 1.2, 0.6))
"""What ``n_prototypes="auto"`` tries: up to ``FEW`` rows, and beyond."""
JUDGED = 1000
"""Most held-out rows on which designs are compared."""


class Model(NamedTuple):
    """Components (r, D), references (R, D) and their codes (R,)."""

    components: Array
    references: Array
    codes: Array


class RobustPrototypes(MahalanobisMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Nearest prototype under a learned Mahalanobis metric, trained for what can be certified.

    A 1-nearest-neighbour classifier is as fragile as its most awkward training points. Here prototypes
    of each class take their place, or the training points move: they begin at k-means centres, or where they
    are, and climb, together with the metric, the certified margin of the training rows. The nearest reference
    is then no longer one of the user's own rows. Certificates are those of any nearest-neighbour classifier.

    With ``n_prototypes="auto"`` several designs are trained without a share of the rows, and so is
    :class:`~holdfast.linear.ARML` with all rows as references. Of those that err no more often than ARML
    on the rows left out, give or take a standard error of the difference, and have a larger median radius,
    the one with the largest mean radius there is trained again on all rows.

    Parameters
    ----------
    n_prototypes
        Prototypes of each class (at most half of its rows); None makes one of every row; ``"auto"`` chooses.
    target
        Radius that training asks for, in units of the typical certified radius under ARML. Larger ones give
        larger radii and more errors.
    noise
        Gaussian noise on training rows, in the same units.
    steps, lr, batch_size
        Steps of Adam, rate of the metric's factor, training rows of a step.
    validation_fraction
        Share of each class that is left out to set the typical radius and to choose.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``, for training.
    random_state
        Of everything that is drawn.

    Attributes
    ----------
    components_
        (D, D) float64: the metric's factor G.
    references_, reference_labels_
        (R, D) prototypes and (R,) their labels; the training rows where ARML was chosen.
    design_
        ``{"prototypes", "target", "noise"}`` of what was chosen, or None for ARML.
    trials_
        For each design that was tried: its values, error, median and mean radius on the rows left out.
    scale_
        The typical radius, in input units.
    classes_, n_features_in_
        As in scikit-learn.

    Raises
    ------
    InvalidArgument
        From ``fit``: data that are not finite, fewer than two classes, a class of one row, or a parameter
        outside its range.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = RobustPrototypes(3, steps=100, random_state=0).fit(X, y)
    >>> model.references_.shape, float(model.score(X, y)) > 0.9
    ((9, 4), True)
    """

    classes_: Array
    design_: dict[str, float] | None
    trials_: list[dict[str, Any]]
    scale_: float

    def __init__(
        self,
        n_prototypes: int | Literal["auto"] | None = "auto",
        *,
        target: float = 0.6,
        noise: float = 0.4,
        steps: int = 300,
        lr: float = 0.01,
        batch_size: int = 512,
        validation_fraction: float = 0.2,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_prototypes = n_prototypes
        self.target = target
        self.noise = noise
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn prototypes and metric from rows (n, D) and their labels (n,)."""
        rows, labels = self._data(X, y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._check(codes)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held = held_out(codes, self.validation_fraction, seed)
        judged = np.flatnonzero(held)[:: max(1, int(held.sum()) // JUDGED)][:JUDGED]
        base = _arml(rows[~held], codes[~held], seed, part=FEW)
        found = _certify(base, rows[judged], codes[judged])
        right = found.radius[found.correct]
        self.scale_ = float(right.median()) if len(right) else float(np.linalg.norm(rows.std(0)))
        self.trials_ = []
        if self.n_prototypes == "auto":
            chosen = self._choose(rows, codes, held, judged, base, found, seed)
        else:
            count = None if self.n_prototypes is None else int(self.n_prototypes)
            chosen = Design(count, float(self.target), float(self.noise))
        whole = _arml(rows, codes, seed, part=None if chosen is None else FEW)
        model = whole if chosen is None else self._train(rows, codes, chosen, whole.components, seed)
        self.design_ = None if chosen is None else dict(chosen._asdict())
        self.components_ = model.components
        self._remember(model.references, self.classes_[model.codes])
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Return (n,) labels of the nearest prototypes; of equally near ones, the first."""
        out: Array = self._classifier().predict(self._rows(X))
        return out

    def _rows(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        out: Array = validate_data(self, X, reset=False, dtype=np.float64)
        return out

    def _classifier(self) -> RobustKNeighborsClassifier:
        knn = RobustKNeighborsClassifier(1, metric=self.get_mahalanobis_matrix())
        return knn.fit(self.references_, self.reference_labels_)

    def _data(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        try:
            rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
            check_classification_targets(labels)
        except ValueError as error:
            raise InvalidArgument(
                "X, y", f"rows and labels of them ({told(error)})", type(X).__name__
            ) from error
        return rows, labels

    def _check(self, codes: Array) -> None:
        count = self.n_prototypes
        number = isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1
        if count is not None and count != "auto" and not number:
            raise InvalidArgument("n_prototypes", "an integer >= 1, None or 'auto'", count)
        for name in ("target", "lr", "noise"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and np.isfinite(value) and value >= 0):
                raise InvalidArgument(name, "a finite number >= 0", value)
        if self.target == 0:
            raise InvalidArgument("target", "a number above 0", self.target)
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InvalidArgument(name, "an integer >= 1", value)
        if not 0 < self.validation_fraction < 1:
            raise InvalidArgument("validation_fraction", "a share in (0, 1)", self.validation_fraction)
        sizes = np.bincount(codes)
        if len(sizes) < 2:
            raise InvalidArgument("y", "at least 2 classes", "1 class")
        if sizes.min() < 2:
            few = self.classes_[sizes < 2].tolist()
            raise InvalidArgument("y", "at least 2 rows of every class", f"1 of {few}")

    def _choose(
        self,
        rows: Array,
        codes: Array,
        held: Array,
        judged: Array,
        base: Model,
        found: Certificate,
        seed: int,
    ) -> Design | None:
        """Return the design with the largest mean radius among those that err no more often than ARML."""
        self._note(None, found)
        best, chosen = float(found.radius.mean()), None
        for design in DESIGNS if len(rows) <= FEW else DESIGNS_OF_MANY:
            model = self._train(rows[~held], codes[~held], design, base.components, seed)
            trial = _certify(model, rows[judged], codes[judged])
            self._note(design, trial)
            mean = float(trial.radius.mean())
            lost = (found.correct & ~trial.correct).double()
            won = (trial.correct & ~found.correct).double()
            sound = float((lost - won).sum()) <= float((lost + won).sum().sqrt())
            if sound and mean > best and trial.median() > found.median():
                best, chosen = mean, design
        return chosen

    def _note(self, design: Design | None, found: Certificate) -> None:
        values = dict.fromkeys(Design._fields) if design is None else design._asdict()
        self.trials_.append(
            {
                **values, "error": found.error_at(0.0), "median": found.median(),
                "mean": float(found.radius.mean()),
            }
        )  # fmt: skip

    def _train(self, rows: Array, codes: Array, design: Design, components: Array, seed: int) -> Model:
        device = arml_plan.device(self.device)
        middle = rows.mean(0)
        start, labels = centres(rows - middle, codes, design.prototypes, seed % 2**32)
        g, prototypes = learn_prototypes(
            torch.from_numpy(rows - middle).to(device, torch.float32),
            torch.from_numpy(codes).to(device),
            torch.from_numpy(start).to(device, torch.float32),
            torch.from_numpy(labels).to(device),
            torch.from_numpy(components).to(device, torch.float32),
            design,
            scale=self.scale_,
            steps=self.steps,
            lr=self.lr,
            batch=self.batch_size,
            seed=seed,
        )
        learned = prototypes.double().cpu().numpy()
        if not (np.isfinite(learned).all() and bool(g.isfinite().all())):
            raise InvalidArgument("lr", "a rate under which training stays finite", self.lr)
        return Model(components=g.double().cpu().numpy(), references=learned + middle, codes=labels)


def _arml(rows: Array, codes: Array, seed: int, part: int | None) -> Model:
    """Return ARML's metric, learned on at most ``part`` of the rows, with all rows as references."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:part]
    taken = slice(None) if len(chosen) == len(rows) else chosen
    metric = ARML(random_state=seed % 2**31).fit(rows[taken], codes[taken])
    return Model(components=metric.components_, references=rows, codes=codes)


def _certify(model: Model, rows: Array, codes: Array) -> Certificate:
    factor = torch.from_numpy(model.components)
    references = References.prepare(
        torch.from_numpy(model.references), torch.from_numpy(model.codes), factor.T @ factor
    )
    return certify_neighbours(references, torch.from_numpy(rows), torch.from_numpy(codes))
