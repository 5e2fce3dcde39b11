"""A page of reference for every package and module that says by ``__all__`` what is public."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .paths import SOURCE

NAME = "holdfast"
LEFT_OUT = ("holdfast.cli",)
"""Described by the page of the command line."""
ALONE = (
    "holdfast.types", "holdfast.errors", "holdfast.rng", "holdfast.files", "holdfast.config",
    "holdfast.threat", "holdfast.schedules", "holdfast.runs", "holdfast.comparison",
    "holdfast.scorecard", "holdfast.certification", "holdfast.run_certificates", "holdfast.patch",
    "holdfast.clusters", "holdfast.estimator", "holdfast.notebooks", "holdfast.demonstration",
    "holdfast.evaluation.hubs",
    "holdfast.functional.clustering", "holdfast.functional.collapse", "holdfast.functional.distance",
    "holdfast.functional.hardness", "holdfast.functional.order", "holdfast.functional.projection",
    "holdfast.functional.ranking", "holdfast.functional.spread", "holdfast.encoders.timm",
    "holdfast.encoders.huggingface",
)  # fmt: skip
"""Modules that are read by their own name: packages re-export nothing of them, or not all."""


class Page(NamedTuple):
    """A page of reference: the module, and the public names if they stand in ``__all__``."""

    module: str
    names: tuple[str, ...]
    summary: str

    @property
    def path(self) -> str:
        """Where the page is, from the folder of pages."""
        return f"reference/api/{self.module}.md"

    @property
    def text(self) -> str:
        """The page."""
        lines = [f"# {self.module}", "", f"::: {self.module}", "    options:", "      heading_level: 2"]
        if self.names:
            lines += ["      members:", *(f"        - {name}" for name in self.names)]
        return "\n".join(lines) + "\n"


def _read(path: Path) -> tuple[tuple[str, ...], str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return tuple(name for name in ast.literal_eval(node.value) if name[0] != "_"), " ".join(
                summary.split()
            )
    return (), " ".join(summary.split())


@cache
def pages() -> tuple[Page, ...]:
    """Return all pages: packages with ``__all__`` first, then the modules of :data:`ALONE` that exist."""
    found = []
    for path in sorted((SOURCE / NAME).rglob("__init__.py")):
        module = ".".join(path.parent.relative_to(SOURCE).parts)
        names, summary = _read(path)
        if names and not module.startswith(LEFT_OUT):
            found.append(Page(module, names, summary))
    for module in ALONE:
        path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
        if path.exists():
            found.append(Page(module, *_read(path)))
    return tuple(sorted(found, key=lambda page: page.module))


def index() -> str:
    """Return the list of pages (``{{reference}}``)."""
    rows = ["| module | what it holds |", "|---|---|"]
    rows += [
        f"| [{page.module}](api/{page.module}.md) | {page.summary.replace('|', ' ').replace('``', '`')} |"
        for page in pages()
    ]
    return "\n".join(rows)
