"""The clustering line: proxy-anchor training (PAL) and defenses of classifiers adapted to it, as functions.

Each maps the name of a setting to a complete run. Logits are ``alpha * cos(z, p)`` for the learnt
proxies p; that a softmax over them takes the place of a classifier is our adaptation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..adversaries import CrossEntropyClimb, DivergenceClimb, LossClimb
from ..data import PairSampler
from ..defenses import (
    BoostedCrossEntropy,
    CleanCrossEntropy,
    CleanLoss,
    Divergence,
    FreeTraining,
    LogitPairing,
    MisclassifiedDivergence,
    Mixup,
    NoisyStart,
    ProxyTraining,
    StaticSources,
    WeightPerturbation,
)
from ..encoders import C2F2, EncoderSpec, ResNet18, ResNet50, SmallCNN
from ..losses import ProxyAnchor
from ..search import PGD
from ..threat import LinfThreat
from ..training import Run
from ..types import Defense
from .deep import RANDOM_STEP, run_of, setting
from .settings import Setting

PAIRS = 32
"""Pairs in a batch of the clustering line: many small batches."""
REPLAYS = 4
RAMP = 0.5
"""Share of training over which the radius of all recipes here grows. Ours."""
SOFT = ProxyAnchor(alpha=2.0)
"""The proxy-anchor loss under attack. With the published 32, training at a large radius learns little
(``docs/clustering.md``). Ours."""


def run_with_pairs(name: str, s: Setting, defense: Defense, **more: Any) -> Run:
    """Return the run of a defense with the batches and the pace of the clustering line."""
    pairs = PairSampler(batch_pairs=PAIRS, self_pairs=s.published)
    return run_of(name, s, defense, **{"sampler": pairs, "optimizer": s.proxies, **more})


def proxies_against(s: Setting, adversary: Any = None, **more: Any) -> ProxyTraining:
    """Return adversarial training of PAL with the budget of a setting, from a random start."""
    climb = LossClimb(loss=SOFT) if adversary is None else adversary
    search = PGD(steps=s.steps, alpha=s.alpha, random_start=True)
    parts = {"loss": SOFT, "search": search, "threat": LinfThreat(eps=s.eps), "ramp": RAMP, **more}
    return ProxyTraining(adversary=climb, **parts)


def proxy(data: str = "digits") -> Run:
    """Proxy-anchor loss, no adversary: the undefended encoder of the clustering line (Kim et al. 2020)."""
    return run_with_pairs("proxy", setting(data), ProxyTraining(loss=ProxyAnchor()))


def proxy_at(data: str = "digits") -> Run:
    """PAL on images that raise it, from a random start (adversarial training, Madry et al. 2018)."""
    s = setting(data)
    return run_with_pairs("proxy-at", s, proxies_against(s))


def proxy_at_clean(data: str = "digits") -> Run:
    """As ``proxy-at``, on clean images too: more accurate, less robust."""
    s = setting(data)
    return run_with_pairs("proxy-at-clean", s, proxies_against(s, extra=(CleanLoss(),)))


def proxy_at_wide(data: str = "digits") -> Run:
    """As ``proxy-at``, with about three times the parameters: the control of ensembles of three."""
    return replace(proxy_at(data), name="proxy-at-wide", encoder=wide(setting(data).encoder))


def proxy_fast_at(data: str = "digits") -> Run:
    """As ``proxy-at`` with one long step from a random start (Wong et al. 2020), watched."""
    s = setting(data)
    search = PGD(steps=1, alpha=RANDOM_STEP * s.eps, random_start=True)
    watch = PGD(steps=s.steps, alpha=s.alpha)
    return run_with_pairs("proxy-fast-at", s, proxies_against(s, search=search, monitor=watch))


def proxy_free_at(data: str = "digits") -> Run:
    """PAL with four replays a batch and a quarter of the epochs (free training, Shafahi et al. 2019)."""
    s = setting(data)
    free = FreeTraining(loss=SOFT, threat=LinfThreat(eps=s.eps), replays=REPLAYS)
    return run_with_pairs("proxy-free-at", s, free, epochs=max(1, s.epochs // REPLAYS))


def proxy_mixup(data: str = "digits") -> Run:
    """PAL on mixed images, mixed alike, no adversary (Mix-Up, Zhang et al. 2018)."""
    return run_with_pairs("proxy-mixup", setting(data), Mixup(loss=ProxyAnchor()))


def proxy_trades(data: str = "digits") -> Run:
    """PAL and cross-entropy of x, and 6 KL(softmax l(x) || softmax l(x')) that x' raises (TRADES, 2019).

    Without the cross-entropy and the ramp of the radius (both ours), training stays where one proxy is the
    nearest to every image: the divergence is 0 there and PAL small, but clusters are as weak as undefended.
    """
    s = setting(data)
    search = NoisyStart(steps=s.steps, alpha=s.alpha)
    parts = {"search": search, "on": "clean", "extra": (Divergence(), CleanCrossEntropy())}
    return run_with_pairs("proxy-trades", s, proxies_against(s, DivergenceClimb(), **parts))


def proxy_alp(data: str = "digits") -> Run:
    """As ``proxy-at``, with the logits of x and x' pulled together (logit pairing, Kannan et al. 2018)."""
    s = setting(data)
    return run_with_pairs("proxy-alp", s, proxies_against(s, extra=(LogitPairing(),)))


def proxy_mart(data: str = "digits") -> Run:
    """Boosted cross-entropy on x' and a divergence for misclassified rows (MART, Wang et al. 2020)."""
    s = setting(data)
    parts = {"loss": BoostedCrossEntropy(), "extra": (MisclassifiedDivergence(),)}
    return run_with_pairs("proxy-mart", s, proxies_against(s, CrossEntropyClimb(), **parts))


def proxy_awp(data: str = "digits") -> Run:
    """As ``proxy-at`` at the worst weights nearby (adversarial weight perturbation, Wu et al. 2020)."""
    s = setting(data)
    return run_with_pairs("proxy-awp", s, WeightPerturbation(part=proxies_against(s)))


def tramer_eat(data: str = "digits") -> Run:
    """PAL on clean images and on examples of trained sources, which must be given (Tramèr et al. 2018)."""
    s = setting(data)
    search = PGD(steps=s.steps, alpha=s.alpha, random_start=True)
    defense = StaticSources(loss=SOFT, search=search, threat=LinfThreat(eps=s.eps), ramp=RAMP)
    return run_with_pairs("tramer-eat", s, defense)


def wide(encoder: EncoderSpec) -> EncoderSpec:
    """Return a wider spec of the same kind, with about three times the parameters (ResNet-50: twice)."""
    if isinstance(encoder, C2F2):
        return replace(encoder, width=1.79 * encoder.width)
    if isinstance(encoder, SmallCNN):
        return replace(encoder, width=round(2.3 * encoder.width))
    assert isinstance(encoder, ResNet18)  # the settings hold no other
    return ResNet50(embedding_dim=encoder.embedding_dim)


CLUSTERING: Mapping[str, Callable[[str], Run]] = {
    "proxy": proxy,
    "proxy-at": proxy_at,
    "proxy-at-clean": proxy_at_clean,
    "proxy-at-wide": proxy_at_wide,
    "proxy-fast-at": proxy_fast_at,
    "proxy-free-at": proxy_free_at,
    "proxy-mixup": proxy_mixup,
    "proxy-trades": proxy_trades,
    "proxy-alp": proxy_alp,
    "proxy-mart": proxy_mart,
    "proxy-awp": proxy_awp,
    "tramer-eat": tramer_eat,
}
"""Recipes of the clustering line by name."""
