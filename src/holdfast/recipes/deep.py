"""The deep line: plain triplets, EST, ACT, Hardness Manipulation with and without the structure term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adversaries import Collapse, Gradual, HardnessManipulation, Shift
from ..data import DATASETS, PairSampler
from ..defenses import AdversarialTraining
from ..encoders import C2F2, EncoderSpec, SmallCNN
from ..errors import UnknownName
from ..losses import IntraClassStructure, Triplet
from ..miners import Random, Softhard
from ..search import PGD
from ..threat import LinfThreat
from ..training import Adam, Run
from ..types import Adversary, Miner


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The constants of a data set: network, budget, length of training.

    ``published`` keeps two habits of the reference code: an image may be its own partner in a pair, and the
    softhard miner may take the anchor as its own positive.
    """

    encoder: EncoderSpec
    eps: float
    steps: int
    alpha: float
    epochs: int
    batch_pairs: int = 128
    published: bool = False
    optimizer: Adam = field(default_factory=Adam)


# The published constants for 28-pixel networks: eps 77/255, alpha 3/255, 32 steps, 8 epochs, Adam 1e-3, 1e-7.
_PUBLISHED_28 = Setting(encoder=C2F2(), eps=77 / 255, steps=32, alpha=3 / 255, epochs=8, published=True)

SETTINGS: Mapping[str, Setting] = {
    # Ours: chosen on a part of the training rows, see docs/decisions.md.
    "digits": Setting(encoder=SmallCNN(), eps=0.2, steps=8, alpha=0.05, epochs=40, batch_pairs=100),
    "mnist": _PUBLISHED_28,
    "fashion-mnist": _PUBLISHED_28,
    "omniglot": Setting(encoder=C2F2(), eps=0.1, steps=8, alpha=0.025, epochs=8),
}


def _run(
    name: str,
    data: str,
    *,
    softhard: bool = False,
    adversary: Adversary[Any] | None = None,
    extra: tuple[Any, ...] = (),
) -> Run:
    if data not in SETTINGS:
        raise UnknownName("data set", data, SETTINGS)
    s = SETTINGS[data]
    threat = LinfThreat(eps=s.eps)
    miner: Miner = Softhard(self_positive=s.published) if softhard else Random()
    parts: dict[str, Any] = {}
    if adversary is not None:
        parts = {"adversary": adversary, "search": PGD(steps=s.steps, alpha=s.alpha), "threat": threat}
    return Run(
        name=name,
        data=DATASETS[data](),
        defense=AdversarialTraining(loss=Triplet(margin=0.2), miner=miner, extra=extra, **parts),
        threat=threat,
        encoder=s.encoder,
        sampler=PairSampler(batch_pairs=s.batch_pairs, self_pairs=s.published),
        optimizer=s.optimizer,
        epochs=s.epochs,
    )


def plain(data: str = "digits") -> Run:
    """Triplet loss on random triplets, no adversary: the undefended encoder of the published tables."""
    return _run("plain", data)


def est(data: str = "digits") -> Run:
    """Embedding-shifted triplets (Zhou et al., ECCV 2020)."""
    return _run("est", data, adversary=Shift())


def act(data: str = "digits") -> Run:
    """Anti-collapse triplets (Zhou et al., TPAMI 2024)."""
    return _run("act", data, adversary=Collapse())


def hm(data: str = "digits") -> Run:
    """Hardness manipulation, HM[S, gLGA] (Zhou and Patel, CVPR 2022)."""
    return _run("hm", data, softhard=True, adversary=HardnessManipulation(destination=Gradual()))


def hm_ics(data: str = "digits") -> Run:
    """HM[S, gLGA] with the intra-class structure term, weight 0.5 (Zhou and Patel, CVPR 2022)."""
    adversary = HardnessManipulation(destination=Gradual())
    return _run("hm-ics", data, softhard=True, adversary=adversary, extra=(IntraClassStructure(weight=0.5),))
