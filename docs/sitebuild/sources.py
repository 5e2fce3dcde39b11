"""The lines that implement a method, cut out of the library at build time."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .paths import ROOT, SOURCE

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Excerpt(NamedTuple):
    """Lines ``first`` to ``last`` of a file, without the docstring of what they define."""

    path: Path
    first: int
    last: int
    code: str


@cache
def _parsed(module: str) -> tuple[Path, list[str], ast.Module]:
    base = SOURCE.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    return path, text.splitlines(), ast.parse(text)


def _find(body: list[ast.stmt], name: str) -> ast.stmt:
    for node in body:
        if isinstance(node, Definition) and node.name == name:
            return node
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
    raise LookupError(name)


def excerpt(place: str) -> Excerpt:
    """Return the definition ``module:Class.method`` without its docstring.

    Raises
    ------
    LookupError
        If there is no such module, or no such definition in it.
    """
    module, _, qualified = place.partition(":")
    try:
        path, lines, tree = _parsed(module)
    except OSError as error:
        raise LookupError(f"{place}: no module {module}") from error
    node: ast.stmt | ast.Module = tree
    for name in qualified.split("."):
        if not isinstance(node, ast.Module | ast.ClassDef):
            raise LookupError(f"{place}: {name} stands in no class or module")
        try:
            node = _find(node.body, name)
        except LookupError as error:
            raise LookupError(f"{place}: no {name} there") from error
    assert not isinstance(node, ast.Module)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    last = node.end_lineno or node.lineno
    left_out: set[int] = set()
    if (
        isinstance(node, Definition)
        and ast.get_docstring(node, clean=False) is not None
        and len(node.body) > 1
    ):
        doc = node.body[0]
        left_out = set(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    kept = [lines[number - 1] for number in range(first, last + 1) if number not in left_out]
    return Excerpt(path.relative_to(ROOT), first, last, textwrap.dedent("\n".join(kept)).strip("\n"))


def source(*places: str) -> str:
    """Return code blocks of definitions (``{{source module:name ...}}``)."""
    blocks = []
    for place in places:
        path, first, last, code = excerpt(place)
        name = place.partition(":")[2]
        blocks.append(f'```python title="{name} · {path}, lines {first} to {last}"\n{code}\n```')
    return "\n\n".join(blocks)
