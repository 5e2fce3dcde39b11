"""Pieces of HTML that all sections use."""

from __future__ import annotations

from collections.abc import Sequence

from .words import esc


def missing(words: str) -> str:
    """Return the one line that stands where data are missing."""
    return f'<p class="missing">{esc(words)}</p>'


def data_table(
    head: Sequence[str], rows: Sequence[Sequence[object]], name: str = "Data", *, opened: bool = False
) -> str:
    """Return a table behind a toggle; everything is escaped. The first column names the row."""
    top = "".join(f'<th scope="col">{esc(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{esc(line[0])}</th>{"".join(f"<td>{esc(c)}</td>" for c in line[1:])}</tr>'
        for line in rows
    )
    return (
        f'<details{" open" if opened else ""}><summary>{esc(name)}</summary><div class="scroll"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def figure(title: str, svg: str, caption: str, table: str) -> str:
    """Return a chart with its finding above, how to read it below, and its numbers behind a toggle."""
    return (
        f'<figure class="chart"><h3>{esc(title)}</h3><div class="scroll">{svg}</div>'
        f"<figcaption>{esc(caption)}</figcaption>{table}</figure>"
    )
