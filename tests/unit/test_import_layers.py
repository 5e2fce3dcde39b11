"""Imports run downwards only: the layer table of the architecture, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import holdfast
import holdfast.linear

LAYERS = (
    {"types", "errors", "rng", "files", "notebooks", "_version"},
    {"functional", "config", "pml"},
    {"threat", "patch", "schedules", "search", "miners", "losses"},
    {"adversaries", "attacks", "certify", "results"},
    {"defenses", "evaluation", "data", "encoders", "inference", "guard"},
    {"training", "linear", "stores"},
    {"clusters", "runs", "comparison", "scorecard", "quickstart", "demonstration", "recipes", "estimator",
     "certification", "run_certificates", "queues", "bench", "report", "adapters", "export", "starter",
     "leaderboard", "verify"},
    {"cli", "__main__", "__init__"},
)  # fmt: skip
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
ALSO = {
    "files": {"errors"}, "rng": {"errors"}, "types": {"rng"}, "search": {"threat", "schedules", "patch"},
    "report": {"comparison"}, "quickstart": {"runs", "recipes", "report"}, "comparison": {"runs"},
    "demonstration": {"quickstart", "recipes", "runs", "starter"}, "starter": {"runs", "recipes"},
    "estimator": {"recipes"}, "adapters": {"recipes"}, "export": {"runs"},
    "leaderboard": {"runs", "report", "recipes", "certification", "run_certificates"},
    "verify": {"runs", "clusters", "certification", "run_certificates", "report"},
    "runs": {"clusters"}, "scorecard": {"runs", "clusters"}, "defenses": {"encoders"},
    "cli": {"__init__"}, "__main__": {"cli"},
    "guard": {"evaluation"}, "inference": {"evaluation"},
    "certification": {"runs", "report"}, "run_certificates": {"runs", "certification", "queues", "report"},
    "queues": {"runs"}, "bench": {"runs"},
}  # fmt: skip
"""Within a layer only one's own folder, but for these."""
OPTIONAL = {
    "timm", "lightning", "lightning_fabric", "faiss", "plotly", "jinja2", "onnx", "onnxruntime",
    "pytorch_metric_learning", "torchvision", "metric_learn", "foolbox", "art", "dask", "distributed", "ray",
    "onnxscript", "qdrant_client", "transformers",
}  # fmt: skip
MAY_USE_OPTIONAL = (
    "encoders",
    "data",
    "pml",
    "training.engine",
    "training.fabric",
    "evaluation.indexes",
    "bench",
    "queues",
    "adapters",
    "export",
    "stores",
    "linear.competitors",
    "inference.backends",
    "report",
    "cli",
)
Sources = Mapping[str, str]
"""Module name below ``holdfast`` (``losses.triplet``, ``losses.__init__``) -> source text."""


@dataclass(frozen=True)
class Import:
    """One imported name; ``source`` is the module that holds the statement."""

    source: str
    target: str
    line: int
    inside_function: bool

    @property
    def inner(self) -> str | None:
        """The target below ``holdfast``, or None for other packages."""
        head, _, rest = self.target.partition(".")
        return (rest or "__init__") if head == "holdfast" else None

    def __str__(self) -> str:
        return f"{self.source.replace('.', '/')}.py:{self.line} imports {self.target}"


def imports(module: str, source: str, known: set[str]) -> Iterator[Import]:
    """Yield all imports of a module, relative ones resolved, TYPE_CHECKING and functions included."""

    def resolve(name: str) -> str:
        """Cut names of classes and functions: what is left is a module."""
        inner = name.removeprefix("holdfast").removeprefix(".")
        if not name.startswith("holdfast") or not inner:
            return name
        if inner in known:
            return name
        if f"{inner}.__init__" in known:
            return f"{name}.__init__"
        return resolve(name.rpartition(".")[0])

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                package = ["holdfast", *module.split(".")]
                base = ".".join(package[: -child.level]) if child.level else ""
                base = ".".join(part for part in (base, child.module) if part)
                names = [f"{base}.{alias.name}" for alias in child.names]
            for name in names:
                yield Import(module, resolve(name), child.lineno, inside)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)

    yield from walk(ast.parse(source), False)


def top(module: str) -> str:
    return module.partition(".")[0]


def breach(item: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    source, package = top(item.source), top(item.target)
    if item.inner is not None:
        target = top(item.inner)
        unknown = [name for name in (source, target) if name not in LAYER]
        if unknown:
            return f"{item}: {unknown[0]} stands in no layer"
        below = LAYER[target] < LAYER[source] or target == source or target in ALSO.get(source, ())
        return None if below else f"{item}: layer {LAYER[source]} may not import layer {LAYER[target]}"
    if package in OPTIONAL:
        if not any(item.source == m or item.source.startswith(f"{m}.") for m in MAY_USE_OPTIONAL):
            return f"{item}: an optional package, which only {', '.join(MAY_USE_OPTIONAL)} may use"
        if not item.inside_function:
            return f"{item}: an optional package may be imported only inside a function"
    modules = item.target.startswith("torch.nn") and not item.target.startswith("torch.nn.functional")
    return f"{item}: functional holds no modules" if source == "functional" and modules else None


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    """Return one chain for each circle that a depth-first walk meets, from its first name on."""
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        if module in chain:
            ring = chain[chain.index(module) :]
            first = ring.index(min(ring))
            found.append(" -> ".join((*ring[first:], *ring[:first], ring[first])))
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, (*chain, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())
    return found


def check(sources: Sources) -> list[str]:
    """Return every breach, each naming the offending import."""
    found = [item for name, text in sources.items() for item in imports(name, text, set(sources))]
    edges = {name: {i.inner for i in found if i.source == name and i.inner is not None} for name in sources}
    attributes = [
        f"{name.replace('.', '/')}.py:{node.lineno} uses torch.nn.{node.attr}: functional holds no modules"
        for name, text in sources.items()
        if top(name) == "functional"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "torch.nn"
        and node.attr != "functional"
    ]
    circular = [f"circle: {chain}" for chain in circles(edges)]
    return [text for text in map(breach, found) if text] + attributes + circular


def package_sources() -> Sources:
    root = Path(holdfast.__file__).parent
    files = sorted(root.rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts): f.read_text(encoding="utf-8") for f in files}


