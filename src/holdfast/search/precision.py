"""Search in low precision, measure in full: an encoder that computes in bfloat16, and when that is right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.screening import bfloat16_is_fast
from ..types import Encoder
from .modes import frozen

Precision = Literal["fp32", "bf16", "auto"]
"""``auto`` stands for one of the other two, chosen by :func:`choose_precision` before a suite begins."""


class LowPrecision(nn.Module):
    """Run an encoder under bfloat16 autocast; embeddings come back in float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        with torch.autocast(x.device.type, torch.bfloat16):
            z: Tensor = self.encoder(x)
        return z.float()


def in_precision(encoder: Encoder, precision: Precision) -> Encoder:
    """Return the encoder for a search: itself, or in bfloat16.

    Raises
    ------
    InvalidArgument
        For an unknown precision, ``auto`` that was not resolved, or bf16 with an encoder that is no module.
    """
    if precision not in ("fp32", "bf16"):
        raise InvalidArgument("precision", "'fp32' or 'bf16' ('auto' is for whole evaluations)", precision)
    if precision == "fp32":
        return encoder
    if not isinstance(encoder, nn.Module):
        raise InvalidArgument("precision", "'fp32' for an encoder that is no torch module", precision)
    return LowPrecision(encoder)


class Chosen(NamedTuple):
    """The precision of the searches, to be recorded with every score, and why."""

    precision: Literal["fp32", "bf16"]
    reason: str


def choose_precision(
    encoder: Encoder,
    device: torch.device,
    precision: Precision = "auto",
    *,
    agrees: Callable[[], bool] | None,
) -> Chosen:
    """Resolve a precision, once for a whole evaluation.

    Our design: ``auto`` is bfloat16 where the encoder is a module with float32 weights, the processor
    multiplies bfloat16 itself (:func:`native_bfloat16`) and ``agrees`` finds nothing lost; float32 everywhere
    else.

    Parameters
    ----------
    encoder
        What is searched on.
    device
        Where it computes.
    precision
        What was asked for; anything but ``auto`` is returned as it is.
    agrees
        Whether attacks searched in bfloat16 break as many queries, measured in float32, as those searched in
        float32: check R31 on a sample. Called at most once, and only if the rest speaks for bfloat16.
        ``None`` means that nobody can tell, which leaves float32.

    Raises
    ------
    InvalidArgument
        For an unknown precision.

    Notes
    -----
    Nothing is timed: a choice by the clock would depend on what else the machine does, and the same command
    would search differently from one day to the next. What decides is the kind of processor, the weights and
    the check, so that a machine always chooses the same; another machine may choose otherwise, which the
    recorded word shows. What the choice is worth, :func:`speeds` measures. On one thread of a processor with
    avx512_bf16, at batches of 128, bfloat16 was 2.0 times as fast on C2F2, 2.1 times on SmallCNN at 28 pixels
    and 1.6 times at 8, 1.7 times on ResNet-18 at 32 pixels (batches of 32); nowhere was it slower, though at
    16 images of 8 pixels it gained nothing.

    Examples
    --------
    >>> choose_precision(torch.neg, torch.device("cpu"), agrees=lambda: True)
    Chosen(precision='fp32', reason='the encoder is no torch module')
    """
    if precision not in ("fp32", "bf16", "auto"):
        raise InvalidArgument("precision", "'fp32', 'bf16' or 'auto'", precision)
    if precision != "auto":
        return Chosen(precision, "as asked")
    if not isinstance(encoder, nn.Module):
        return Chosen("fp32", "the encoder is no torch module")
    kinds = {p.dtype for p in encoder.parameters()}
    if kinds != {torch.float32}:
        return Chosen("fp32", "the weights are not float32")
    if not native_bfloat16(device):
        return Chosen("fp32", f"this {device.type} does not multiply bfloat16 itself")
    if agrees is None:
        return Chosen("fp32", "bfloat16 was not checked")
    if not agrees():
        return Chosen("fp32", "bfloat16 loses against float32 (check R31)")
    return Chosen("bf16", "bfloat16 is native and loses nothing (check R31)")


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 by instructions of its own.

    CPUs: avx512_bf16 or amx_bf16 on x86, bf16 on ARM. CUDA: compute capability 8.0 (Ampere) or later. PyTorch
    runs bfloat16 elsewhere too, by way of float32, and slower. Devices of other kinds: no.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    flags: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    if flags is None:  # an older PyTorch
        return bfloat16_is_fast()
    return any(bool(flags().get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class Speeds(NamedTuple):
    """Input-gradient passes, in images a second."""

    fp32: float
    bf16: float

    @property
    def gain(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.bf16 / self.fp32


def speeds(encoder: nn.Module, x: Tensor, rounds: int = 5) -> Speeds:
    """Measure the passes of a search in both precisions, in turn, after one warm-up each.

    Parameters
    ----------
    encoder
        Leaves no trace in it, as no search does.
    x
        (n, c, h, w) a sample of the images, as many as a search takes at once.
    rounds
        Passes of each kind, >= 1; medians count.
    """
    if rounds < 1:
        raise InvalidArgument("rounds", "an integer >= 1", rounds)
    kinds = {"fp32": encoder, "bf16": LowPrecision(encoder)}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    with frozen(encoder), torch.enable_grad():
        for _ in range(rounds + 1):
            for name, model in kinds.items():
                start = time.perf_counter()
                inputs = x.detach().requires_grad_(True)
                torch.autograd.grad(model(inputs).square().sum(), inputs)
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
                spent[name].append(time.perf_counter() - start)
    return Speeds(*(len(x) / statistics.median(times[1:]) for times in spent.values()))
