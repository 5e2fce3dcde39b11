"""Weight of an image by its cosine to its proxy: a step for alpha 32, gentle for alpha 2.

Slope of the proxy-anchor loss in the cosine between an image and its own proxy. With the published
sharpness 32 an image is either ignored or counts in full; under a large radius nearly all count in full.
The recipes here train with 2.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from holdfast.functional.distance import Cosine
from holdfast.losses import ProxyAnchor

from . import common


def slope(alpha: float, cosines: np.ndarray) -> np.ndarray:
    """Return minus the derivative of the loss of one image by its cosine, divided by alpha."""
    found = []
    for value in cosines:
        s = torch.tensor(float(value), dtype=torch.float64, requires_grad=True)
        z = torch.stack([s, (1 - s * s).clamp_min(1e-12).sqrt(), 0 * s])[None]
        learnt = ProxyAnchor(alpha=alpha).setup(3, 2).double()
        with torch.no_grad():
            learnt.proxies.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
        loss = learnt(z, torch.tensor([0]), Cosine()).sum()
        (grad,) = torch.autograd.grad(loss, s)
        found.append(-float(grad) / alpha)
    return np.array(found)


def draw(figure: Figure) -> None:
    """Draw two sharpnesses."""
    axes = figure.subplots()
    cosines = np.linspace(-0.6, 0.95, 80)
    for alpha, colour in ((32.0, common.ATTACKED), (8.0, common.WARM), (2.0, common.HELD)):
        axes.plot(cosines, slope(alpha, cosines), color=colour, label=f"alpha {alpha:g}")
    axes.set(xlabel="cosine of an image and its own proxy", ylabel="slope / alpha")
    axes.legend()
