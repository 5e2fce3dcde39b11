"""Encoders: modules from images in [0, 1] to embeddings, and the specs that build them."""

from __future__ import annotations

from .adapt import adapt
from .cnn import C2F2, SmallCNN
from .encoder import Encoder, EncoderSpec, Shape, Standardize
from .ensemble import Ensemble, Heads, JointEncoder
from .huggingface import HuggingFace
from .lenet import LeNet
from .linear import LinearEncoder
from .lipschitz import LipschitzEncoder, LipschitzNet
from .mlp import MLP
from .orthogonal import GroupSort, OrthogonalConv2d, OrthogonalLinear
from .resnet import ResNet18, ResNet34, ResNet50
from .storage import load, save
from .table import ENCODERS
from .timm import Timm

__all__ = [
    "C2F2",
    "ENCODERS",
    "MLP",
    "Encoder",
    "EncoderSpec",
    "Ensemble",
    "GroupSort",
    "Heads",
    "HuggingFace",
    "JointEncoder",
    "LeNet",
    "LinearEncoder",
    "LipschitzEncoder",
    "LipschitzNet",
    "OrthogonalConv2d",
    "OrthogonalLinear",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "Shape",
    "SmallCNN",
    "Standardize",
    "Timm",
    "adapt",
    "load",
    "save",
]