def test_imports_run_downwards() -> None:
    sources = package_sources()
    assert len(sources) > 50
    breaches = check(sources)
    assert not breaches, "\n" + "\n".join(breaches)


def test_every_module_stands_in_a_layer() -> None:
    assert {top(name) for name in package_sources()} <= set(LAYER)


GOOD = {
    "types": "import torch\nfrom torch import nn",
    "errors": "",
    "rng": "from .errors import HoldfastError",
    "threat": "from .errors import HoldfastError",
    "functional.__init__": "",
    "functional.distance": "import torch.nn.functional as F\nfrom torch.nn import functional",
    "search.__init__": "from .pgd import PGD\nfrom ..threat import T",
    "search.pgd": "from .modes import frozen\nfrom ..functional import distance",
    "search.modes": "from .. import types\nfrom ..functional.distance import D",
    "encoders.timm": "def build():\n    import timm",
    "training.engine": "class A:\n    def f(self):\n        from lightning.fabric import Fabric",
    "quickstart": "from . import runs\nfrom .recipes import R",
    "runs": "from .training.engine import E\nfrom holdfast.search import PGD",
    "recipes": "",
    "__init__": "from .quickstart import quickstart\nfrom . import runs",
    "cli.main": "from .. import __version__\nfrom ..runs import train",
}


def test_the_checker_accepts_what_is_right() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("errors", "from .threat import T", "errors.py:1 imports holdfast.threat: layer 0 may not"),
        ("errors", "from .rng import T", "errors.py:1 imports holdfast.rng: layer 0 may not import layer 0"),
        ("threat", "from .search.pgd import PGD", "threat.py:1 imports holdfast.search.pgd: layer 2"),
        ("functional.x", "from .. import search", "functional/x.py:1 imports holdfast.search.__init__: "),
        ("functional.x", "from ..search import PGD", "functional/x.py:1 imports holdfast.search.__init__: "),
        ("functional.x", "from ..search import pgd", "functional/x.py:1 imports holdfast.search.pgd: "),
        ("functional.x", "import os\nimport holdfast.search.pgd as p", "py:2 imports holdfast.search.pgd: "),
        ("losses.x", "from ..threat import T", "losses/x.py:1 imports holdfast.threat: layer 2"),
        ("data.x", "from ..encoders.timm import build", "data/x.py:1 imports holdfast.encoders.timm: "),
        ("runs", "from .quickstart import q", "runs.py:1 imports holdfast.quickstart: layer 6"),
        ("report.x", "from .. import __version__", "x.py:1 imports holdfast: layer 6 may not import layer 7"),
        ("types", "if TYPE_CHECKING:\n    from .threat import T", "types.py:2 imports holdfast.threat: "),
        ("types", "def f():\n    from .threat import T", "types.py:2 imports holdfast.threat: "),
        ("novelty.x", "from ..types import T", "novelty stands in no layer"),
        ("functional.x", "from torch import nn", "x.py:1 imports torch.nn: functional holds no modules"),
        ("functional.x", "from torch.nn import Linear", "imports torch.nn.Linear: functional holds no"),
        ("functional.x", "import torch.nn as nn", "imports torch.nn: functional holds no modules"),
        ("functional.x", "import torch\nz = torch.nn.ReLU()", "functional/x.py:2 uses torch.nn.ReLU"),
        ("losses.x", "def f():\n    import timm", "losses/x.py:2 imports timm: an optional package, which"),
        ("training.engines", "def f():\n    import lightning", "an optional package, which only"),
        ("encoders.x", "import torchvision.models", "encoders/x.py:1 imports torchvision.models: an opt"),
        ("encoders.x", "try:\n    from timm import f\nexcept ImportError:\n    pass", "only inside a func"),
        ("cli.x", "class A:\n    import faiss", "only inside a function"),
        ("search.modes", "from .pgd import PGD", "circle: search.modes -> search.pgd -> search.modes"),
        ("search.modes", "def f():\n    from . import pgd", "circle: search.modes -> search.pgd -> "),
    ],
)  # fmt: skip
def test_the_checker_catches(module: str, source: str, message: str) -> None:
    breaches = check({**GOOD, module: source})
    assert any(message in text for text in breaches), breaches


def test_scikit_learn_waits_until_it_is_needed() -> None:
    """It takes longer to load than most commands need; ``holdfast.linear`` loads it at the first name."""
    code = (
        "import sys, holdfast.cli.main, holdfast.linear as l; a = 'sklearn' in sys.modules; l.ARML; print(a)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_name_of_linear_can_be_had() -> None:
    assert all(hasattr(holdfast.linear, name) for name in holdfast.linear.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Arml'"):
        _ = holdfast.linear.Arml
