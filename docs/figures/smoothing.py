"""Certified share against the radius: higher with the distribution of margins than without.

Recall@1 that is certified at each radius, 24 test digits on an encoder trained with noise for a few
seconds, 600 noisy copies each (real certificates use 10 000). "Ball" uses the mean embedding alone,
"levels" the distribution of the margins as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from holdfast.certify import Smoothing, certify_recall
from holdfast.data import Digits
from holdfast.evaluation import retrieval_task

from . import common

COPIES = 600


def draw(figure: Figure) -> None:
    """Draw both bounds."""
    encoder, test = common.encoder("noise"), Digits().load().test
    task = retrieval_task(
        encoder, test.x[:24], test.y[:24], gallery=test.x[100:300], gallery_y=test.y[100:300]
    )
    axes = figure.subplots()
    radii = np.linspace(0, 0.3, 121)
    for bound, colour in (("ball", common.WARM), ("levels", common.HELD)):
        how: Any = {"sigma": 0.25, "n_select": 60, "n_certify": COPIES, "alpha": 1e-3, "bound": bound}
        certificate = certify_recall(task, Smoothing(**how))
        axes.plot(radii, [100 * certificate.accuracy_at(float(r)) for r in radii], color=colour, label=bound)
    axes.set(xlabel="l2 radius", ylabel="certified Recall@1, %", ylim=(0, 102), xlim=(0, 0.3))
    axes.legend()
