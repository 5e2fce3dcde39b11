"""Take a model elsewhere: ONNX with parity tests, safetensors, a card of its records, audited galleries."""

from __future__ import annotations

from .audit import GalleryAudit, audit_run, audit_vectors
from .folder import export_run
from .onnx import Exported, export_onnx
from .parity import Parity, robustness_parity
from .session import OnnxEncoder

__all__ = [
    "Exported",
    "GalleryAudit",
    "OnnxEncoder",
    "Parity",
    "audit_run",
    "audit_vectors",
    "export_onnx",
    "export_run",
    "robustness_parity",
]
