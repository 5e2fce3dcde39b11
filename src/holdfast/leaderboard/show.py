"""A leaderboard as Markdown and as one static page."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import shell
from ..report.parts import Cell, table
from ..report.words import THIN, esc
from ..results.table import printable
from .board import KINDS, Board, Measure, Row


def head(board: Board) -> list[str]:
    """Return the headings of the columns."""
    verdict = ["verdict"] if _judged(board) else []
    titles = [measure.title for measure in board.measures.values()]
    return ["recipe", *titles, "seeds", *verdict, "against the first"]


def cells(board: Board, row: Row) -> list[str]:
    """Return one row as text: mean and standard deviation over seeds."""
    told = [*(_value(row, name, _digits(m)) for name, m in board.measures.items()), str(len(row.seeds))]
    words = ", ".join(f"{n} {word}" for word, n in sorted(row.verdicts.items(), key=lambda v: (-v[1], v[0])))
    return [row.recipe + " *" * row.front, *told, *([words] if _judged(board) else []), row.against]


def _judged(board: Board) -> bool:
    return any(row.verdicts for row in board.rows)


def _digits(measure: Measure) -> int:
    return 3 if measure.title == "median radius" else 1


def _value(row: Row, measure: str, digits: int) -> str:
    mean, sd = row.mean(measure), row.spread(measure)
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def caption(board: Board) -> str:
    """Say how a board is to be read."""
    return (
        f"{board.terms.words()}: mean ± standard deviation over seeds, ranked by "
        f"{board.measures[board.ranked_by].title}. {KINDS[board.terms.kind].legend} "
        "Within noise: Welch's test over seeds does not tell the row from the first."
    )


def markdown(found: Sequence[Board]) -> str:
    """Return all boards as Markdown tables, each with its caption."""
    return "\n\n".join(_table(board) for board in found)


def _table(board: Board) -> str:
    numbers = len(board.measures) + 1
    rows = [head(board), ["---", *["---:"] * numbers, "---", "---"], *(cells(board, r) for r in board.rows)]
    lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", caption(board).replace("*", "\\*")])


def _plain(text: str) -> str:
    """Return text that cannot break a Markdown table."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def page(found: Sequence[Board]) -> str:
    """Return all boards as one self-contained page with sortable tables, one section for each track."""
    sections = [
        shell.Section(f"track-{i}", board.terms.words(), _html(board)) for i, board in enumerate(found)
    ]
    footer = "Made by Holdfast {version} from hashed records; commands and settings stand in each file."
    return shell.page(
        "Holdfast leaderboard", f"{len(found)} track{'s' * (len(found) != 1)}", sections, footer
    )


def _html(board: Board) -> str:
    rows = []
    for row in board.rows:
        texts = cells(board, row)
        numbers = [row.mean(measure) for measure in board.measures]
        parts = [_parted(text) for text in texts[1 : 1 + len(numbers)]]
        shown = [Cell(a, v, b) for (a, b), v in zip(parts, numbers, strict=True)]
        rows.append([texts[0], *shown, *texts[1 + len(numbers) :]])
    return table(head(board), rows, label=board.terms.words()) + f'<p class="note">{esc(caption(board))}</p>'


def _parted(text: str) -> tuple[str, str]:
    mean, _, spread = text.partition(" ± ")
    return mean, f"±{THIN}{spread}" * bool(spread)
