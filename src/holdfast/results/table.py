"""Tables of records: choose, arrange, order; shown as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from .record import Record, latest, read

MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    MISSING: "--",
}


def printable(text: str) -> str:
    r"""Put a space for whatever cannot be seen, so that a name breaks no layout and steers no terminal.

    Control characters and line ends are replaced, marks of direction, surrogates, and spaces of other widths.

    Examples
    --------
    >>> printable("a\nb \x1b[31m \u202e")
    'a b  [31m  '
    """
    return "".join(c if c.isprintable() else " " for c in text)


@dataclass(frozen=True)
class Grid:
    """Rows of numbers under named columns; ``None`` marks a missing cell.

    Attributes
    ----------
    corner
        Heading of the first column.
    columns, rows
        Headings of the other columns; names of the rows.
    cells
        One list for each row, one number or ``None`` for each column.
    """

    corner: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]

    def _text(self, digits: int) -> list[list[str]]:
        head = [[self.corner, *self.columns]]
        body = [
            [name, *(MISSING if v is None else f"{v:.{digits}f}" for v in line)]
            for name, line in zip(self.rows, self.cells, strict=True)
        ]
        return [[printable(cell) for cell in line] for line in head + body]

    def to_text(self, digits: int = 3) -> str:
        """Return aligned text: names to the left, numbers to the right.

        Examples
        --------
        >>> print(Grid("run", ("recall@1", "map"), ("plain",), ((0.98, None),)).to_text())
        run    recall@1  map
        plain     0.980    –
        """
        lines = self._text(digits)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def to_markdown(self, digits: int = 3) -> str:
        """Return a Markdown table; characters that Markdown or HTML would act on are escaped."""
        lines = [[_markdown(cell) for cell in line] for line in self._text(digits)]
        lines.insert(1, [":--", *["--:"] * len(self.columns)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_csv(self) -> str:
        """Return CSV with full precision; a missing cell is empty so that programs read it as missing.

        A name that a spreadsheet would run as a formula gets an apostrophe in front.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_inert(c) for c in (self.corner, *self.columns)])
        for name, line in zip(self.rows, self.cells, strict=True):
            writer.writerow([_inert(name), *("" if v is None else repr(v) for v in line)])
        return out.getvalue()

    def to_latex(self, digits: int = 3) -> str:
        """Return a ``tabular`` (needs the package booktabs) with every name escaped."""
        lines = [
            " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in line) + r" \\"
            for line in self._text(digits)
        ]
        head = r"\begin{tabular}{l" + "r" * len(self.columns) + "}"
        return "\n".join(
            [head, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
        )


def _markdown(text: str) -> str:
    for c in "\\`*_[]|~":
        text = text.replace(c, "\\" + c)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _inert(text: str) -> str:
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


@dataclass(frozen=True)
class Table:
    """Records to choose from.

    Examples
    --------
    >>> from holdfast.results import make
    >>> table = Table([make(run="plain", metric="recall@1", value=0.98, n=9)])
    >>> print(table.pivot().to_text(2))
    run    recall@1
    plain      0.98
    """

    records: Sequence[Record]

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> Table:
        """Read several record files; of repeated measurements the last counts."""
        return cls(latest(record for path in paths for record in read(path)))

    def __len__(self) -> int:
        return len(self.records)

    def filter(self, **wanted: Any) -> Table:
        """Keep the records whose fields equal the given values; a list, tuple or set means *any of these*."""
        for name in wanted:
            if name not in Record.__annotations__:
                raise InvalidArgument(name, f"a field of a record: {', '.join(Record.__annotations__)}", name)

        def fits(record: Record) -> bool:
            fields: dict[str, Any] = dict(record)
            return all(
                fields[name] in value
                if isinstance(value, list | tuple | set | frozenset)
                else fields[name] == value
                for name, value in wanted.items()
            )

        return Table([r for r in self.records if fits(r)])

    def pivot(self, rows: str = "run") -> Grid:
        """Arrange the records: one row for each ``rows`` field, one column for each metric under each attack.

        Columns read ``recall@1`` for benign metrics, ``ES recall@1`` for attacked ones and
        ``ES recall@1 (clean)`` for the same quantity before that attack. Radius, steps, step length and suite
        are added where the records hold several, so that only records of several seeds are averaged.
        """
        if rows not in Record.__annotations__:
            raise InvalidArgument("rows", f"a field of a record: {', '.join(Record.__annotations__)}", rows)
        attacked = [r for r in self.records if r["attack"] != "none" and r["eps"] > 0]
        radii = len({(r["norm"], r["eps"]) for r in attacked}) > 1
        searches = _searches(attacked)
        suites = len({r["suite"] for r in self.records}) > 1
        cells: dict[str, dict[str, list[float]]] = {}
        columns: dict[str, None] = {}
        for r in self.records:
            column = _column(r, radii, searches, suites)
            columns[column] = None
            row = str(dict(r)[rows])
            cells.setdefault(row, {}).setdefault(column, []).append(r["value"])
        means = tuple(
            tuple(sum(line[c]) / len(line[c]) if c in line else None for c in columns)
            for line in cells.values()
        )
        return Grid(rows, tuple(columns), tuple(cells), means)

    def rank(self, metric: str = "recall@1", attack: str = "none", state: str | None = None) -> list[Record]:
        """Order the records of one quantity, the best for the defender first.

        Parameters
        ----------
        metric, attack
            The quantity.
        state
            ``"clean"`` or ``"attacked"``; by default what the attack calls for.
        """
        state = state or ("clean" if attack == "none" else "attacked")
        chosen = self.filter(metric=metric, attack=attack, state=state).records
        return sorted(chosen, key=lambda r: -r["value"] if r["higher_is_robust"] else r["value"])

    def to_text(self, digits: int = 3) -> str:
        """Return :meth:`pivot` as aligned text."""
        return self.pivot().to_text(digits)


def _searches(attacked: Iterable[Record]) -> tuple[bool, bool]:
    """Return whether one threat was searched with several numbers of steps, and those with several alphas."""
    steps: dict[tuple[str, float], set[int]] = {}
    alphas: dict[tuple[str, float, int], set[float]] = {}
    for r in attacked:
        steps.setdefault((r["norm"], r["eps"]), set()).add(r["steps"])
        alphas.setdefault((r["norm"], r["eps"], r["steps"]), set()).add(r["alpha"])
    return any(len(s) > 1 for s in steps.values()), any(len(s) > 1 for s in alphas.values())


def _column(r: Record, with_radius: bool, searches: tuple[bool, bool], with_suite: bool) -> str:
    suite = f" [{r['suite']}]" if with_suite else ""
    if r["attack"] == "none":
        return r["metric"] + suite
    radius = f" {r['norm']} {r['eps']:.4g}" if with_radius else ""
    radius += f" {r['steps']} steps" if searches[0] else ""
    radius += f" of {r['alpha']:.4g}" if searches[1] else ""
    return f"{r['attack']} {r['metric']}{radius}" + (" (clean)" if r["state"] == "clean" else "") + suite
