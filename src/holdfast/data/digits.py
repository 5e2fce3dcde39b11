"""Handwritten digits that come with scikit-learn: the data set that needs no files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..errors import InvalidArgument
from .base import DataSplit, ImageSet, Protocols, class_disjoint


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1 797 digits of 8x8 pixels, 10 classes; pixels are the original 0 to 16 divided by 16.

    Parameters
    ----------
    protocol
        ``"closed"``: the first ``train_images`` rows train, the rest tests, in the data set's own order, so
        nothing is random; later rows come from other writers. ``"zero-shot"``: all images of 0 to 4 train,
        all of 5 to 9 test.
    train_images
        Rows of the closed training set; the zero-shot protocol does not use it.

    References
    ----------
    Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test part).

    Examples
    --------
    >>> Digits().load().test
    ImageSet('digits test': 597 images of 1x8x8, 10 classes)
    """

    protocol: Protocols = "closed"
    train_images: int = 1200
    name: ClassVar[str] = "digits"

    def __post_init__(self) -> None:
        if self.protocol not in ("closed", "zero-shot"):
            raise InvalidArgument("protocol", "'closed' or 'zero-shot'", self.protocol)
        if not 1 <= self.train_images < 1797:
            raise InvalidArgument("train_images", "an integer in [1, 1797)", self.train_images)

    def load(self) -> DataSplit:
        """Return the split; no file outside scikit-learn is read."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        x = torch.from_numpy(raw.images).float().div_(16)[:, None]
        images = ImageSet(x, torch.from_numpy(raw.target).long(), self.name, tuple("0123456789"))
        if self.protocol == "zero-shot":
            return class_disjoint(images, range(5), range(5, 10), self.name)
        rows = torch.arange(len(images))
        train = replace(images.take(rows[: self.train_images]), name="digits train")
        test = replace(images.take(rows[self.train_images :]), name="digits test")
        return DataSplit(train, test, self.name, "closed")
