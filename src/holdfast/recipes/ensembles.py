"""Ensembles for clustering-based inference: EAT, its variants and controls, and rival ways to train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..defenses.ensemble import (
    Distilled,
    EnsembleTraining,
    GradientAlignment,
    GradientDiversity,
    LogDet,
)
from ..encoders import Ensemble, Heads
from ..search import PGD
from ..threat import LinfThreat
from ..training import Run
from .clustering import RAMP, SOFT, run_with_pairs
from .deep import setting
from .settings import Setting

MEMBERS = 3
WEIGHTS: Mapping[str, Any] = {
    "clean": 0.0, "own": 1.0, "transfer": 0.25, "joint": 0.25, "diverse": 0.1, "rho": 0.5,
}  # fmt: skip
"""Weights of EAT, chosen on one seed of a validation split (``docs/clustering.md``): an example made on other
members is weaker than a member's own, so it comes on top and not in its place."""
ALONE: Mapping[str, Any] = {
    "split": "none", "clean": 0.0, "own": 1.0, "transfer": 0.0, "joint": 0.0, "diverse": 0.0,
}  # fmt: skip
"""Weights under which every member is trained as it would be alone: ``proxy-at``, M times."""


def ensemble_of(name: str, s: Setting, members: int = MEMBERS, **more: Any) -> Run:
    """Return ensemble adversarial training with the budget of a setting, some of its fields changed."""
    search = PGD(steps=s.steps, alpha=s.alpha, random_start=True)
    threat = LinfThreat(eps=s.eps)
    parts = {"loss": SOFT, "search": search, "threat": threat, "ramp": RAMP, **WEIGHTS, **more}
    encoder = Ensemble(members=(s.encoder,) * members)
    return run_with_pairs(name, s, EnsembleTraining(**parts), encoder=encoder)


def eat(data: str = "digits") -> Run:
    """Ensemble adversarial training of three members (our design after the abstract of Ke 2025)."""
    return ensemble_of("eat", setting(data))


def eat_cpu(data: str = "digits") -> Run:
    """EAT of two members with three steps a search and joint examples in every other batch."""
    s = setting(data)
    search = PGD(steps=3, alpha=s.alpha * s.steps / 3, random_start=True)
    return ensemble_of("eat-cpu", s, members=2, search=search, peers=1, joint_every=2)


def eat_heads(data: str = "digits") -> Run:
    """EAT of three heads on one trunk."""
    s = setting(data)
    return replace(ensemble_of("eat-heads", s), encoder=Heads(part=s.encoder, count=MEMBERS))


def ensemble_independent(data: str = "digits") -> Run:
    """Three members, each trained adversarially alone: the control that EAT has to beat."""
    return ensemble_of("ensemble-independent", setting(data), **ALONE)


def ensemble_joint(data: str = "digits") -> Run:
    """Three members trained on examples made on all of them together."""
    return ensemble_of("ensemble-joint", setting(data), **{**ALONE, "own": 0.0, "joint": 1.0})


def ensemble_split(data: str = "digits") -> Run:
    """Folds of the data and nothing else: plain bagging of adversarially trained members."""
    return ensemble_of("ensemble-split", setting(data), **{**ALONE, "split": "fold"})


def ensemble_gal(data: str = "digits") -> Run:
    """Independent adversarial training with gradient alignment (GAL, Kariyappa and Qureshi 2019)."""
    more = {**ALONE, "diverse": 0.5, "diversity": GradientAlignment()}
    return ensemble_of("ensemble-gal", setting(data), **more)


def ensemble_trs(data: str = "digits") -> Run:
    """Independent adversarial training with diverse, short gradients (TRS-like, Yang et al. 2021)."""
    more = {**ALONE, "diverse": 2.0, "diversity": GradientDiversity()}
    return ensemble_of("ensemble-trs", setting(data), **more)


def ensemble_adp(data: str = "digits") -> Run:
    """Independent adversarial training with diverse wrong classes (ADP-like, Pang et al. 2019)."""
    return ensemble_of("ensemble-adp", setting(data), **{**ALONE, "diverse": 1.0, "diversity": LogDet()})


def ensemble_dverge(data: str = "digits") -> Run:
    """Members trained on their own examples and on others' features (DVERGE-like, Yang et al. 2020)."""
    s = setting(data)
    search = PGD(steps=s.steps, alpha=s.alpha)
    pool = Distilled(search=search, threat=LinfThreat(eps=s.eps))
    more = {**ALONE, "transfer": 1.0, "pool": pool}
    return ensemble_of("ensemble-dverge", s, **more)


ENSEMBLES: Mapping[str, Callable[[str], Run]] = {
    "eat": eat,
    "eat-cpu": eat_cpu,
    "eat-heads": eat_heads,
    "ensemble-independent": ensemble_independent,
    "ensemble-joint": ensemble_joint,
    "ensemble-split": ensemble_split,
    "ensemble-gal": ensemble_gal,
    "ensemble-trs": ensemble_trs,
    "ensemble-adp": ensemble_adp,
    "ensemble-dverge": ensemble_dverge,
}
"""Recipes of ensembles by name."""
