"""Pieces of HTML that all sections use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .words import esc


class Cell(NamedTuple):
    """A cell of a table.

    ``value`` is what sorting goes by, ``small`` stands beneath the text in smaller type (an interval),
    ``kind`` is a class of the page's style.
    """

    text: str
    value: float | None = None
    small: str = ""
    kind: str = ""


def missing(words: str) -> str:
    """Return the one line that stands where data are missing."""
    return f'<p class="missing">{esc(words)}</p>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    kind: str = "",
    label: str = "",
    sort: bool = True,
) -> str:
    """Return a table that can be sorted by any column where scripts run; everything is escaped.

    Parameters
    ----------
    head
        Names of the columns; the first names the rows.
    rows
        Text, or :class:`Cell` for numbers.
    kind
        Further classes.
    label
        What the table shows, for those who do not see it.
    sort
        Whether its rows can be put into another order.
    """
    top = "".join(f'<th scope="col">{esc(h)}</th>' for h in head)
    body = "".join(
        "<tr>" + _cell(line[0], "th", ' scope="row"') + "".join(_cell(c, "td") for c in line[1:]) + "</tr>"
        for line in rows
    )
    caption = f'<caption class="hidden">{esc(label)}</caption>' if label else ""
    sortable = "sortable" if sort and len(rows) > 1 else ""
    classes = f' class="{" ".join(filter(None, (sortable, kind)))}"' if sortable or kind else ""
    text = f"<table{classes}>{caption}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{text}</div>'


def _cell(content: object, tag: str, more: str = "") -> str:
    if not isinstance(content, Cell):
        return f"<{tag}{more}>{esc(content)}</{tag}>"
    kind = f' class="{content.kind}"' if content.kind else ""
    value = f' data-value="{content.value:.9g}"' if content.value is not None else ""
    small = f" <small>{esc(content.small)}</small>" if content.small else ""
    return f"<{tag}{more}{kind}{value}>{esc(content.text)}{small}</{tag}>"


def data_table(
    head: Sequence[str], rows: Sequence[Sequence[object]], name: str = "Data", *, opened: bool = False
) -> str:
    """Return a table behind a toggle; everything is escaped. The first column names the row."""
    shown = table(head, rows)
    return f"<details{' open' if opened else ''}><summary>{esc(name)}</summary>{shown}</details>"


def json_block(value: Any, name: str) -> str:
    """Return data for the scripts of the page; nothing in it can end the block."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{esc(name)}">{text}</script>'


def figure(title: str, svg: str, caption: str, table: str, spec: Mapping[str, Any] | None = None) -> str:
    """Return a chart with its finding above, how to read it below, and its numbers behind a toggle.

    ``spec`` is the same chart for Plotly, ``{"data": [...], "layout": {...}}`` of plain data; on screen it
    takes the place of the drawing where scripts run.
    """
    plot = f'<div class="plot scroll">{svg}</div>'
    if spec is not None:
        plain = json.dumps(spec, sort_keys=True)
        name = "spec-" + hashlib.sha256((title + svg + plain).encode("utf-8", "replace")).hexdigest()[:12]
        plot = f'<div class="plot scroll" data-spec="{name}">{svg}</div>{json_block(spec, name)}'
    return (
        f'<figure class="chart"><h3>{esc(title)}</h3>{plot}'
        f"<figcaption>{esc(caption)}</figcaption>{table}</figure>"
    )
