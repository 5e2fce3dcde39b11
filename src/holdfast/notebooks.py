"""What a notebook shows instead of ``repr``: small HTML tables, readable on light and dark pages, no script.

Every text is escaped here and nowhere else. Colours are mixed from that of the page, and never tell anything
that words do not tell too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

LONGEST = 60
"""Rows that are shown, at most."""
_INK = "color:inherit;background:transparent;"
_LINE = "border:0;border-bottom:1px solid rgba(128,128,128,.35);"
_STYLES = {
    "": "",
    "better": "color:#1b8a5f;font-weight:600;",
    "worse": "color:#c25a24;font-weight:600;",
    "quiet": "opacity:.65;",
    "only a": "color:#c25a24;",
    "only b": "color:#1b8a5f;",
    "strong": "font-weight:600;",
}
"""How a cell looks; both colours have a contrast of 4 : 1 at least on white and on black."""


class Cell(NamedTuple):
    """A cell that looks otherwise than the rest: ``"better"``, ``"worse"``, ``"quiet"`` or ``"strong"``."""

    text: str
    look: str = ""


def table_html(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    caption: str = "",
    note: str = "",
    text: Sequence[int] = (0,),
) -> str:
    """Return a table of plain texts as HTML.

    Parameters
    ----------
    head
        Heading of each column; none where all are empty.
    rows
        Texts, or cells with a look; of more than ``LONGEST`` the first are shown and the rest is counted.
    caption, note
        Above and beneath.
    text
        Columns of words, which stand to the left; numbers stand to the right.

    Examples
    --------
    >>> "<b>" in table_html(["run"], [["<b>bold</b>"]])
    False
    """
    body = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    more = f"{len(body) - LONGEST} more rows. " if len(body) > LONGEST else ""
    parts = [f'<table style="border-collapse:collapse;{_INK}margin:.4em 0">']
    if caption:
        place = "caption-side:top;text-align:left;font-weight:600;padding:.2em 0;color:inherit"
        parts.append(f'<caption style="{place}">{escape(caption)}</caption>')
    if any(head):
        cells = "".join(
            f'<th scope="col" style="{_style(i in text)}font-weight:600;opacity:.75">{escape(name)}</th>'
            for i, name in enumerate(head)
        )
        parts.append(f'<thead><tr style="{_INK}">{cells}</tr></thead>')
    parts.append("<tbody>")
    for row in body[:LONGEST]:
        parts.append(f'<tr style="{_INK}">' + "".join(_cell(c, i in text, i == 0) for i, c in enumerate(row)))
        parts.append("</tr>")
    parts.append("</tbody></table>")
    if more or note:
        parts.append(f'<div style="opacity:.75;font-size:90%;max-width:44em">{escape(more + note)}</div>')
    return "<div>" + "".join(parts) + "</div>"


def lines_html(lines: Iterable[tuple[str, str]], caption: str) -> str:
    """Return the lines of a difference, ``("-", text)`` and ``("+", text)``, as HTML; empty of none."""
    looks = {"-": "only a", "+": "only b"}
    body = "".join(
        f'<div style="{_STYLES[looks.get(sign, "")]}">{escape(sign)} {escape(line)}</div>'
        for sign, line in lines
    )
    if not body:
        return ""
    head = f'<div style="font-weight:600;margin-top:.6em">{escape(caption)}</div>'
    return f'<div>{head}<div style="font-family:monospace;white-space:pre-wrap">{body}</div></div>'


def _style(left: bool) -> str:
    return f"text-align:{'left' if left else 'right'};padding:.15em .7em .15em 0;{_LINE}{_INK}"


def _cell(cell: Cell, left: bool, heads: bool) -> str:
    style = f"{_style(left)}{_STYLES[cell.look]}"
    if not heads:
        return f'<td style="{style}">{escape(cell.text)}</td>'
    weight = "" if cell.look else "font-weight:400"
    return f'<th scope="row" style="{style}{weight}">{escape(cell.text)}</th>'
