"""Figures: each file of ``docs/figures`` draws one, once for light and dark pages, kept by content hash."""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import types
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .paths import CACHE, DOCS, ROOT, SOURCE

FOLDER = DOCS / "figures"
PACKAGE = "holdfast_figures"
TARGET = "assets/figures"
LEFT_OUT = ("cli", "report", "bench")
"""Packages of the library that no figure computes with."""

SHADES = {
    "#101011": ("#1c1e21", "#e8e8ea"),  # ink
    "#fdfcfa": ("#ffffff", "#1e2129"),  # ground
    "#8a8b8c": ("#6b7078", "#9aa0ab"),  # soft
    "#dadbdc": ("#dfe1e5", "#3a3f4b"),  # grid
    "#0072b2": ("#0072b2", "#56b4e9"),  # clean
    "#d55e00": ("#d55e00", "#ff8a3d"),  # attacked
    "#009e73": ("#008060", "#2fc79a"),  # held
    "#cc79a7": ("#b0508a", "#e39cc6"),
    "#e69f00": ("#b87f00", "#f0b733"),
}
"""Colours of the drawing and what they become on light and on dark pages."""


class Drawn(NamedTuple):
    """A figure as two SVG texts, with its words."""

    light: str
    dark: str
    alt: str
    caption: str


def names() -> list[str]:
    """Return the names of all figures."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common" and path.stem[0] != "_")


def load(name: str) -> types.ModuleType:
    """Import a figure's file, or ``common``."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(FOLDER)]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


def words(name: str) -> tuple[str, str]:
    """Return the alternative text (first line of the docstring) and the caption (the rest)."""
    import ast

    doc = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or name
    first, _, rest = doc.partition("\n")
    return first.strip(), " ".join(rest.split()) or first.strip()


@cache
def _library() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE / "holdfast").parts[0] not in LEFT_OUT:
            digest.update(path.read_bytes())
    for path in (FOLDER / "common.py", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def svg(name: str) -> str:
    """Draw a figure and return its SVG, in the colours of the drawing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    common, module = load("common"), load(name)
    with matplotlib.rc_context(common.STYLE):
        figure = Figure(figsize=getattr(module, "SIZE", (6.0, 3.0)), layout="constrained")
        module.draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def drawn(name: str) -> Drawn:
    """Return a figure, drawn now or found in the cache."""
    text = (FOLDER / f"{name}.py").read_bytes()
    key = hashlib.sha256(text + _library().encode()).hexdigest()[:20]
    kept = CACHE / f"{name}-{key}.svg"
    if kept.exists():
        raw = kept.read_text(encoding="utf-8")
    else:
        raw = svg(name)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*.svg"):
            old.unlink()
        part = kept.with_suffix(".part")
        part.write_text(raw, encoding="utf-8")
        part.replace(kept)
    light = dark = raw
    for drawing, (on_light, on_dark) in SHADES.items():
        light, dark = light.replace(drawing, on_light), dark.replace(drawing, on_dark)
    return Drawn(light, dark, *words(name))


def files() -> dict[str, str]:
    """Draw everything; return the site's files by path."""
    found = {}
    for name in names():
        figure = drawn(name)
        found[f"{TARGET}/{name}-light.svg"] = figure.light
        found[f"{TARGET}/{name}-dark.svg"] = figure.dark
    return found


def figure(name: str, up: str = "../") -> str:
    """Return the HTML of a figure (``{{figure name}}``)."""
    if name not in names():
        raise LookupError(f"{name}: no figure of that name in {FOLDER.relative_to(ROOT)}")
    alt, caption = words(name)
    images = "".join(
        f'<img src="{up}{TARGET}/{name}-{kind}.svg#only-{kind}" alt="{alt}" loading="lazy">'
        for kind in ("light", "dark")
    )
    return (
        f'<figure class="drawn" markdown="span">{images}<figcaption>{caption} '
        f"(drawn by `docs/figures/{name}.py`)</figcaption></figure>"
    )
