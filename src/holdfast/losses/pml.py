"""Losses of the package pytorch-metric-learning (extra ``pml``), called as ours are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from ..errors import InvalidArgument
from ..pml import Options, check_options, named
from ..types import PairwiseDistance
from .checks import check_batch

WIDTHS = ("embedding_size", "descriptors_dim")
"""What constructors of the package call the width of the embeddings; the number of classes is one name."""


def _required(cls: type) -> set[str]:
    """Return the arguments without default of a class's constructor and of those it hands ``**kwargs`` to."""
    found: set[str] = set()
    for parent in cls.__mro__:
        if "__init__" in vars(parent) and parent not in (nn.Module, object):
            parameters = inspect.signature(parent).parameters.values()
            named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            found |= {p.name for p in named if p.default is p.empty}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


def _one_value(loss: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Return the one value of the batch, once for each row: (n,)."""
    check_batch(z, y)
    try:
        value = loss(z, y)
    except ValueError as error:  # some of the package want other input: pairs of views, classes of one size
        raise InvalidArgument(
            "loss", f"a loss that takes this batch ({error})", type(loss).__name__
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgument("loss", "a loss whose reducer gives one number for the batch", got)
    return value.reshape(()).expand(len(z))


@dataclass(frozen=True, kw_only=True)
class PML:
    """A loss of pytorch-metric-learning, by name.

    Attributes
    ----------
    loss
        Name of a class in ``pytorch_metric_learning.losses``.
    options
        Its constructor's arguments as (name, value) pairs; values are numbers, text, booleans or ``None``, so
        that settings stay plain data. For options that are objects (distances, reducers, regularisers) use
        :class:`FromPML`. Widths and numbers of classes that the constructor requires are filled in by
        :meth:`setup`; an option of that name wins.

    Notes
    -----
    The package returns one number for a batch. It is repeated for each row, so that the plain mean is that
    number, but rows cannot be told apart: with ``keep="best"`` the best iterate is chosen for the whole
    batch. The loss uses its own distance, most often the cosine; the distance of the run is not used.
    Name and options are checked when the loss is built, not before: settings can be read without the package.

    Examples
    --------
    >>> PML(loss="SupConLoss", options=(("temperature", 0.2),)).options
    (('temperature', 0.2),)
    """

    loss: str = "SupConLoss"
    options: Options = ()
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not isinstance(self.loss, str):
            raise InvalidArgument("loss", "the name of a class; for an object use FromPML", self.loss)
        check_options(self.options)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.Module:
        """Build the loss; its parameters, if any, are drawn from torch's global generator.

        Parameters
        ----------
        embedding_dim
            Width e of the embeddings.
        n_classes
            Number c of classes; a loss with proxies then needs labels 0 to c - 1.

        Raises
        ------
        MissingExtra
            If the package is not installed.
        UnknownName
            If it has no such loss; lists near matches.
        InvalidArgument
            If the loss does not accept the options.
        """
        return LearnedPML(self._build({"num_classes": n_classes, **dict.fromkeys(WIDTHS, embedding_dim)}))

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the value of the batch, once for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels.
        distance
            Not used; see the notes of the class.

        Returns
        -------
        Tensor
            (n,), all equal.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit, or the loss has parameters and thus needs :meth:`setup`.
        MissingExtra, UnknownName
            As :meth:`setup`.
        """
        loss = self._build({})
        if any(True for _ in loss.parameters()):
            need = "a loss without parameters: call setup(embedding_dim, n_classes) and use its result"
            raise InvalidArgument("loss", need, self)
        return _one_value(loss, z, y)

    def _build(self, sizes: dict[str, int]) -> nn.Module:
        """Construct the loss from the options and from those sizes that it requires."""
        cls = named("loss", self.loss)
        required = _required(cls)
        arguments = {k: v for k, v in sizes.items() if k in required} | dict(self.options)
        try:
            return cls(**arguments)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            if not sizes and required & {"num_classes", *WIDTHS} - set(arguments):
                need = "sizes: call setup(embedding_dim, n_classes) and use its result"
                raise InvalidArgument("loss", need, self) from error
            raise InvalidArgument("options", f"what {self.loss} accepts ({error})", self.options) from error


@dataclass(frozen=True, eq=False)
class FromPML:
    """A loss object of pytorch-metric-learning in hand, whatever it is made of.

    Parameters
    ----------
    loss
        The object; its parameters, if any, are learnt.

    Notes
    -----
    An object cannot be written as settings: a run with it trains, but cannot be saved as ``run.json``. Use
    :class:`PML` where a name and plain options suffice. Two runs with one object share its parameters. A loss
    that keeps a memory of what it saw (``CrossBatchMemory``) also remembers what a search shows it.
    The rest is as for :class:`PML`.

    Examples
    --------
    >>> from holdfast.functional.distance import Euclidean
    >>> import torch
    >>> class Spread(torch.nn.Module):
    ...     def forward(self, z, y):
    ...         return z.std()
    >>> FromPML(Spread())(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), Euclidean()).tolist()
    [2.0, 2.0, 2.0]
    """

    loss: nn.Module
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not isinstance(self.loss, nn.Module):
            raise InvalidArgument("loss", "a loss object; for a name use PML", self.loss)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.Module:
        """Return the module that learns the object's parameters; the sizes are not needed here."""
        return LearnedPML(self.loss)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the value of the batch, once for each row: (n,), all equal."""
        return _one_value(self.loss, z, y)


class LearnedPML(nn.Module):
    """A built loss of pytorch-metric-learning; called as :class:`PML` is."""

    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the value of the batch, once for each row: (n,), all equal."""
        return _one_value(self.loss, z, y)
