"""Turn the batches of a training loop into adversarial ones, for any loss of embeddings and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..adversaries import Collapse, HardnessManipulation, LossClimb, MinMax, Shift, at_moment
from ..defenses.ramp import ramped
from ..defenses.training import ROLES, arranged
from ..encoders.adapt import picked
from ..encoders.encoder import Standardize
from ..errors import DataError, InvalidArgument, UnknownName
from ..functional.distance import Euclidean
from ..losses import Triplet
from ..miners import FromPMLMiner, PMLMiner, Random, Softhard
from ..rng import seeded, stream
from ..search import PGD, frozen
from ..threat import THREATS
from ..types import (
    Adversary,
    BatchView,
    Context,
    Objective,
    PairwiseDistance,
    Progress,
    Roles,
    Search,
    Triplets,
    TripletView,
)
from .trace import untouched

LossFunction = Callable[..., Any]
SLACK = 1e-3
"""How far standardised images may leave the box of pixels by rounding."""

DEFENSES: Mapping[str, Adversary[Any] | None] = {
    "loss": None,  # LossClimb of the loop's own loss
    "est": Shift(),
    "rest": Shift(moves="pn"),
    "act": Collapse(),
    "min-max": MinMax(),
    "hm": HardnessManipulation(),
}
"""Who moves, by name; any adversary of :mod:`holdfast.adversaries` may be given as well."""


@dataclass(frozen=True, eq=False)
class _LoopLoss:
    """The loss of a loop, with its miner, under our call."""

    loss: LossFunction
    miner: Callable[..., Any] | None
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the loss of the batch, as many values as it has."""
        mined = () if self.miner is None else (self.miner(z.detach(), y),)
        value = self.loss(z, y, *mined)
        if not isinstance(value, Tensor) or value.ndim > 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidArgument("loss_func", "a loss that returns one number, or one for each row", got)
        return value.reshape(-1)


