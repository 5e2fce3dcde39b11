"""Encoders in ONNX as callables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptFile, InvalidArgument, RunError, told
from .tools import runtime_of


@dataclass(frozen=True, eq=False)
class OnnxEncoder:
    """An encoder that onnxruntime computes: images to embeddings, without gradients.

    Attributes
    ----------
    path
        The graph.
    threads
        Of onnxruntime; ``None`` leaves them to it.
    shape, metadata
        Channels, height and width of the images, and what stands in the file.

    Raises
    ------
    MissingExtra
        If onnxruntime is not installed.
    RunError, CorruptFile
        If there is no such file, or it is no graph from images to embeddings.

    Notes
    -----
    ``holdfast.evaluate(OnnxEncoder("encoder.onnx"), images, labels)`` attacks it by queries alone, as it has
    no gradient.
    """

    path: str | Path
    threads: int | None = None
    shape: tuple[int, ...] = field(init=False)
    metadata: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        runtime = runtime_of()
        if not Path(self.path).is_file():
            raise RunError(f"{self.path}: no such file; expected an encoder in ONNX")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            session = runtime.InferenceSession(
                Path(self.path).read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes share no root
            raise CorruptFile(self.path, None, f"not a graph of ONNX ({told(error)})") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
            raise CorruptFile(self.path, None, "need one input (n, c, h, w) and embeddings (n, e)")
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "shape", tuple(inputs[0].shape[1:]))
        object.__setattr__(self, "metadata", dict(session.get_modelmeta().custom_metadata_map))

    def __reduce__(self) -> tuple[Any, ...]:
        """Sessions cannot be copied; the file is opened again."""
        return OnnxEncoder, (self.path, self.threads)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, e), on the device and in the dtype of ``x``.

        Raises
        ------
        InvalidArgument
            If the images have another shape than the graph takes.
        """
        if x.ndim != 4 or any(
            isinstance(s, int) and s != t for s, t in zip(self.shape, x.shape[1:], strict=True)
        ):
            raise InvalidArgument(
                "x", f"images of shape (n, {', '.join(map(str, self.shape))})", tuple(x.shape)
            )
        session = self.__dict__["_session"]
        kind = np.float64 if session.get_inputs()[0].type == "tensor(double)" else np.float32
        images = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=kind)
        (z,) = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: images})
        return torch.from_numpy(z).to(x)
