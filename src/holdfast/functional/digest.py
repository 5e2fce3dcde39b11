"""A hash of named tensors: safetensors itself notices no number that changed on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(about: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over plain data and over names, types, shapes and values of tensors.

    Examples
    --------
    >>> digest({}, {"a": torch.ones(1)}) == digest({}, {"a": torch.zeros(1)})
    False
    """
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
