"""Encoders: modules from images in [0, 1] to embeddings, and the specs that build them."""

from __future__ import annotations

from .cnn import C2F2, SmallCNN
from .encoder import Encoder, EncoderSpec, Shape, Standardize
from .linear import LinearEncoder
from .storage import load, save
from .table import ENCODERS

__all__ = [
    "C2F2",
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "LinearEncoder",
    "Shape",
    "SmallCNN",
    "Standardize",
    "load",
    "save",
]
