"""Adversarially robust metric learning as a scikit-learn estimator."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from .data import DataSplit, ImageSet, PairSampler
from .encoders import ENCODERS, Encoder, EncoderSpec, LinearEncoder, SmallCNN
from .encoders.adapt import picked
from .encoders.encoder import Shape
from .encoders.mlp import MLP
from .errors import InvalidArgument, UnknownName, told
from .evaluation import embed
from .recipes import recipe
from .threat import L2Threat, LinfThreat
from .training import Run, train, with_radius
from .types import Defense

if TYPE_CHECKING:
    from .certify import Certificate

Array = NDArray[Any]
Line = dict[str, Any]
NAMES = ("auto", "cnn", "mlp", "linear")


class DeepMetricLearner(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    ClassifierMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Learn an embedding that withstands small changes of its inputs, and classify by neighbours in it.

    Parameters
    ----------
    encoder
        ``"auto"``: ``"cnn"`` for images, ``"mlp"`` for tables, or what the recipe brings where it needs an
        encoder of its own (``"lipschitz"``, ensembles). ``"linear"``: a Mahalanobis distance. A name of
        :data:`holdfast.encoders.ENCODERS`, a spec, or a ``torch.nn.Module`` from (n, c, h, w) in [0, 1] to
        (n, e), which is copied, and whose embeddings are divided by their norm.
    defense
        ``None`` trains plainly; the name of a recipe (``"hm-ics"``, ``"act"``, ``"est"``, ...), a
        :class:`~holdfast.types.Defense`, or a :class:`~holdfast.training.Run`, whose data is replaced.
    eps
        Radius >= 0 of the changes to withstand, for l-inf recipes in each value: in units of [0, 1] for
        images, and for tables in shares of the range of each column in the training data. It scales the
        search of the recipe with it. A defense object keeps its own radius.
    epochs
        Passes over the data; ``None`` takes the recipe's.
    batch_size
        Rows in a batch, half of them anchors; ``None`` takes the recipe's.
    lr
        Learning rate of Adam; ``None`` takes the recipe's.
    embedding_dim
        Width of the embedding, for the encoders that are given by name.
    n_neighbors
        Neighbours that vote in :meth:`predict`, at most as many as there are training rows.
    image_shape
        (h, w) or (c, h, w) that rows of numbers are cut into, for images in pipelines of two-dimensional
        arrays; they lie in [0, 1] then, as images do. ``None`` leaves rows alone.
    random_state
        Seed, generator or ``None``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.
    callbacks
        Objects with some of the methods ``on_train_begin(learner)``, ``on_step(learner, line)``,
        ``on_epoch(learner, line)`` and ``on_train_end(learner)``, or functions ``(learner, line)`` of every
        line; lines are those of a training log.

    Attributes
    ----------
    encoder_ : Encoder
        The trained encoder, in evaluation mode.
    run_ : Run
        All settings of the training, with the seed that was drawn.
    classes_ : ndarray of shape (n_classes,)
        Labels.
    history_ : list of dict
        One line for each epoch: ``loss``, ``recall@1`` and measures of collapse.
    references_, reference_codes_ : ndarray
        Embeddings (n, e) of the training rows, and their positions in ``classes_``.
    low_, range_ : ndarray of shape (n_features,)
        Least value and range of the columns of a table in training, ``range_`` 1 for constant ones;
        ``None`` for images.
    shape_in_ : tuple
        (c, h, w) as the encoder sees a row; tables are (1, 1, d).
    n_features_in_ : int
        Columns of a table; for arrays of images the second dimension, as scikit-learn counts.

    Notes
    -----
    Training is :func:`holdfast.train` with a recipe; here is only what scikit-learn asks for. Tables are
    scaled to [0, 1] by the range of the training data (not clipped later on) and embedded in float64, images
    in float32. A fitted learner is pickled as its encoder's spec and weights. [D] Where a class has a single
    row, rows may be their own partners.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> learner = DeepMetricLearner(defense="act", eps=0.05, epochs=5, random_state=0).fit(X, y)
    >>> learner.transform(X).shape, learner.score(X, y) > 0.9
    ((150, 64), True)
    """

    def __init__(
        self,
        encoder: str | nn.Module | EncoderSpec = "auto",
        defense: str | Defense | Run | None = "hm-ics",
        *,
        eps: float = 0.1,
        epochs: int | None = 20,
        batch_size: int | None = None,
        lr: float | None = None,
        embedding_dim: int = 64,
        n_neighbors: int = 5,
        image_shape: tuple[int, ...] | None = None,
        random_state: Any = None,
        device: str = "auto",
        callbacks: Iterable[Any] | None = None,
    ) -> None:
        self.encoder = encoder
        self.defense = defense
        self.eps = eps
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.embedding_dim = embedding_dim
        self.n_neighbors = n_neighbors
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device
        self.callbacks = callbacks

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.non_deterministic = False
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.references_.shape[1])

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the encoder and keep the embeddings of the training rows.

        Parameters
        ----------
        X
            (n, d) finite numbers, or images in [0, 1]: (n, h, w), (n, c, h, w), or (n, d) with
            ``image_shape``.
        y
            (n,) labels, at least two classes.

        Raises
        ------
        InvalidArgument, DataError
            For parameters or data that cannot be used; both are ``ValueError``.
        """
        rows, labels = self._data(X, y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidArgument("y", "at least 2 classes", f"{len(self.classes_)} class")
        if type(self.n_neighbors) is not int or self.n_neighbors < 1:
            raise InvalidArgument("n_neighbors", "an integer >= 1", self.n_neighbors)
        self.low_, self.range_ = None, None
        if rows.ndim == 2 and self.image_shape is None:
            self.low_ = rows.min(0).astype(np.float64)
            width = rows.max(0) - self.low_
            self.range_ = np.where(width > 0, width, 1.0)
        self.shape_in_ = _shape(rows, self.image_shape)
        x = self._inputs(rows)
        pixels = x.float() if x.is_floating_point() else x
        if self.low_ is not None:
            pixels = pixels.clamp(0, 1)  # up to rounding they lie there
        images = ImageSet(pixels, torch.from_numpy(codes), "X")
        self.run_ = self._run(images)
        self._say("on_train_begin")
        self.history_: list[Line] = []
        result = train(self.run_, DataSplit(images, images, "X", "closed"), on_line=self._line)
        self.encoder_ = result.encoder
        self.references_, self.reference_codes_ = self._embedded(x).cpu().numpy(), codes
        self._index()
        self._say("on_train_end")
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Return embeddings (n, e); in float32 for images and for tables of float32."""
        check_is_fitted(self)
        rows = self._checked(X)
        z: Array = self._embedded(self._inputs(rows)).cpu().numpy()
        return z.astype(np.float32) if rows.dtype == np.float32 else z

    def predict(self, X: ArrayLike) -> Array:
        """Return the class of most of the nearest training rows in the embedding, (n,)."""
        z = self._queries(X)
        found: Array = self.classes_[self._neighbours.predict(z)]
        return found

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return the shares of the classes among the nearest training rows, (n, classes)."""
        z = self._queries(X)
        shares: Array = self._neighbours.predict_proba(z)
        return shares

    def certify(self, X: ArrayLike, y: ArrayLike | None = None) -> Certificate:
        """Certify the nearest-neighbour answer of every row, for encoders with a proven Lipschitz constant.

        Parameters
        ----------
        X
            (n, ...) rows as for :meth:`fit`.
        y
            (n,) labels; without them the predictions themselves are certified.

        Returns
        -------
        Certificate
            Lower bounds in the l2 norm, for one neighbour: in units of [0, 1], which for tables are shares of
            the columns' ranges. They hold for changed rows inside [0, 1].

        Raises
        ------
        InvalidArgument
            If the encoder has no proven constant (train with ``defense="lipschitz"``; for others see
            :class:`holdfast.certify.Smoothing`), ``n_neighbors`` is not 1, a table leaves the range of
            training, or a label was never seen.
        """
        from .certify import LipschitzCertifier, lipschitz_constant
        from .certify.lipschitz import embed_as, is_proven, rounding_error

        check_is_fitted(self)
        if not is_proven(self.encoder_):
            need = (
                "one with a proven Lipschitz constant (defense='lipschitz'); for others see certify.Smoothing"
            )
            raise InvalidArgument("encoder", need, type(self.encoder_.spec).__name__)
        if self.n_neighbors != 1:
            raise InvalidArgument(
                "n_neighbors", "1 for certificates of the nearest neighbour", self.n_neighbors
            )
        x = self._inputs(self._checked(X)).to(self._device)
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise InvalidArgument("X", "rows inside the range of the training data", "values outside")
        labels = self.predict(X) if y is None else np.asarray(y)
        if not np.isin(labels, self.classes_).all():
            raise InvalidArgument("y", "labels that training has seen", "others")
        dtype = torch.float32 if self.low_ is None else torch.float64
        slack = rounding_error(self.encoder_, torch.float64) + rounding_error(self.encoder_, dtype)
        certifier = LipschitzCertifier(constant=lipschitz_constant(self.encoder_), slack=slack)
        z = embed_as(self.encoder_, x, torch.float64).cpu()
        codes = torch.from_numpy(np.searchsorted(self.classes_, labels))
        known = torch.from_numpy(self.references_), torch.from_numpy(self.reference_codes_)
        return certifier.recall(z, codes, *known)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        encoder = state.pop("encoder_", None)
        state.pop("_neighbours", None)
        if encoder is not None:
            weights = {name: t.detach().cpu().numpy() for name, t in encoder.state_dict().items()}
            state["_stored"] = (encoder.spec, encoder.shape, weights)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        stored = state.pop("_stored", None)
        super().__setstate__(state)
        if stored is not None:
            spec, shape, weights = stored
            if getattr(spec, "weights", None) is not None:
                spec = replace(spec, weights=None)  # the file that training started from
            self.encoder_ = spec.build(shape, seed=0)
            self.encoder_.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in weights.items()})
            self.encoder_.eval()
            self._index()

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.encoder_.parameters()), torch.device("cpu"))

    def _data(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        images = self.image_shape is not None or (X if hasattr(X, "ndim") else np.asarray(X)).ndim > 2
        try:
            kind: Any = "numeric" if images else [np.float64, np.float32]
            rows, labels = validate_data(
                self, X, y, dtype=kind, allow_nd=True, ensure_min_samples=2
            )  # fmt: skip
            check_classification_targets(labels)
        except ValueError as error:
            raise InvalidArgument(
                "X, y", f"rows and their labels ({told(error)})", type(X).__name__
            ) from error
        return rows, labels

    def _checked(self, X: ArrayLike) -> Array:
        """Return rows of the kind that training had."""
        kind: Any = "numeric" if self.low_ is None else [np.float64, np.float32]
        rows: Array = validate_data(self, X, reset=False, dtype=kind, allow_nd=True)
        if _shape(rows, self.image_shape) != self.shape_in_:
            raise InvalidArgument("X", f"rows of shape {self.shape_in_}", rows.shape[1:])
        if self.low_ is None and not 0 <= rows.min() <= rows.max() <= 1:
            need = "pixels in [0, 1], as in training (divide by 255, or clip what a scaler gives)"
            raise InvalidArgument("X", need, [float(rows.min()), float(rows.max())])
        return rows

    def _inputs(self, rows: Array) -> Tensor:
        """Return rows as (n, c, h, w): tables scaled, in float64; images as they are."""
        if self.low_ is not None:
            rows = (rows.astype(np.float64) - self.low_) / self.range_
        return torch.from_numpy(np.ascontiguousarray(rows)).reshape(len(rows), *self.shape_in_)

    def _embedded(self, x: Tensor) -> Tensor:
        encoder, x = self.encoder_, x.to(self._device)
        if self.low_ is None:
            return embed(encoder, x.float())
        return embed(copy.deepcopy(encoder).double(), x.double())

    def _queries(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        z: Array = self._embedded(self._inputs(self._checked(X))).cpu().numpy()
        return z

    def _index(self) -> None:
        k = min(self.n_neighbors, len(self.references_))
        self._neighbours = KNeighborsClassifier(k).fit(self.references_, self.reference_codes_)

    def _say(self, method: str, *line: Line) -> None:
        for callback in self.callbacks or ():
            told_to = getattr(callback, method, None)
            if told_to is not None:
                told_to(self, *line)

    def _line(self, line: Line) -> None:
        if line["kind"] == "epoch":
            self.history_.append(line)
        if line["kind"] in ("step", "epoch"):
            self._say(f"on_{line['kind']}", line)
        for callback in self.callbacks or ():
            if callable(callback):
                callback(self, line)

    def _run(self, images: ImageSet) -> Run:
        """Return the settings of the training."""
        run = _base(self.defense)
        if isinstance(self.defense, str):
            run = with_radius(run, self.eps)
        sampler: Any = run.sampler
        if self.batch_size is not None:
            if type(self.batch_size) is not int or self.batch_size < 4:
                raise InvalidArgument("batch_size", "an integer >= 4, or None", self.batch_size)
            sampler = PairSampler(self.batch_size // 2)
        if isinstance(sampler, PairSampler) and int(torch.bincount(images.y).min()) == 1:
            sampler = replace(sampler, self_pairs=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        changed: dict[str, Any] = {
            "data": InMemory(),
            "sampler": sampler,
            "seed": seed,
            "device": self.device,
        }
        if self.epochs is not None:
            changed["epochs"] = self.epochs
        if self.lr is not None:
            changed["optimizer"] = replace(run.optimizer, lr=self.lr)
        return replace(run, encoder=self._spec(run), **changed)

    def _spec(self, run: Run) -> Any:
        encoder: Any = self.encoder
        if isinstance(encoder, nn.Module):
            return OwnModule(type(encoder).__name__, encoder)
        if not isinstance(encoder, str):
            if not hasattr(encoder, "build"):
                raise InvalidArgument("encoder", f"{', '.join(NAMES)}, a spec or a module", encoder)
            return encoder
        table = self.low_ is not None
        if encoder == "auto" and not isinstance(run.encoder, SmallCNN):
            return run.encoder
        if encoder == "cnn" and table:
            raise InvalidArgument("encoder", "'mlp' or 'linear' for a table; or set image_shape", encoder)
        if encoder == "linear":
            return LinearEncoder(self.embedding_dim)
        if encoder == "mlp" or (encoder == "auto" and table):
            return MLP(embedding_dim=self.embedding_dim)
        if encoder in ("auto", "cnn"):
            return SmallCNN(embedding_dim=self.embedding_dim)
        if encoder not in ENCODERS:
            raise UnknownName("encoder", encoder, (*NAMES, *ENCODERS))
        kind = ENCODERS[encoder]
        named = {f.name for f in fields(kind)}
        return kind(**({"embedding_dim": self.embedding_dim} if "embedding_dim" in named else {}))


@dataclass(frozen=True)
class InMemory:
    """The data of a fit: it is given, not found, so that the run's settings only name it."""

    name: ClassVar[str] = "arrays"

    def load(self) -> DataSplit:
        """Refuse: there is nothing to read."""
        raise InvalidArgument("data", "images given to fit()", "settings alone")


