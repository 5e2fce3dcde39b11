"""A griffe extension: roles and formulas of reStructuredText in docstrings become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(class|func|mod|meth|data|attr|obj|exc):`(~?)([\w.]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^\.\. math::[ \t]*(.*\n(?:[ \t]+\S.*\n?|[ \t]*\n(?=[ \t]+\S))*)", re.MULTILINE)
TABLE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<rule>=+(?: +=+)+)[ \t]*\n(?P<head>.+)\n(?P=indent)(?P=rule)[ \t]*\n"
    r"(?P<rows>(?:(?![ \t]*=+ ).*\n)+)(?P=indent)(?P=rule)",
    re.MULTILINE,
)
QUOTE = re.compile(r"^([ \t]*)>(?==? )", re.MULTILINE)
"""``>= 0`` at the start of a line, which Markdown takes for a quotation."""
LITERAL = re.compile(r"::[ \t]*$", re.MULTILINE)


def _reference(found: re.Match[str], scope: str) -> str:
    name = found[3].lstrip(".")
    full = name if name.startswith("holdfast") else f"{scope}.{name}"
    shown = name.rsplit(".", 1)[-1] if found[2] or found[1] != "mod" else name
    return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'


def _table(found: re.Match[str]) -> str:
    indent, starts = found["indent"], [run.start() for run in re.finditer("=+", found["rule"])]

    def cells(line: str) -> str:
        line = line[len(indent) :]
        parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        return f"{indent}| {' | '.join(parts)} |"

    rows = [cells(line) for line in found["rows"].splitlines()]
    return "\n".join([cells(found["head"]), f"{indent}|{'---|' * len(starts)}", *rows])


def markdown(text: str, scope: str) -> str:
    """Return a docstring in Markdown; ``scope`` is where short names are looked up."""
    text = BLOCK.sub(lambda found: f"$$\n{' '.join(found[1].split())}\n$$\n", text)
    text = MATH.sub(r"$\1$", text)
    text = ROLE.sub(lambda found: _reference(found, scope), text)
    text = TABLE.sub(_table, text)
    text = QUOTE.sub(r"\1\\>", text)
    return LITERAL.sub(":", text)


class Roles(griffe.Extension):
    """Rewrites every docstring once it has been read."""

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            scope = obj if obj.is_module or obj.is_class else obj.parent
            obj.docstring.value = markdown(obj.docstring.value, (scope or obj).module.path)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of any object."""
        self._rewrite(obj)