class _Seen(nn.Module):
    """A model as the search sees it: pixels in [0, 1] in, embeddings out."""

    def __init__(self, model: Callable[..., Any], standardize: nn.Module | None, unit: bool) -> None:
        super().__init__()
        self.model, self.standardize, self.unit = model, standardize, unit

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, e)."""
        z = picked(self.model(x if self.standardize is None else self.standardize(x)))
        return F.normalize(z, dim=1) if self.unit else z


class Hardener:
    """Moves the images of a batch against a model; made by :func:`harden`.

    Attributes
    ----------
    step : int
        Batches done; with ``signal`` all that changes, to be kept where a loop is resumed.
    signal : dict of str to float
        ``"eps"`` of the last batch; for triplet defenses ``"loss"``, the triplet loss of what was found.
    indices : Triplets or None
        Rows of the last batch that form its triplets, for losses that take them
        (``loss_func(z, y, hard.indices)``); ``None`` where every row moved on its own.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        adversary: Adversary[Any],
        search: Search,
        threat: Any,
        miner: Any,
        *,
        theirs: tuple[Any, ...],
        ramp: int,
        standardize: Standardize | None,
        distance: PairwiseDistance,
        normalize: bool,
        seed: int,
    ) -> None:
        self.model, self.adversary, self.search, self.threat, self.miner = (
            model, adversary, search, threat, miner
        )  # fmt: skip
        self.theirs, self.ramp, self.seed = theirs, ramp, seed
        self.standardize, self.distance, self.normalize = standardize, distance, normalize
        self.step, self.signal = 0, dict[str, float]()
        self.indices: Triplets | None = None

    def __call__(self, x: Tensor, y: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the batch to train on.

        Parameters
        ----------
        x
            (n, c, h, w) images in [0, 1], or standardised ones where ``mean`` and ``std`` were given.
        y
            (n,) labels.

        Returns
        -------
        x, y
            On the device of the model and without gradient. Where every row moves, the n images, moved, and
            their labels. For triplet defenses the anchors, then positives, then negatives of t triplets:
            (3t, c, h, w) and (3t,); ``indices`` tells the triplets.

        Raises
        ------
        InvalidArgument
            If shapes do not fit, pixels leave the box, or the model gives no embeddings or no gradient.
        DataError
            If a triplet defense finds no triplet in the batch.
        """
        labels = torch.as_tensor(y)
        if not isinstance(x, Tensor) or not x.is_floating_point() or labels.shape != x.shape[:1]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidArgument("x, y", "a floating-point batch (n, ...) and n labels", (got, labels.shape))
        if self.threat.eps == 0:
            return x, labels
        device = next((p.device for p in _parameters(self.model)), x.device)
        x, labels = x.detach().to(device), labels.to(device)
        with seeded(self.seed, "harden", self.step), untouched(*self.theirs):
            moved, rows = self._moved(x, labels)
        self.step += 1
        return moved, labels if rows is None else torch.cat([labels[role] for role in rows])

    def _moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Triplets | None]:
        pixels = self._pixels(x)
        standardize = None if self.standardize is None else self.standardize.to(x)
        unit = self.normalize and not isinstance(self.adversary, LossClimb)
        seen = _Seen(_bare(self.model), standardize, unit)
        context = Context(
            encoder=seen,
            bare=seen,
            x=pixels,
            y=y,
            index=torch.arange(len(x)),
            distance=self.distance,
            progress=Progress(step=self.step, steps=max(self.ramp, self.step + 1)),
            signal=self.signal,
            generator=stream(self.seed, "harden", self.step),
        )
        with frozen(seen), torch.no_grad():
            clean = seen(pixels)
        adversary = at_moment(self.adversary, context.progress)
        every_row = adversary.moves == "x"
        found, rows = (self._rows if every_row else self._triplets)(adversary, clean, context)
        self.indices = None
        if rows is not None:
            t = torch.arange(len(rows.anchor), device=x.device)
            self.indices = Triplets(t, t + len(t), t + 2 * len(t))
        return found if standardize is None else standardize(found), rows

    def _pixels(self, x: Tensor) -> Tensor:
        """Return images in units of pixels, inside the box."""
        if self.standardize is not None:
            own = self.standardize.to(x)
            x = x * own.std + own.mean
        bounds = self.threat.bounds
        if bounds is None:
            return x
        low, high = (float(v) for v in x.aminmax())
        if not (bounds[0] - SLACK <= low and high <= bounds[1] + SLACK):
            need = f"pixels in [{bounds[0]:g}, {bounds[1]:g}]; give mean and std for standardised images"
            raise InvalidArgument("x", need, (low, high))
        return x.clamp(*bounds)

    def _search(self, context: Context, x0: Tensor, objective: Objective) -> Tensor:
        share = 1.0 if not self.ramp else ramped(1.0, Progress(step=self.step, steps=self.ramp))
        search, threat = self.search, replace(self.threat, eps=self.threat.eps * share)
        if share < 1 and isinstance(getattr(search, "alpha", None), float):
            search = replace(search, alpha=search.alpha * share)  # type: ignore[type-var, attr-defined]
        self.signal["eps"] = threat.eps
        return search(context.bare, x0, objective, threat, context.generator)

    def _rows(self, adversary: Adversary[Any], clean: Tensor, context: Context) -> tuple[Tensor, None]:
        """Move every row."""
        target = adversary.target(clean, context.y, None, context)

        def objective(z: Tensor) -> Tensor:
            return adversary.gain(BatchView(z, clean, context.y, target), context)

        return self._search(context, context.x, objective), None

    def _triplets(
        self, adversary: Adversary[Any], clean_z: Tensor, context: Context
    ) -> tuple[Tensor, Triplets]:
        """Mine triplets and move copies of their images: anchors, positives, negatives."""
        rows = mine(self.miner, clean_z, context)
        clean = Roles(*(clean_z[role] for role in rows))
        target = adversary.target(clean_z, context.y, rows, context)
        moving = [ROLES.index(role) for role in adversary.moves]

        def objective(z: Tensor) -> Tensor:
            return adversary.gain(TripletView(arranged(z, moving, clean), clean, target), context)

        x0 = torch.cat([context.x[rows[place]] for place in moving])
        found = self._search(context, x0, objective)
        with frozen(context.bare), torch.no_grad():
            now = arranged(context.bare(found), moving, clean)
            self.signal["loss"] = float(Triplet()(now, context.distance).mean())
        images = arranged(found, moving, [context.x[role] for role in rows])
        return torch.cat(images), rows


def mine(miner: Any, z: Tensor, context: Context) -> Triplets:
    """Return rows (t,) of a batch in any order, for miners that expect pairs side by side and for others."""
    if isinstance(miner, FromPMLMiner | PMLMiner):
        return miner(z, context.y, context.distance, context.generator)
    layout = paired(context.y)
    chosen = miner(z[layout], context.y[layout], context.distance, context.generator)
    return Triplets(*(layout[role] for role in chosen))


def paired(y: Tensor) -> Tensor:
    """Return rows two by two of one class, (2t,); the odd one out of a class is left out.

    Examples
    --------
    >>> paired(torch.tensor([1, 0, 1, 0, 1])).tolist()
    [1, 3, 0, 2]
    """
    _, inverse, counts = torch.unique(y, return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    nth = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[inverse[order]]
    rows: Tensor = order[nth < (counts // 2 * 2)[inverse[order]]]
    if not len(rows) or bool((y[rows] == y[rows[0]]).all()):
        raise DataError("a batch without triplets: need two classes with two rows each")
    return rows


def harden(
    model: Callable[..., Any],
    loss_func: LossFunction | None = None,
    *,
    eps: float,
    steps: int = 8,
    alpha: float | None = None,
    defense: str | Adversary[Any] = "loss",
    norm: str = "linf",
    miner: Any = None,
    ramp: int = 0,
    random_start: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    distance: PairwiseDistance | None = None,
    normalize: bool = True,
    search: Search | None = None,
    seed: int = 0,
) -> Hardener:
    """Return what makes adversarial batches of a training loop's own: ``x, y = hard(x, y)``.

    Parameters
    ----------
    model
        Images to embeddings, as the loop calls it. Searches see it in evaluation mode, and every submodule
        gets back the mode it had.
    loss_func
        The loop's loss, ``loss_func(embeddings, labels)``; needed for ``defense="loss"``, and not used
        otherwise. The whole batch is its input at every step of the search; what it counts and remembers
        (statistics, cross-batch memories in buffers) is put back.
    eps
        Radius >= 0 in pixel units, also where images are standardised; 0 gives batches back as they are.
    steps, alpha, random_start
        The search; ``alpha`` is ``2.5 * eps / steps`` by default (Madry et al. 2018), so that the border can
        be reached. ``search`` replaces all three.
    defense
        ``"loss"``: climb the loop's own loss (classical adversarial training). ``"est"``: push every
        embedding from where it was. ``"rest"``, ``"act"``, ``"min-max"``, ``"hm"``: triplets, see
        :data:`DEFENSES`. Or an adversary.
    norm
        ``"linf"`` or ``"l2"``.
    miner
        For ``"loss"`` the loop's miner, called as ``loss_func(z, y, miner(z, y))``. For triplet defenses who
        chooses the triplets: one of :mod:`holdfast.miners`, or a miner of pytorch-metric-learning (one
        triplet for each anchor); by default Softhard for ``"hm"`` and Random for others.
    ramp
        Batches over which the radius grows from 0 to ``eps``.
    mean, std
        What the loop's images were standardised with: one number or one for each channel, both or none.
    bounds
        Box of valid pixels; ``None`` for inputs that have none.
    distance
        Of triplet gains and shifts; Euclidean by default.
    normalize
        Whether those gains see embeddings of norm 1, in whose units the destinations of ``"hm"`` are.
        ``"loss"`` always sees what the model gives.
    seed
        Names the random streams; torch's global generator is not touched.

    Notes
    -----
    [D] Triplet defenses give back the images of the triplets they moved, and the loop's own loss is taken on
    all of them; with ``loss_func(z, y, hard.indices)`` a triplet loss of pytorch-metric-learning reads
    exactly those triplets, as published. Pairs are formed of the rows of each class in their order, so use a
    sampler of two or more images of a class; the odd one out is left out. The last adversarial loss, which
    the gradual adversary of ``"hm"`` follows, is measured here as the triplet loss (margin 0.2) of what the
    search found. Terms that need clean embeddings beside the moved ones (``hm-ics``) are not possible this
    way: see :func:`holdfast.recipe` and :class:`holdfast.DeepMetricLearner`. Memories that a loss keeps
    outside modules (cross-batch miners of OML) also see what the search shows.

    Raises
    ------
    UnknownName
        For an unknown defense or norm.
    InvalidArgument
        For numbers outside their range, or a loss that is needed and missing.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> hard = harden(model, eps=0.1, defense="est")
    >>> x, y = hard(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1]))
    >>> round(float((x - 0.5).abs().max()), 4)
    0.1
    """
    if norm not in THREATS:
        raise UnknownName("norm", norm, THREATS)
    threat = THREATS[norm](eps=eps, bounds=bounds)
    if not callable(model):
        raise InvalidArgument("model", "a module or a callable", type(model).__name__)
    if type(ramp) is not int or ramp < 0:
        raise InvalidArgument("ramp", "a number of batches, an integer >= 0", ramp)
    if (mean is None) != (std is None):
        raise InvalidArgument("mean, std", "both or none", (mean, std))
    adversary = _adversary(defense, loss_func, miner)
    if search is None:
        length = (2.5 * eps / max(steps, 1)) if alpha is None else alpha
        search = PGD(steps=steps, alpha=length, random_start=random_start)
    standardize = None
    if mean is not None and std is not None:
        if not all(math.isfinite(v) and v > 0 for v in std):
            raise InvalidArgument("std", "finite numbers > 0", tuple(std))
        standardize = Standardize(mean, std, channels=max(len(mean), len(std)))
    if isinstance(miner, nn.Module):
        source: Any = FromPMLMiner(miner)
    else:
        default = Softhard() if isinstance(adversary, HardnessManipulation) else Random()
        source = default if miner is None else miner
    return Hardener(
        model,
        adversary,
        search,
        threat,
        source,
        theirs=(loss_func, miner),
        ramp=ramp,
        standardize=standardize,
        distance=Euclidean() if distance is None else distance,
        normalize=normalize,
        seed=seed,
    )


def _adversary(defense: str | Adversary[Any], loss_func: LossFunction | None, miner: Any) -> Adversary[Any]:
    if isinstance(defense, str):
        if defense not in DEFENSES:
            raise UnknownName("defense", defense, DEFENSES)
        named = DEFENSES[defense]
        if named is not None:
            return named
        if loss_func is None or not callable(loss_func):
            raise InvalidArgument("loss_func", "the loss of the loop, which defense='loss' climbs", loss_func)
        return LossClimb(loss=_LoopLoss(loss_func, miner))
    if not hasattr(defense, "gain") and not hasattr(defense, "at"):
        raise InvalidArgument("defense", f"an adversary or one of {', '.join(DEFENSES)}", defense)
    return defense


def _bare(model: Any) -> Any:
    """Return the model without a wrapper for several processes or devices."""
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model


def _parameters(model: Any) -> Any:
    return model.parameters() if isinstance(model, nn.Module) else iter(())
