"""Several encoders as one: joint embeddings, whose distances are the mean of the members' distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument
from ..rng import seeded, stream
from .cnn import SmallCNN
from .encoder import Encoder, EncoderSpec, Shape


class JointEncoder(Encoder):
    """The joint embedding ``Z = M^(-1/2) [z_1; ...; z_M]`` of M members.

    So ``|Z(x) - Z(y)|^2`` is the mean of the members' squared distances, and the norm of Z is 1 where theirs
    is: k-means, nearest neighbours, attacks and certificates work on Z as on any embedding.

    Attributes
    ----------
    widths : tuple of int
        Embedding width of every member; ``embedding_dim`` is their sum.
    """

    widths: tuple[int, ...]

    def _describe(self, spec: Any, shape: Shape, widths: tuple[int, ...], normalize: bool) -> None:
        self.spec, self.shape, self.widths, self.normalize = spec, shape, widths, normalize
        self.embedding_dim = sum(widths)

    def __len__(self) -> int:
        return len(self.widths)

    def __bool__(self) -> bool:
        return True

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the members' embeddings, M times (n, e_m), out of joint ones (n, e)."""
        return torch.split(z * math.sqrt(len(self)), list(self.widths), dim=1)

    def member(self, m: int) -> nn.Module:
        """Return one member as an encoder of its own; it shares its weights with the ensemble."""
        raise NotImplementedError

    def without(self, m: int) -> nn.Module:
        """Return the ensemble of all members but one, sharing weights; needs at least two."""
        if len(self) < 2:
            raise InvalidArgument("m", "an ensemble of at least two members", len(self))
        return _Some([self.member(i) for i in range(len(self)) if i != m])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return joint embeddings (n, e) from those of M members."""
    return torch.cat(list(parts), dim=1) / math.sqrt(len(parts))


class _Some(nn.Module):
    """A joint embedding of given encoders."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, e)."""
        return joined([member(x) for member in self.members])


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Encoders of the same or of different architectures, side by side.

    Parameters
    ----------
    members
        Specs of the members, at least one; all of them or none normalise their embeddings. Member 0 starts
        from the run's seed, as it would alone; the others from seeds of their own.
    """

    members: tuple[EncoderSpec, ...] = (SmallCNN(), SmallCNN(), SmallCNN())
    name: ClassVar[str] = "ensemble"

    def __post_init__(self) -> None:
        if not isinstance(self.members, tuple) or not self.members:
            raise InvalidArgument("members", "a tuple of at least one encoder spec", self.members)
        for member in self.members:
            if not hasattr(member, "build") or isinstance(member, Ensemble | Heads):
                raise InvalidArgument("members", "specs of plain encoders", member)
        if len({bool(getattr(member, "normalize", True)) for member in self.members}) > 1:
            raise InvalidArgument("members", "members that all normalise, or none", self.members)

    def build(self, shape: Shape, seed: int) -> JointEncoder:
        """Return a fresh ensemble for inputs (c, h, w)."""
        members = [spec.build(shape, member_seed(seed, m)) for m, spec in enumerate(self.members)]
        return SideBySide(members, self)


def member_seed(seed: int, m: int) -> int:
    """Return the seed of member ``m`` of a run: the run's own for the first."""
    return seed if m == 0 else stream(seed, "member", m).initial_seed() >> 32


class SideBySide(JointEncoder):
    """Members that share nothing; built by :class:`Ensemble`."""

    def __init__(self, members: list[Encoder], spec: Ensemble) -> None:
        nn.Module.__init__(self)
        self.members = nn.ModuleList(members)
        widths = tuple(member.embedding_dim for member in members)
        self._describe(spec, members[0].shape, widths, members[0].normalize)

    def member(self, m: int) -> nn.Module:
        """Return one member."""
        return self.members[m]

    def lay_out(self) -> None:
        """Lay out every member."""
        for member in self.members:
            assert isinstance(member, Encoder)
            member.lay_out()

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, e)."""
        return joined([member(x) for member in self.members])


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One trunk with several linear heads: a cheap ensemble, as ABE and BIER train them without attacks.

    Parameters
    ----------
    part
        Spec of the encoder whose trunk is shared and whose head is multiplied.
    count
        Number of heads M, >= 1.

    References
    ----------
    Kim et al., *Attention-based Ensemble for Deep Metric Learning*, ECCV 2018; Opitz et al., *Deep Metric
    Learning with BIER*, TPAMI 2020.
    """

    part: EncoderSpec = field(default_factory=SmallCNN)
    count: int = 3
    name: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        if not hasattr(self.part, "build") or isinstance(self.part, Ensemble | Heads):
            raise InvalidArgument("part", "the spec of a plain encoder", self.part)
        if type(self.count) is not int or self.count < 1:
            raise InvalidArgument("count", "an integer >= 1", self.count)

    def build(self, shape: Shape, seed: int) -> JointEncoder:
        """Return a fresh encoder for inputs (c, h, w)."""
        first = self.part.build(shape, seed)
        if type(first) is not Encoder:
            raise InvalidArgument("part", "an encoder of a trunk and a linear head", self.part)
        heads = [first.head]
        for m in range(1, self.count):
            with seeded(member_seed(seed, m), "head"):
                meta = first.head.weight.is_meta
                head = nn.Linear(first.head.in_features, first.head.out_features, first.head.bias is not None)
                heads.append(head.to("meta") if meta else head)
        return SharedTrunk(first, heads, self)


class SharedTrunk(JointEncoder):
    """Members that differ in their heads alone; built by :class:`Heads`."""

    def __init__(self, first: Encoder, heads: list[nn.Linear], spec: Heads) -> None:
        nn.Module.__init__(self)
        self.standardize, self.trunk = first.standardize, first.trunk
        self.heads = nn.ModuleList(heads)
        self._describe(spec, first.shape, (first.embedding_dim,) * len(heads), first.normalize)

    def member(self, m: int) -> nn.Module:
        """Return the trunk with one of the heads."""
        return _OneHead(self, m)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, e)."""
        features = self.trunk(self.standardize(x))
        return joined([_unit(head(features), self.normalize) for head in self.heads])


class _OneHead(nn.Module):
    def __init__(self, whole: SharedTrunk, m: int) -> None:
        super().__init__()
        self.standardize, self.trunk, self.head = whole.standardize, whole.trunk, whole.heads[m]
        self.normalize, self.embedding_dim = whole.normalize, whole.widths[m]
        self.training = whole.training  # its parts keep their own modes: a frozen layer stays frozen

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, e_m)."""
        return _unit(self.head(self.trunk(self.standardize(x))), self.normalize)


def _unit(z: Tensor, normalize: bool) -> Tensor:
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    return F.normalize(z, dim=1) if normalize else z
