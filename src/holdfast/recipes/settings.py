"""The constants of each data set: network, budget, length of training. Methods stand in ``deep``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..data import DATASETS, DataSource, FashionMNIST
from ..encoders import C2F2, EncoderSpec, ResNet18, SmallCNN
from ..training import Adam


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The constants of a data set.

    Attributes
    ----------
    data
        Makes the data source.
    encoder
        Architecture.
    eps, steps, alpha
        Budget of the training search.
    epochs, batch_pairs, optimizer
        Length and pace.
    proxies
        Optimiser of the clustering line, whose proxies learn faster than the encoder.
    structure
        Weight of the intra-class structure term.
    sharpness
        lambda of CA-TRIDE; ``None`` sets it from the batch.
    published
        Keep two habits of the reference code: an image may be its own partner in a pair, and the softhard
        miner may take the anchor as its own positive.
    """

    data: Callable[[], DataSource]
    encoder: EncoderSpec
    eps: float
    steps: int
    alpha: float
    epochs: int
    batch_pairs: int = 128
    optimizer: Adam = field(default_factory=Adam)
    proxies: Adam = field(default_factory=lambda: Adam(lr=6e-3, learnable=10.0))  # ours, docs/clustering.md
    structure: float = 0.5
    sharpness: float | None = None
    published: bool = False


# Published for 28-pixel networks: eps 77/255, alpha 3/255, 32 steps, 8 epochs, Adam with 1e-3 and 1e-7.
_PIXELS_28 = Setting(
    data=FashionMNIST, encoder=C2F2(), eps=77 / 255, steps=32, alpha=3 / 255, epochs=8, published=True
)
# Published for 224-pixel networks: eps 8/255, alpha 1/255, 8 steps (or 32), 75 epochs of pairs, 56 pairs in a
# process, Adam with 1e-5 (the code's value; the paper says 1e-3) and 4e-4, frozen batch-norm, ImageNet
# weights (give a local file: --set encoder.weights=resnet18.pth).
_PIXELS_224 = Setting(
    data=DATASETS["cub"], encoder=ResNet18(), eps=8 / 255, steps=8, alpha=1 / 255, epochs=75, batch_pairs=56,
    optimizer=Adam(lr=1e-5, weight_decay=4e-4), sharpness=10.0, published=True,
    proxies=Adam(lr=1e-4, weight_decay=1e-4, learnable=100.0),  # those of the code of the proxy-anchor loss
)  # fmt: skip

SETTINGS: Mapping[str, Setting] = {
    # Ours; see docs/decisions.md.
    "digits": Setting(
        data=DATASETS["digits"], encoder=SmallCNN(), eps=0.2, steps=8, alpha=0.05, epochs=40, batch_pairs=100
    ),
    "mnist": replace(_PIXELS_28, data=DATASETS["mnist"]),
    "fashion-mnist": _PIXELS_28,
    # The small protocol for CPUs: 200 training images of each class, 500 test images, 8 longer search steps.
    "fashion-small": replace(
        _PIXELS_28,
        data=lambda: FashionMNIST(train_per_class=200, test_images=500),
        steps=8,
        alpha=12 / 255,
        sharpness=10.0,
    ),
    "omniglot": Setting(data=DATASETS["omniglot"], encoder=C2F2(), eps=0.1, steps=8, alpha=0.025, epochs=8),
    "cub": _PIXELS_224,
    "cars": replace(_PIXELS_224, data=DATASETS["cars"], sharpness=9.5),
    "sop": replace(_PIXELS_224, data=DATASETS["sop"], sharpness=2.0, structure=0.05),
    # Ours, after CUB: no published runs.
    "in-shop": replace(_PIXELS_224, data=DATASETS["in-shop"], sharpness=None, published=False),
    "folder": replace(_PIXELS_224, data=DATASETS["folder"], sharpness=None, published=False),
    "manifest": replace(_PIXELS_224, data=DATASETS["manifest"], sharpness=None, published=False),
}
"""Settings by name; a recipe is a method and one of these."""
