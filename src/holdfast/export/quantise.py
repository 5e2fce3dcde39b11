"""An int8 copy of a graph, with ranges from calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingExtra
from ..files import replacing
from ..functional.ranking import chunks
from ..types import Images
from .tools import INPUT, quietly, tools_of

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operations in int8; the division by the norm and the standardisation stay in float32."""
CALIBRATION = 256
"""Images that set the ranges of int8, at most."""


def quantise(path: Path, out: Path, images: Images) -> Literal["static", "dynamic"]:
    """Write an int8 graph beside a float one; return how the ranges of activations were set.

    Parameters
    ----------
    path, out
        The graph, and where the quantised one goes. It carries the same metadata.
    images
        Images that set the ranges, at most 256, spread over them all.
    """
    tools = tools_of()
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "quantisation to int8") from error
    rows = torch.linspace(0, len(images) - 1, min(CALIBRATION, len(images))).long()
    how: Literal["static", "dynamic"] = "static"
    with replacing(out) as temporary, quietly():
        prepared = temporary.with_suffix(".prepared.onnx")
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared), str(temporary), _Batches(images, rows),
                quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(QUANTISED),
                per_channel=True, activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except Exception:  # noqa: BLE001  (of the quantiser; ranges are then found while running)
            how = "dynamic"
            quantization.quantize_dynamic(
                str(path), str(temporary), op_types_to_quantize=list(QUANTISED),
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        finally:
            prepared.unlink(missing_ok=True)
        model = tools.onnx.load(str(temporary))
        before = {p.key: p.value for p in tools.onnx.load(str(path)).metadata_props}
        del model.metadata_props[:]
        tools.onnx.helper.set_model_props(model, {**before, "quantised": f"int8, {how}"})
        temporary.write_bytes(model.SerializeToString())
    return how


class _Batches:
    """Calibration images, a batch at a time, as the quantiser asks for them."""

    def __init__(self, images: Images, rows: Tensor) -> None:
        self._parts = iter([images[rows[at]].cpu().float().numpy() for at in chunks(len(rows), 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT: part}