@dataclass(frozen=True, eq=False)
class OwnModule:
    """A module in hand as the spec of an encoder; it is copied, and embeddings are divided by their norm."""

    kind: str
    module: InitVar[nn.Module]
    name: ClassVar[str] = "own"

    def __post_init__(self, module: nn.Module) -> None:
        object.__setattr__(self, "_module", module)  # no field: settings are plain data

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return an encoder of a copy of the module."""
        module: nn.Module = vars(self)["_module"]
        return OwnEncoder(copy.deepcopy(module), shape, self)


class OwnEncoder(Encoder):
    """A module under the interface of encoders; built by :class:`OwnModule`."""

    def __init__(self, module: nn.Module, shape: Shape, spec: OwnModule) -> None:
        nn.Module.__init__(self)
        self.module, self.shape, self.normalize = module, shape, True
        self.spec: Any = spec
        training = module.training
        with torch.no_grad():
            like = next(module.parameters(), torch.empty(0))
            self.embedding_dim = int(picked(module.eval()(torch.zeros(1, *shape).to(like))).shape[1])
        module.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, e)."""
        z = picked(self.module(x))
        return F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=1)


def _base(defense: Any) -> Run:
    """Return the run that a defense stands for, on data that will be replaced."""
    if defense is None or isinstance(defense, str):
        return recipe("plain" if defense is None else defense)
    if isinstance(defense, Run):
        return defense
    if not hasattr(defense, "losses") or not hasattr(defense, "setup"):
        raise InvalidArgument("defense", "None, the name of a recipe, a defense or a Run", defense)
    threat = getattr(defense, "threat", None)
    own: dict[str, Any] = {"threat": threat} if isinstance(threat, LinfThreat | L2Threat) else {}
    return replace(recipe("plain"), name="own", defense=defense, **own)


def _shape(rows: Array, image_shape: Sequence[int] | None) -> Shape:
    """Return (c, h, w) of rows (n, ...)."""
    if image_shape is not None:
        sides = tuple(int(side) for side in image_shape)
        if len(sides) not in (2, 3) or min(sides) < 1:
            raise InvalidArgument("image_shape", "(h, w) or (c, h, w)", image_shape)
        shape = (1, *sides) if len(sides) == 2 else sides
        if rows.ndim != 2 or rows.shape[1] != int(np.prod(shape)):
            raise InvalidArgument("X", f"rows of {int(np.prod(shape))} numbers for image_shape", rows.shape)
        return shape[0], shape[1], shape[2]
    if rows.ndim == 2:
        return 1, 1, rows.shape[1]
    if rows.ndim == 3:
        return 1, rows.shape[1], rows.shape[2]
    if rows.ndim == 4:
        return rows.shape[1], rows.shape[2], rows.shape[3]
    raise InvalidArgument("X", "rows (n, d), or images (n, h, w) or (n, c, h, w)", rows.shape)


__all__ = ["DeepMetricLearner"]
