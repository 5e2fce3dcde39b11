"""Data sets, their splits, and the samplers that make batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .augment import Augment
from .base import DataSource, DataSplit, ImageSet, class_disjoint
from .cars import Cars196
from .cub import CUB200
from .digits import Digits
from .folder import ImageFolder, images_in
from .idx import read_idx
from .inshop import InShop
from .lazy import LazyImages
from .manifest import Manifest
from .mnist import MNIST, FashionMNIST
from .omniglot import Omniglot
from .sampler import SAMPLERS, MPerClass, PairSampler, Sampler
from .sop import SOP

DATASETS: Mapping[str, type[Any]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "omniglot": Omniglot,
    "cub": CUB200,
    "cars": Cars196,
    "sop": SOP,
    "in-shop": InShop,
    "folder": ImageFolder,
    "manifest": Manifest,
}
"""Data sources (frozen dataclasses with ``load() -> DataSplit``) by name."""


def find(root: str | Path | None) -> dict[str, str]:
    """Tell for each data set where it is: ``"embedded"``, a folder, or ``"not found"``.

    Only names of files are looked at, so files that lie directly in ``root`` under the names that MNIST and
    Fashion-MNIST share are told for both.

    Examples
    --------
    >>> find(None)["digits"], find(None)["mnist"]
    ('embedded', 'not found')
    """
    places: dict[str, str] = {}
    for name, source in DATASETS.items():
        if source is Digits:
            places[name] = "embedded"
        else:
            folder = source.locate(root) if root is not None else None
            places[name] = str(folder) if folder is not None else "not found"
    return places


__all__ = [
    "CUB200",
    "DATASETS",
    "MNIST",
    "SAMPLERS",
    "SOP",
    "Augment",
    "Cars196",
    "DataSource",
    "DataSplit",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "InShop",
    "LazyImages",
    "MPerClass",
    "Manifest",
    "Omniglot",
    "PairSampler",
    "Sampler",
    "class_disjoint",
    "find",
    "images_in",
    "read_idx",
]
