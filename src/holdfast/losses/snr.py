"""Signal-to-noise ratio loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance, Roles
from .checks import check_roles
from .reduce import over_violators


@dataclass(frozen=True, kw_only=True)
class SignalToNoise:
    """Triplet loss on noise-to-signal ratios: ``max(0, r(a, p) - r(a, n) + margin)``.

    ``r(a, b) = var(a - b) / var(a)``, variances over the coordinates of one embedding: the anchor is the
    signal, its difference to the other row the noise. Every triplet adds ``weight * |sum_k a_k|``, which
    keeps the mean of the coordinates near 0.

    Attributes
    ----------
    margin
        >= 0, in units of the ratio.
    weight
        Factor of the zero-mean term, >= 0.

    Notes
    -----
    Yuan et al. (Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning, CVPR 2019). As in
    the code of Hardness Manipulation, the first part is averaged over the violating triplets only, and the
    zero-mean term reads anchors only. To stay unreduced, a violating triplet is scaled by t / #violators, so
    that the plain mean over the t triplets is that value. The loss measures with its own ratio whatever the
    distance of the run, which is not used. The variance of an anchor counts as at least the machine epsilon.

    Examples
    --------
    >>> from holdfast.functional.distance import Euclidean
    >>> a, p, n = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(float(SignalToNoise(margin=0.5)(Roles(a, p, n), Euclidean())), 4)
    1.25
    """

    margin: float = 0.2
    weight: float = 5e-3
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"

    def __post_init__(self) -> None:
        for name in ("margin", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(name, "a finite number >= 0", getattr(self, name))

    def __call__(self, z: Roles, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet.

        Parameters
        ----------
        z
            Embeddings of the three roles, each (t, e) with e >= 2.
        distance
            Not used; see the notes of the class.

        Returns
        -------
        Tensor
            (t,), >= 0; its mean is the published value.

        Raises
        ------
        InvalidArgument
            If the roles differ in shape, or have one coordinate only.
        """
        check_roles(z)
        if z.anchor.shape[1] < 2:
            raise InvalidArgument("z", "embeddings of two coordinates or more", tuple(z.anchor.shape))
        signal = z.anchor.var(1, correction=0).clamp_min(torch.finfo(z.anchor.dtype).eps)  # (t,)
        noise_p = (z.anchor - z.positive).var(1, correction=0)
        noise_n = (z.anchor - z.negative).var(1, correction=0)
        value = over_violators((noise_p - noise_n) / signal + self.margin)
        return value + self.weight * z.anchor.sum(1).abs()
