"""Adversarial training with proxies: what defenses of classifiers become for embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...adversaries.logits import proxies_of
from ...errors import InvalidArgument
from ...losses import ProxyAnchor
from ...types import BatchView, Context, Progress, Step, TripletView
from ..ramp import check_ramp, ramped, weakened
from ..training import AdversarialTraining
from .mart import BoostedCrossEntropy
from .terms import ProxyTerm


def check_proxies(loss: Any) -> None:
    """Raise InvalidArgument unless a loss has proxies."""
    if not isinstance(loss, ProxyAnchor | BoostedCrossEntropy):
        raise InvalidArgument("loss", "a loss with proxies (ProxyAnchor, BoostedCrossEntropy)", loss)


@dataclass(frozen=True, kw_only=True)
class ProxyTraining(AdversarialTraining):
    """:class:`~holdfast.defenses.AdversarialTraining` whose further terms may read the proxies.

    ``extra`` may hold any :class:`~holdfast.defenses.proxies.ProxyTerm`. With PAL the proxy-anchor loss,

    - AT is PAL(x'), the adversary :class:`~holdfast.adversaries.LossClimb`;
    - TRADES is PAL(x) (``on="clean"``) and :class:`~holdfast.defenses.Divergence`, the adversary
      :class:`~holdfast.adversaries.DivergenceClimb`, better with
      :class:`~holdfast.defenses.CleanCrossEntropy` (see there);
    - ALP is PAL(x') and :class:`~holdfast.defenses.LogitPairing`, the adversary that of AT;
    - MART is :class:`~holdfast.defenses.BoostedCrossEntropy` of x' in place of PAL, and
      :class:`~holdfast.defenses.MisclassifiedDivergence`, the adversary
      :class:`~holdfast.adversaries.CrossEntropyClimb`.

    Attributes
    ----------
    ramp
        Share of the training, in [0, 1], over which radius and step length grow from 0, as those of
        :class:`~holdfast.defenses.EnsembleTraining` do. 0 begins with the whole radius.

    Notes
    -----
    That a softmax over proxies takes the place of a classifier is our adaptation; the papers stand at the
    terms. Clean and moved images go through the encoder in one pass. Besides what AdversarialTraining logs,
    ``moved_error`` and ``clean_error`` are the shares of rows whose nearest proxy is of another class.
    """

    ramp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proxies(self.loss)
        check_ramp(self.ramp)

    def at(self, progress: Progress, ease: float = 1.0) -> ProxyTraining:
        """Return the defense as it is at a moment, its radius ramped and multiplied by ``ease``."""
        now = super().at(progress, ease)
        assert isinstance(now, ProxyTraining)
        return weakened(now, ramped(self.ramp, progress))

    def _with_extra(
        self, value: Tensor, view: TripletView | BatchView, ctx: Context, logs: dict[str, float]
    ) -> Step:
        assert isinstance(view, BatchView)
        proxies, total = proxies_of(ctx), value
        for term in self.extra:
            if isinstance(term, ProxyTerm):
                total = total + term.weight * term.value(view, proxies, ctx.distance).mean()
            else:
                total = total + term(view, ctx.distance).mean()
        for name, z in (("moved_error", view.now), ("clean_error", view.clean)):
            wrong = proxies.logits(z.detach()).argmax(1) != view.y
            logs[name] = float(wrong.float().mean())
        return Step(total, {**logs, "total": float(total.detach())})
