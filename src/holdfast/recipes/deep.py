"""The deep line: a function for each published method, from the name of a setting to a complete run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..adversaries import (
    Alternate,
    AnchoredCollapse,
    AnchorPerturbation,
    BodyCollapse,
    CandidatePerturbation,
    Collapse,
    Gradual,
    HardnessManipulation,
    Mined,
    MinMax,
    MixedBoundary,
    Ramp,
    Shift,
)
from ..data import PairSampler
from ..defenses import AdversarialTraining, FreeTraining, Mixture, NoiseTraining
from ..encoders import LipschitzEncoder
from ..errors import UnknownName
from ..losses import BisectorMargin, Consistency, HalfBatch, IntraClassStructure, Triplet
from ..miners import DistanceWeighted, GradualSemihard, Hardest, Random, Semihard, Softhard
from ..schedules import Linear
from ..search import PGD
from ..threat import LinfThreat
from ..training import CollapseGuard, Run
from ..types import Defense, Miner
from .settings import SETTINGS, Setting

MARGIN = 0.2
RANDOM_STEP = 1.25
"""Length of the single step of fast adversarial training, in units of eps (Wong et al. 2020)."""
SIGMA = 0.25
"""Noise of the recipe ``noise``, the usual middle one of 0.12, 0.25, 0.5 (Cohen et al. 2019)."""
CERTIFIED = 0.75
"""Margin of the recipe ``lipschitz``, an l2 radius of images; more is less accurate and has larger radii."""


def setting(name: str) -> Setting:
    """Return a setting by name."""
    if name not in SETTINGS:
        raise UnknownName("data set", name, SETTINGS)
    return SETTINGS[name]


def miners(s: Setting) -> dict[str, Miner]:
    """Return the five samplers by their letters: random, semihard, softhard, distance, hardest."""
    return {
        "r": Random(),
        "m": Semihard(margin=MARGIN),
        "s": Softhard(self_positive=s.published),
        "d": DistanceWeighted(),
        "h": Hardest(),
    }


def against(s: Setting, adversary: Any, miner: Miner, **more: Any) -> AdversarialTraining:
    """Return adversarial training with the budget of a setting."""
    parts = {"search": PGD(steps=s.steps, alpha=s.alpha), "threat": LinfThreat(eps=s.eps), **more}
    return AdversarialTraining(loss=Triplet(margin=MARGIN), miner=miner, adversary=adversary, **parts)


def run_of(name: str, s: Setting, defense: Defense, **more: Any) -> Run:
    """Return the run of a defense with the constants of a setting."""
    return Run(
        **{
            "name": name,
            "data": s.data(),
            "defense": defense,
            "threat": LinfThreat(eps=s.eps),
            "encoder": s.encoder,
            "sampler": PairSampler(batch_pairs=s.batch_pairs, self_pairs=s.published),
            "optimizer": s.optimizer,
            "epochs": s.epochs,
            **more,
        }
    )


def plain(data: str = "digits") -> Run:
    """Triplet loss on random triplets, no adversary: the undefended encoder of the published tables."""
    return run_of("plain", setting(data), AdversarialTraining(loss=Triplet(margin=MARGIN), miner=Random()))


def noise(data: str = "digits") -> Run:
    """As ``plain``, on images with Gaussian noise: to be certified by smoothing (Cohen et al. 2019)."""
    part = AdversarialTraining(loss=Triplet(margin=MARGIN), miner=Random())
    return run_of("noise", setting(data), NoiseTraining(part=part, sigma=SIGMA))


def lipschitz(data: str = "digits") -> Run:
    """An encoder of gain 1 with a hinge on its certified radius, no adversary; ours."""
    s = setting(data)
    defense = AdversarialTraining(loss=BisectorMargin(margin=CERTIFIED))
    pairs = PairSampler(batch_pairs=max(8, s.batch_pairs // 2), self_pairs=s.published)
    return run_of("lipschitz", s, defense, encoder=LipschitzEncoder(), sampler=pairs)


def est(data: str = "digits") -> Run:
    """Embedding-shifted triplets (Zhou et al., ECCV 2020)."""
    s = setting(data)
    return run_of("est", s, against(s, Shift(), Random()))


def ses(data: str = "digits") -> Run:
    """Clean triplets, and every shifted embedding kept near its clean one (SES of the reference code)."""
    s = setting(data)
    return run_of("ses", s, against(s, Shift(), Random(), on="clean", extra=(Consistency(weight=1.0),)))


def rest(data: str = "digits") -> Run:
    """Shifted positives and negatives, clean anchors (REST of the reference code)."""
    s = setting(data)
    return run_of("rest", s, against(s, Shift(moves="pn"), Random()))


def act(data: str = "digits") -> Run:
    """Anti-collapse triplets (Zhou et al., TPAMI 2024)."""
    s = setting(data)
    return run_of("act", s, against(s, Collapse(), Random()))


def act_half(data: str = "digits") -> Run:
    """Anti-collapse triplets or plain triplets, by a fair coin for each batch (px of the reference code)."""
    s = setting(data)
    parts = (
        against(s, Collapse(), Random()),
        AdversarialTraining(loss=Triplet(margin=MARGIN), miner=Random()),
    )
    return run_of("act-half", s, Mixture(parts=parts))


def min_max(data: str = "digits") -> Run:
    """Triplets as hard as the budget allows; collapses without a guard (Zhou and Patel, CVPR 2022)."""
    s = setting(data)
    return run_of("min-max", s, against(s, MinMax(), Random()))


def ramd(data: str = "digits") -> Run:
    """Min-max with clean anchors (RAMD of the reference code, whose unnormalised anchor is mended here)."""
    s = setting(data)
    return run_of("ramd", s, against(s, MinMax(moves="pn"), Random()))


def amd_semi(data: str = "digits") -> Run:
    """Hardness up to the root of the last loss, hinge not squared (an early gradual adversary)."""
    s = setting(data)
    adversary = HardnessManipulation(destination=Gradual(power=0.5), objective="linear")
    return run_of("amd-semi", s, against(s, adversary, Semihard(margin=MARGIN)))


def tbc(data: str = "digits") -> Run:
    """Whole triplets drawn together (triplet-body collapse of the reference code)."""
    s = setting(data)
    return run_of("tbc", s, against(s, BodyCollapse(), Random()))


def acap(data: str = "digits") -> Run:
    """Collapse or hardness by a coin at each step of the search (anti-collapse with anchor)."""
    s = setting(data)
    return run_of("acap", s, against(s, AnchoredCollapse(), Random()))


def hm(data: str = "digits") -> Run:
    """Hardness manipulation with the gradual adversary, HM[S, gLGA] (Zhou and Patel, CVPR 2022)."""
    s = setting(data)
    return run_of("hm", s, against(s, HardnessManipulation(destination=Gradual()), miners(s)["s"]))


def hm_ics(data: str = "digits") -> Run:
    """HM[S, gLGA] with the intra-class structure term (Zhou and Patel, CVPR 2022)."""
    s = setting(data)
    adversary = HardnessManipulation(destination=Gradual())
    extra = (IntraClassStructure(weight=s.structure),)
    return run_of("hm-ics", s, against(s, adversary, miners(s)["s"], extra=extra))


def hm_boundary(data: str = "digits") -> Run:
    """HM[S, g_B(M)]: a mined semihard destination, raised as the loss falls (Zhou and Patel, CVPR 2022)."""
    s = setting(data)
    adversary = HardnessManipulation(destination=MixedBoundary(miner=Semihard(margin=MARGIN)))
    return run_of("hm-boundary", s, against(s, adversary, miners(s)["s"]))


def hm_pair(source: str, destination: str, data: str = "digits", *, structure: bool = False) -> Run:
    """HM[source, destination] of two samplers; the same sampler twice is plain training with it.

    Parameters
    ----------
    source, destination
        Letters of :func:`miners`.
    data
        Name of a setting.
    structure
        Whether the intra-class structure term is added; only with an adversary.
    """
    s = setting(data)
    table = miners(s)
    for letter in (source, destination):
        if letter not in table:
            raise UnknownName("sampler", letter, table)
    name = f"hm-{source}-{destination}" + "-ics" * structure
    if source == destination:
        return run_of(name, s, AdversarialTraining(loss=Triplet(margin=MARGIN), miner=table[source]))
    adversary = HardnessManipulation(destination=Mined(miner=table[destination]))
    extra = (IntraClassStructure(weight=s.structure),) if structure else ()
    return run_of(name, s, against(s, adversary, table[source], extra=extra))


def hmix(data: str = "digits") -> Run:
    """HM[R, M] or HM[S, M], by a fair coin for each batch (hmix of the reference code)."""
    s = setting(data)
    destination = HardnessManipulation(destination=Mined(miner=miners(s)["m"]))
    parts = tuple(against(s, destination, miners(s)[source]) for source in ("r", "s"))
    return run_of("hmix", s, Mixture(parts=parts))


def free_at(data: str = "digits") -> Run:
    """Free adversarial training: four replays a batch, a quarter of the epochs (Shafahi et al. 2019)."""
    s = setting(data)
    free = FreeTraining(loss=Triplet(margin=MARGIN), miner=Random(), threat=LinfThreat(eps=s.eps), replays=4)
    return run_of("free-at", s, free, epochs=max(1, s.epochs // 4))


def fast_at(data: str = "digits") -> Run:
    """HM[S, gLGA] with one long step from a random start (after Wong et al. 2020), watched."""
    s = setting(data)
    search = PGD(steps=1, alpha=RANDOM_STEP * s.eps, random_start=True)
    watch = PGD(steps=s.steps, alpha=s.alpha)
    adversary = HardnessManipulation(destination=Gradual())
    return run_of("fast-at", s, against(s, adversary, miners(s)["s"], search=search, monitor=watch))


def tride(data: str = "digits") -> Run:
    """Triplet decoupling: candidates and anchors moved in turns, each as hard as the budget allows."""
    s = setting(data)
    turns = Alternate(parts=(MinMax(moves="pn"), MinMax(moves="a")))
    return run_of("tride", s, against(s, turns, GradualSemihard(margin=MARGIN), **_ramped(s)))


def ca_tride(data: str = "digits") -> Run:
    """Collapse-aware triplet decoupling as released, with its step ramp (Tian et al., ICML 2024)."""
    s = setting(data)
    turns = Alternate(
        parts=(
            CandidatePerturbation(sharpness=s.sharpness),
            AnchorPerturbation(sharpness=s.sharpness, sign="released" if s.published else "hardening"),
        )
    )
    parts = {**_ramped(s), "extra": (HalfBatch(),)}
    return run_of("ca-tride", s, against(s, turns, GradualSemihard(margin=MARGIN), **parts))


def _ramped(s: Setting) -> dict[str, Any]:
    """Return the search of the released code: 16 steps whose length grows from 0 with the epochs."""
    return {
        "search": Ramp(part=PGD(steps=16, alpha=s.alpha), field="alpha", schedule=Linear(start=0.0, stop=1.0))
    }


def holdfast(data: str = "digits") -> Run:
    """HM[S, gLGA]&ICS in many small batches, guarded against collapse; ours, see ``docs/defenses.md``."""
    return _small_batches(hm_ics(data), "holdfast", setting(data))


def holdfast_robust(data: str = "digits") -> Run:
    """As ``holdfast`` from random triplets, HM[R, gLGA]&ICS: more robust, less accurate; ours."""
    run = hm_ics(data)
    defense: Any = run.defense
    changed = replace(run, defense=replace(defense, miner=Random()))
    return _small_batches(changed, "holdfast-robust", setting(data))


def _small_batches(run: Run, name: str, s: Setting) -> Run:
    """Return a run with an eighth of the pairs in a batch: eight times the updates for the same passes."""
    pairs = PairSampler(batch_pairs=max(8, s.batch_pairs // 8), self_pairs=s.published)
    return replace(run, name=name, sampler=pairs, guard=CollapseGuard(every=64, grace=256))


SAMPLERS: Mapping[str, str] = {
    "r": "random", "m": "semihard", "s": "softhard", "d": "distance-weighted", "h": "hardest",
}  # fmt: skip
"""What the letters of :func:`miners` stand for."""


def _pair(source: str, destination: str, structure: bool = False) -> Callable[[str], Run]:
    """Return the recipe of a pair of samplers, with its description."""
    made = partial(hm_pair, source, destination, structure=structure)
    title = f"HM[{source.upper()}, {destination.upper()}]"
    words = f"{SAMPLERS[source]} triplets moved to the hardness of {SAMPLERS[destination]} ones"
    if source == destination:
        words = f"plain triplet loss on {SAMPLERS[source]} triplets, no adversary"
    if structure:
        title, words = f"{title}&ICS", f"{words}, with the structure term"
    made.__doc__ = f"{title}: {words} (Zhou and Patel, CVPR 2022)."
    return made


METHODS: Mapping[str, Callable[[str], Run]] = {
    "plain": plain,
    "noise": noise,
    "lipschitz": lipschitz,
    "est": est,
    "ses": ses,
    "rest": rest,
    "act": act,
    "act-half": act_half,
    "min-max": min_max,
    "ramd": ramd,
    "amd-semi": amd_semi,
    "tbc": tbc,
    "acap": acap,
    "hm": hm,
    "hm-ics": hm_ics,
    "hm-boundary": hm_boundary,
    "hmix": hmix,
    "free-at": free_at,
    "fast-at": fast_at,
    "tride": tride,
    "ca-tride": ca_tride,
    "holdfast": holdfast,
    "holdfast-robust": holdfast_robust,
    **{f"hm-{a}-{b}": _pair(a, b) for a in SAMPLERS for b in SAMPLERS},
    "hm-r-m-ics": _pair("r", "m", structure=True),
    "hm-s-m-ics": _pair("s", "m", structure=True),
}
"""Methods by name; ``hm-s-m`` is HM[S, M]."""
