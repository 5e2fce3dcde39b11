"""What one may want to do, what it takes, and what of it is missing here; nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..functional.memory import in_words

TRIAL_SECONDS = 60.0
"""Time that importing a package on trial may take."""
LEAST = 1 << 30
"""Bytes of disk and of memory below which training is called short of them."""
BREAKABLE = ("torchvision", "timm", "transformers", "faiss", "onnxruntime")
"""Packages that are often there and yet fail, most by a build for another PyTorch: imported on trial."""


@dataclass(frozen=True)
class Need:
    """Something to want.

    Attributes
    ----------
    what
        What it is for.
    packages
        Name of each distribution -> module that it brings.
    extra
        Extra of Holdfast that installs them; ``""`` where none does.
    """

    what: str
    packages: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""


CORE = {
    "torch": "torch", "numpy": "numpy", "scipy": "scipy", "scikit-learn": "sklearn",
    "safetensors": "safetensors", "typer": "typer", "rich": "rich", "matplotlib": "matplotlib",
    "pillow": "PIL",
}  # fmt: skip
_PML = {"pytorch-metric-learning": "pytorch_metric_learning"}
_FAISS = {"faiss-cpu": "faiss"}
_FABRIC = {"lightning-fabric": "lightning_fabric", "dask": "dask", "distributed": "distributed"}
_ONNX = {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"}
_QDRANT = {"qdrant-client": "qdrant_client"}
_REPORT = {"plotly": "plotly"}
_DOCS = {"mkdocs-material": "material", "mkdocstrings": "mkdocstrings", "latex2mathml": "latex2mathml"}
_NOTEBOOKS = {"nbclient": "nbclient", "nbformat": "nbformat", "ipykernel": "ipykernel"}
_TEST = {
    "pytest": "pytest", "pytest-xdist": "xdist", "hypothesis": "hypothesis", "ruff": "ruff", "mypy": "mypy",
    "playwright": "playwright", **_DOCS, **_FABRIC, **_FAISS, **_NOTEBOOKS, **_ONNX, **_PML, **_QDRANT,
    **_REPORT,
}  # fmt: skip

NEEDS: Mapping[str, Need] = {
    "train": Need("train, attack, certify, report", CORE),
    "gpu": Need("the same on an NVIDIA GPU"),
    "report": Need("interactive charts (static ones need nothing)", _REPORT, "report"),
    "onnx": Need("export to ONNX", _ONNX, "onnx"),
    "faiss": Need("FAISS indexes", _FAISS, "faiss"),
    "qdrant": Need("Qdrant collections", _QDRANT, "qdrant"),
    "timm": Need("encoders of timm", {"timm": "timm", "torchvision": "torchvision"}, "timm"),
    "huggingface": Need("image encoders of Hugging Face", {"transformers": "transformers"}, "huggingface"),
    "pml": Need("losses and miners of pytorch-metric-learning", _PML, "pml"),
    "distributed": Need("several processes or machines", _FABRIC, "distributed"),
    "ray": Need("certify by Ray", {"ray": "ray"}, "ray"),
    "parquet": Need("manifests in Parquet", {"pyarrow": "pyarrow"}, "parquet"),
    "bench": Need(
        "compare with other libraries",
        {"foolbox": "foolbox", "adversarial-robustness-toolbox": "art", **_PML, **_FAISS},
        "bench",
    ),
    "docs": Need("build the documentation", _DOCS, "docs"),
    "notebooks": Need("run the example notebooks", _NOTEBOOKS, "notebooks"),
    "test": Need("run the tests", _TEST, "test"),
}  # fmt: skip
"""Everything that ``holdfast doctor --for`` knows."""


@dataclass(frozen=True)
class Finding:
    """How something stands here.

    Attributes
    ----------
    what
        What it is for.
    missing
        What is not there, or too old.
    broken
        Package that is there and cannot be imported -> why, in one line.
    command
        What mends it; ``None`` where it is ready.
    """

    what: str
    missing: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.broken

    @property
    def told(self) -> str:
        """One line."""
        if self.ready:
            return "ready"
        parts = [f"{name} is broken: {why}" for name, why in self.broken.items()]
        if not parts and self.command and self.command.startswith("pip "):
            return f"needs: {self.command}"
        return "; ".join([*parts, *(f"missing: {name}" for name in self.missing), f"mend: {self.command}"])


def examine(names: Iterable[str] = NEEDS) -> dict[str, Finding]:
    """Look at what some of :data:`NEEDS` take; what may be broken is imported in other processes."""
    wanted = {name: NEEDS[name] for name in names}
    there = {module for need in wanted.values() for module in need.packages.values() if _present(module)}
    trials = sorted(there.intersection(BREAKABLE))
    with ThreadPoolExecutor(max(1, min(len(trials), os.cpu_count() or 1))) as pool:
        failed = {m: why for m, why in zip(trials, pool.map(why_broken, trials), strict=True) if why}
    return {name: _found(name, need, there, failed) for name, need in wanted.items()}


def _found(name: str, need: Need, there: set[str], failed: Mapping[str, str]) -> Finding:
    if name == "gpu":
        return _gpu(need.what)
    missing = [dist for dist, module in need.packages.items() if module not in there]
    old = [text for dist, module in need.packages.items() if module in there and (text := _too_old(dist))]
    broken = {dist: failed[module] for dist, module in need.packages.items() if module in failed}
    short = _short() if name == "train" else ()
    command = None
    if broken:
        command = mend_broken(broken)
    if missing or old:
        install = f"pip install {'-U ' if old else ''}" + (
            f"'holdfast[{need.extra}]'" if need.extra else "holdfast"
        )
        command = f"{install} && {command}" if command else install
    return Finding(need.what, (*missing, *old, *short), broken, command or ("make room" if short else None))


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _too_old(name: str) -> str:
    """Return ``name 1.0 (need 1.2)`` if a package is older than Holdfast asks for."""
    try:
        version = importlib.metadata.version(name)
        asked = importlib.metadata.requires("holdfast") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in asked:
        rule = re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)", line)
        if rule and _plain(rule[1]) == _plain(name) and _numbers(version) < _numbers(rule[2]):
            return f"{name} {version} (need {rule[2]})"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def why_broken(module: str) -> str:
    """Return why a package cannot be imported, in one line; empty if it can. Takes another process."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"importing it took more than {TRIAL_SECONDS:.0f} s"
    if tried.returncode == 0:
        return ""
    lines = [line.strip() for line in tried.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {tried.returncode}"


def mend_broken(broken: Iterable[str]) -> str:
    """Return the command that installs packages again, those of PyTorch from the index of its build."""
    names = sorted(broken)
    if "torchvision" in names:  # what builds on it fails with it
        return f"pip install --force-reinstall --no-deps torchvision --index-url {wheels()}"
    return f"pip install --force-reinstall --no-deps {' '.join(names)}"


def wheels() -> str:
    """Return the package index of this build of PyTorch."""
    cuda = torch.version.cuda
    return f"https://download.pytorch.org/whl/{'cpu' if cuda is None else 'cu' + cuda.replace('.', '')}"


def _gpu(what: str) -> Finding:
    if torch.cuda.is_available():
        return Finding(what)
    if torch.version.cuda is None and torch.version.hip is None:
        command = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
        return Finding(what, ("a build of PyTorch for CUDA",), {}, command)
    return Finding(what, ("a GPU that PyTorch can use",), {}, "nvidia-smi  # does the driver see one?")


def _short() -> tuple[str, ...]:
    found = resources()
    return tuple(
        f"{name}: {in_words(found[key])} free, need about {in_words(LEAST)}"
        for name, key in (("disk", "disk_free"), ("memory", "memory_free"))
        if found[key] is not None and found[key] < LEAST
    )


def resources() -> dict[str, Any]:
    """Return bytes of disk and memory that are free here, and the processors that may be used."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "memory_free": _memory(),
        "cores_usable": usable,
    }


def _memory() -> int | None:
    """Return the memory that is available, where the system tells (Linux)."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else None
