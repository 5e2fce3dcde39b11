"""``holdfast doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from .._version import __version__
from ..data import find
from ..runs import machine
from .output import print_json, print_table

CORE = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "typer", "rich", "matplotlib", "pillow")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "faiss": ("faiss",),
    "distributed": ("lightning",),
    "report": ("plotly", "jinja2"),
    "onnx": ("onnx", "onnxruntime"),
    "timm": ("timm", "torchvision"),
    "pml": ("pytorch_metric_learning",),
    "bench": ("foolbox", "metric_learn"),
    "parquet": ("pyarrow",),
    "docs": ("mkdocs", "material"),
    "test": ("pytest", "hypothesis", "ruff", "mypy"),
}


def doctor_command(
    data_dir: Annotated[str | None, typer.Option(help="Folder to look for data sets in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell versions, device, threads, precision, extras and data sets of this machine."""
    found = look(data_dir)
    if as_json:
        print_json(found)
        return
    table = Table(title=f"holdfast {__version__}", title_justify="left", show_header=False)
    for part, items in found.items():
        if isinstance(items, dict):
            for name, value in items.items():
                table.add_row(part, name, str(value))
    print_table(table)


def look(data_dir: str | None = None) -> dict[str, Any]:
    """Return what the machine offers."""
    return {
        "holdfast": __version__,
        "versions": {name: importlib.metadata.version(name) for name in CORE},
        "machine": machine() | {"bf16": _bf16()},
        "extras": {name: _missing(modules) for name, modules in EXTRAS.items()},
        "data sets": find(data_dir),
    }


def _missing(modules: tuple[str, ...]) -> str:
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    return f"not installed: {', '.join(absent)}" if absent else "present"


def _bf16() -> str:
    if torch.cuda.is_available():
        return "yes (cuda)" if torch.cuda.is_bf16_supported() else "no (cuda)"
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    fast = bool(probe()) if probe is not None else False
    return "yes (avx512_bf16)" if fast else "works, without hardware support"
