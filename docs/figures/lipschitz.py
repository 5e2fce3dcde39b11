"""Distances of embeddings against those of images: below the diagonal only if 1-Lipschitz.

Pairs of 40 digits and attacked copies of them. The 1-Lipschitz encoder never leaves the lower half. The
undefended one has embeddings of length 1, no two farther apart than 2, and still moves some of them
farther than their images (orange).
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.encoders import LipschitzEncoder
from holdfast.search import PGD
from holdfast.threat import L2Threat

from . import common

SIZE = (6.2, 3.2)


def draw(figure: Figure) -> None:
    """Draw both encoders."""
    task = common.task("plain")
    x = task.x[:40]
    lipschitz = LipschitzEncoder(width=8, units=64, embedding_dim=64).build((1, 8, 8), seed=0).eval()
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, encoder) in zip(
        panels, {"1-Lipschitz": lipschitz, "plain": common.encoder("plain")}.items(), strict=True
    ):
        with torch.no_grad():
            start = encoder(x)

        def away(z: torch.Tensor, start: torch.Tensor = start) -> torch.Tensor:
            return (z - start).norm(dim=1)

        near = [
            PGD(steps=4, alpha=e / 3, random_start=True)(
                encoder, x, away, L2Threat(eps=e), torch.Generator().manual_seed(0)
            )
            for e in (0.3, 1.0)
        ]
        images = torch.cat([x, *near])
        with torch.no_grad():
            z = encoder(images)
        rows, columns = torch.triu_indices(len(images), len(images), 1)
        far = (images[rows] - images[columns]).flatten(1).norm(dim=1)
        apart = (z[rows] - z[columns]).norm(dim=1)
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:300]
        own = torch.cat([torch.nonzero((columns - rows == 40) | (columns - rows == 80)).flatten(), pick])
        axes.plot([0, 6], [0, 6], color=common.SOFT, linestyle="--", linewidth=1)
        above = apart[own] > far[own]
        axes.plot(far[own][~above], apart[own][~above], ".", color=common.HELD, markersize=3)
        axes.plot(far[own][above], apart[own][above], "o", color=common.ATTACKED, markersize=4)
        axes.set(title=title, xlabel="distance of images", xlim=(0, 3.5), ylim=(0, 2.6))
    panels[0].set_ylabel("distance of embeddings")
