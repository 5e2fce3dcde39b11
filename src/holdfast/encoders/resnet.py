"""Residual networks (He et al., 2016) under torchvision's tensor names, with batch-norm that stays frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from ..errors import InvalidArgument
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width
from .weights import check_weights, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BatchNorm = Literal["frozen", "trainable"]


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that is always in evaluation mode.

    Running statistics never change, whatever ``train()`` is called on; scale and shift are still trained.

    Examples
    --------
    >>> FrozenBatchNorm2d(3).train().training
    False
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a short cut: ``relu(x + f(x))``; the first carries the stride.

    Parameters
    ----------
    before
        Channels of the input.
    width
        Channels inside; the output has ``expansion * width``.
    stride
        1 or 2.
    norm
        Class of the normalisation layers.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, before: int, width: int, stride: int, norm: type[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 3, stride), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, 1), norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _short_cut(before, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h', w')."""
        z = self.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(z))
        out: Tensor = self.relu(z + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """Convolutions 1x1 - 3x3 - 1x1 beside a short cut; the 3x3 carries the stride, the last widens.

    Parameters
    ----------
    before, width, stride, norm
        See :class:`BasicBlock`.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, before: int, width: int, stride: int, norm: type[nn.BatchNorm2d]) -> None:
        super().__init__()
        after = self.expansion * width
        self.conv1, self.bn1 = _conv(before, width, 1, 1), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = _conv(width, after, 1, 1), norm(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _short_cut(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h', w')."""
        z = self.relu(self.bn1(self.conv1(x)))
        z = self.relu(self.bn2(self.conv2(z)))
        z = self.bn3(self.conv3(z))
        out: Tensor = self.relu(z + (x if self.downsample is None else self.downsample(x)))
        return out


class ResidualTrunk(nn.Module):
    """A residual network without its classifier: images to the spatial mean of the last features.

    The names of its state dict are those of torchvision's ``ResNet``, without ``fc``.

    Parameters
    ----------
    channels
        Channels of the images.
    depths
        Number of blocks in each of the four stages.
    block
        Kind of the blocks.
    norm
        Class of the normalisation layers.

    Attributes
    ----------
    width : int
        Number of features.
    """

    def __init__(
        self,
        channels: int,
        depths: tuple[int, int, int, int],
        block: type[BasicBlock | Bottleneck],
        norm: type[nn.BatchNorm2d],
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, 64, 7, 2), norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        e = block.expansion
        self.layer1 = _stage(block, 64, 64, depths[0], 1, norm)
        self.layer2 = _stage(block, 64 * e, 128, depths[1], 2, norm)
        self.layer3 = _stage(block, 128 * e, 256, depths[2], 2, norm)
        self.layer4 = _stage(block, 256 * e, 512, depths[3], 2, norm)
        self.width = 512 * e
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, width)."""
        z = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        z = self.layer4(self.layer3(self.layer2(self.layer1(z))))
        features: Tensor = z.mean((2, 3))
        return features


def _conv(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def _short_cut(before: int, after: int, stride: int, norm: type[nn.BatchNorm2d]) -> nn.Sequential | None:
    if stride == 1 and before == after:
        return None
    return nn.Sequential(_conv(before, after, 1, stride), norm(after))


def _stage(
    block: type[BasicBlock | Bottleneck],
    before: int,
    width: int,
    depth: int,
    stride: int,
    norm: type[nn.BatchNorm2d],
) -> nn.Sequential:
    """Chain blocks; the first one changes channels and resolution."""
    first = block(before, width, stride, norm)
    rest = [block(block.expansion * width, width, 1, norm) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


@dataclass(frozen=True, kw_only=True)
class _ResNet:
    """What the residual specs share; the subclasses say how deep."""

    embedding_dim: int = 512
    normalize: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    batch_norm: BatchNorm = "frozen"
    weights: str | None = None
    name: ClassVar[str]
    depths: ClassVar[tuple[int, int, int, int]]
    block: ClassVar[type[BasicBlock | Bottleneck]]

    def __post_init__(self) -> None:
        check_width("embedding_dim", self.embedding_dim)
        check_batch_norm(self.batch_norm)
        check_weights("weights", self.weights)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w), with the weights of the file if one is named.

        Raises
        ------
        RunError
            If the file is not there or its tensors do not fit; ``fc.*``, the old classifier, is left out.
        """
        check_shape(shape)
        norm = FrozenBatchNorm2d if self.batch_norm == "frozen" else nn.BatchNorm2d
        with seeded(seed, "encoder"):
            trunk = ResidualTrunk(shape[0], self.depths, self.block, norm)
            head = nn.Linear(trunk.width, self.embedding_dim)
        if self.weights is not None:
            load_weights(trunk, self.weights, ignore=("fc.",))
        return Encoder(
            trunk, head, shape=shape, spec=self, mean=self.mean, std=self.std, normalize=self.normalize
        )


