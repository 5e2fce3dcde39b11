"""``holdfast export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..export import export_run
from ..export.onnx import OPSET
from .options import use_threads
from .output import print_json, print_text, say


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the model: ONNX, safetensors, card, parity.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise a copy to 8 bits, and attack both copies.")
    ] = False,
    opset: Annotated[int, typer.Option(help=f"Version of ONNX's operations, at least {OPSET}.")] = OPSET,
    queries: Annotated[int, typer.Option(help="Queries of the attacks on float and int8.")] = 200,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, for the card.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and the attacks.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Export a trained encoder: ONNX (with a parity test), safetensors and a model card from its records."""
    use_threads(threads)
    tell = None if as_json else (lambda part: say(f"float and int8: {part}"))
    found = export_run(
        run, out, opset=opset, int8=int8, queries=queries, licence=licence, seed=seed, on_state=tell
    )
    if as_json:
        print_json(found)
        return
    worst = max(found["onnx"]["difference"].values())
    print_text(f"{out / 'encoder.onnx'}: PyTorch and onnxruntime differ by at most {worst:.2g}")
    if found["robustness"] is not None:
        print_text(f"{out / 'encoder.int8.onnx'}: {found['robustness']['verdict']}")
    print_text(f"{out}: encoder.safetensors, README.md (model card), parity.json")
