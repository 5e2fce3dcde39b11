"""Encoders by name: the only ones that a saved file may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cnn import C2F2, SmallCNN
from .ensemble import Ensemble, Heads
from .huggingface import HuggingFace
from .lenet import LeNet
from .linear import LinearEncoder
from .lipschitz import LipschitzEncoder
from .mlp import MLP
from .resnet import ResNet18, ResNet34, ResNet50
from .timm import Timm

ENCODERS: Mapping[str, type[Any]] = {
    "c2f2": C2F2,
    "small-cnn": SmallCNN,
    "linear": LinearEncoder,
    "mlp": MLP,
    "lipschitz": LipschitzEncoder,
    "lenet": LeNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "timm": Timm,
    "huggingface": HuggingFace,
    "ensemble": Ensemble,
    "heads": Heads,
}
"""Encoder specs (frozen dataclasses with ``build(shape, seed) -> Encoder``) by name."""
