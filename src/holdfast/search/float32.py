"""Float32 that is float32: no TensorFloat-32 and no bfloat16 inside matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _switches() -> list[Any]:
    """Return what holds a setting ``fp32_precision``; empty before PyTorch 2.9."""
    backends = torch.backends
    kinds = [getattr(backends.cuda, "matmul", None)]
    for backend in (backends.cudnn, backends.mkldnn):
        kinds += [getattr(backend, kind, None) for kind in ("matmul", "conv", "rnn")]
    return [kind for kind in kinds if hasattr(kind, "fp32_precision")]


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in float32 inside the block, for numbers that are reported.

    On GPUs PyTorch lets convolutions round their inputs to TensorFloat-32 (10 bits of mantissa) unless told
    otherwise; ``torch.set_float32_matmul_precision("medium")`` does the like to matrix products, on CPUs with
    bfloat16 too. Autocast is another matter and stays as it is. The settings are those of the process, not of
    the thread; the old ones come back.
    """
    switches = _switches()
    if switches:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value
        return
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv
