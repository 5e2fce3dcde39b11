"""Any network of the timm package as a trunk; needs ``holdfast[timm]``, and nothing is downloaded."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InvalidArgument, MissingExtra
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width
from .resnet import BatchNorm, check_batch_norm
from .weights import check_weights, load_weights


class TimmTrunk(nn.Module):
    """A network of timm without its classifier; on request its batch normalisation stays in evaluation mode.

    Parameters
    ----------
    net
        (n, c, h, w) -> (n, f).
    frozen
        Whether running statistics never change, whatever ``train()`` is called on the encoder.
    """

    def __init__(self, net: nn.Module, frozen: bool) -> None:
        super().__init__()
        self.net, self.frozen = net, frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything that is not frozen."""
        super().train(mode)
        for module in self.modules():
            if self.frozen and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, f)."""
        features: Tensor = self.net(x)
        return features


@dataclass(frozen=True, kw_only=True)
class Timm:
    """A network of the timm package by name, with a linear head of ours.

    Parameters
    ----------
    model
        A name that ``timm.list_models()`` gives, with or without a tag: ``"swin_tiny_patch4_window7_224"``.
        Names of places (``hf-hub:...``, ``local-dir:...``) are refused.
    weights
        A local state dict to start from, under timm's names (``.safetensors``, ``.pth``, ``.pt``, ``.bin``;
        read with ``weights_only``). Every tensor has to fit, only the classifier is left out. timm is never
        asked for pretrained weights, so nothing is downloaded.
    embedding_dim
        Width of the embeddings; ``None`` takes as many as the network has features.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel; ``None`` takes those of the
        model's default configuration in timm.
    batch_norm
        See :class:`ResNet18`. Frozen layers stay so under ``train()`` of the encoder, not when they are
        switched one by one.

    Examples
    --------
    >>> Timm(model="swin_tiny_patch4_window7_224", embedding_dim=512).embedding_dim
    512
    """

    model: str = "resnet18"
    weights: str | None = None
    embedding_dim: int | None = None
    normalize: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_norm: BatchNorm = "frozen"
    name: ClassVar[str] = "timm"

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", self.model):
            raise InvalidArgument("model", "the plain name of a timm model", self.model)
        if self.embedding_dim is not None:
            check_width("embedding_dim", self.embedding_dim)
        check_batch_norm(self.batch_norm)
        check_weights("weights", self.weights)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w), in timm's initialisation.

        Raises
        ------
        MissingExtra
            If timm, or torchvision which it needs, is not installed.
        InvalidArgument
            If timm does not know the model, or the model wants another image size.
        RunError
            If the file of weights is not there or does not fit.
        """
        check_shape(shape)
        timm = _timm(self.model)
        if not timm.is_model(self.model):
            raise InvalidArgument("model", "a name that timm knows", self.model)
        with seeded(seed, "encoder"):
            with torch.device("cpu"):  # also for load(): tensors that timm computes and does not store
                net = timm.create_model(self.model, pretrained=False, num_classes=0, in_chans=shape[0])
            config: dict[str, Any] = net.default_cfg
            _check_size(config, shape, self.model)
            features = int(getattr(net, "head_hidden_size", None) or net.num_features)
            head = nn.Linear(features, self.embedding_dim or features)
        if self.weights is not None:
            load_weights(net, self.weights, ignore=_classifier(config))
        return Encoder(
            TimmTrunk(net, frozen=self.batch_norm == "frozen"),
            head,
            shape=shape,
            spec=self,
            mean=tuple(config["mean"]) if self.mean is None else self.mean,
            std=tuple(config["std"]) if self.std is None else self.std,
            normalize=self.normalize,
        )


def _timm(model: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise MissingExtra("timm", "timm", f"the encoder {model!r} of timm") from error


def _check_size(config: dict[str, Any], shape: Shape, model: str) -> None:
    wanted = tuple(config.get("input_size") or ())[1:]
    if config.get("fixed_input_size") and wanted != tuple(shape[1:]):
        raise InvalidArgument("shape", f"images of {wanted} for the timm model {model!r}", tuple(shape[1:]))


def _classifier(config: dict[str, Any]) -> tuple[str, ...]:
    """Return how names of the classifier begin: with those of its whole head (LeViT: ``head.bn``)."""
    names = config.get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return tuple(f"{name.rpartition('.')[0] or name}." for name in names)
