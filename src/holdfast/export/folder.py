"""A run as a folder to publish: ONNX, safetensors, parity and a model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import write_json
from ..runs import RunFolder, open_run
from . import modelcard
from .onnx import OPSET, export_onnx
from .parity import QUERIES, robustness_parity
from .session import OnnxEncoder

PARITY = "parity.json"


def export_run(
    run: str | Path | RunFolder,
    out: str | Path,
    *,
    opset: int = OPSET,
    int8: bool = False,
    queries: int | None = QUERIES,
    licence: str | None = None,
    seed: int = 0,
    on_state: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Export a finished run: ``encoder.onnx``, ``encoder.safetensors``, ``parity.json`` and ``README.md``.

    Parameters
    ----------
    run, out
        A run folder, and where the files go; files of these names there are replaced.
    opset, int8
        See :func:`~holdfast.export.onnx.export_onnx`. With int8 both encoders are attacked
        (:func:`~holdfast.export.parity.robustness_parity`) under the run's threat.
    queries, seed
        Of these attacks.
    licence
        See :func:`~holdfast.export.modelcard.write`.
    on_state
        Called with the name of each attack that begins.

    Returns
    -------
    dict
        What ``parity.json`` holds: ``"onnx"`` and, with int8, ``"robustness"``.

    Raises
    ------
    RunError
        If ``out`` is a file, or the run folder itself.
    MissingExtra
        If onnx, onnxscript or onnxruntime is not installed.
    """
    opened, place = run if isinstance(run, RunFolder) else open_run(run), Path(out)
    if place.resolve() == opened.path.resolve() or (place.exists() and not place.is_dir()):
        raise RunError(f"{place}: need a folder other than the run's; choose another --out")
    written = export_onnx(opened, place / "encoder.onnx", opset=opset, int8=int8)
    found = None
    if written.int8 is not None:
        test = opened.run.data.load().test
        found = robustness_parity(
            opened.encoder(), OnnxEncoder(written.int8), test.x, test.y, opened.run.threat,
            distance=opened.run.distance, queries=queries, seed=seed, on_state=on_state,
        ).to_plain()  # fmt: skip
    parity: dict[str, Any] = {"schema": 1, "onnx": written.to_plain(), "robustness": found}
    write_json(place / PARITY, parity)
    modelcard.write(opened, place, exported=parity["onnx"], parity=found, licence=licence)
    return parity