def check_batch_norm(value: str) -> None:
    """Raise InvalidArgument unless the value is one of the two kinds."""
    if value not in ("frozen", "trainable"):
        raise InvalidArgument("batch_norm", "'frozen' or 'trainable'", value)


@dataclass(frozen=True, kw_only=True)
class ResNet18(_ResNet):
    """The 18-layer residual network, backbone of the published 224x224 results.

    11 176 512 parameters before the head; any image size. The head is linear, in PyTorch's default
    initialisation; convolutions start normal with the variance of He et al. (by outputs), batch
    normalisation at 1 and 0.

    Parameters
    ----------
    embedding_dim
        Width of the embeddings.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel, in pixel units of [0, 1];
        ImageNet's by default, so grey images need their own.
    batch_norm
        ``"frozen"`` keeps every batch normalisation in evaluation mode for ever: running statistics stay as
        they were loaded, scale and shift are trained. ``"trainable"`` uses and updates the statistics of the
        batch in training mode. Without ``weights``, frozen statistics are mean 0 and variance 1, that is no
        normalisation at all: take ``"trainable"`` to train from nothing.
    weights
        A local file to start from, a state dict under torchvision's names: ``.pth``, ``.pt`` or ``.bin``
        (read with ``weights_only``) or ``.safetensors``. Nothing is ever downloaded. Every tensor has to
        fit, only ``fc.*`` is left out. The file is read when an encoder is built, and no longer needed once
        the encoder is saved: its own file holds all tensors and does not name this one.

    Notes
    -----
    The published tables mix the two kinds of ``batch_norm``. In the reference code the choice hangs on the
    name of a flag: plain training, ACT and HM have frozen statistics, EST on residual networks has trainable
    ones (its adversarial images are made in evaluation mode, then trained on in training mode). EST against
    ACT or HM in those tables is therefore not like for like; report EST both ways.

    References
    ----------
    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.

    Examples
    --------
    >>> encoder = ResNet18(embedding_dim=16).build((3, 32, 32), seed=0)
    >>> sum(p.numel() for p in encoder.trunk.parameters())
    11176512
    """

    name: ClassVar[str] = "resnet18"
    depths: ClassVar[tuple[int, int, int, int]] = (2, 2, 2, 2)
    block: ClassVar[type[BasicBlock | Bottleneck]] = BasicBlock


@dataclass(frozen=True, kw_only=True)
class ResNet34(_ResNet):
    """The 34-layer residual network.

    21 284 672 parameters before the head; settings as for :class:`ResNet18`.
    """

    name: ClassVar[str] = "resnet34"
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)
    block: ClassVar[type[BasicBlock | Bottleneck]] = BasicBlock


@dataclass(frozen=True, kw_only=True)
class ResNet50(_ResNet):
    """The 50-layer residual network of bottleneck blocks.

    23 508 032 parameters before the head; settings as for :class:`ResNet18`. The stride of a bottleneck is in
    its 3x3 convolution, as in the weights that are passed around ("v1.5"), not in the first 1x1 as in the
    paper.
    """

    name: ClassVar[str] = "resnet50"
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)
    block: ClassVar[type[BasicBlock | Bottleneck]] = Bottleneck
