"""The optional packages of the export, and quiet around them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtra

INPUT, OUTPUT = "images", "embeddings"
"""What graphs call their input and output."""


@dataclass(frozen=True)
class Tools:
    """The packages themselves."""

    onnx: Any
    runtime: Any


def tools_of() -> Tools:
    """Return onnx and onnxruntime, or say what is missing for an export."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (the exporter of PyTorch needs it)
    except ImportError as error:
        raise MissingExtra("onnx and onnxscript", "onnx", "the export to ONNX") from error
    return Tools(onnx, runtime_of())


def runtime_of() -> Any:
    """Return onnxruntime, or say that it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "an encoder in ONNX") from error
    return onnxruntime


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporter's progress and the quantiser's advice off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
