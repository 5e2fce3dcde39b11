"""What the four papers claim, and what the records of ``results/`` say about it.

The claims are told in our words. Every figure is read from the boards; where the answer follows from figures by
a rule, the rule is written here, so that new records can change it. ``python benchmarks/pages.py`` writes the
page.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.evaluation.paired import compare_seeds
from holdfast.leaderboard import Board, Row

RESULTS = Path(__file__).with_name("results")
YES, PARTLY, NO = "confirmed", "partly", "not confirmed here"
Of = Callable[..., list[Board]]


@dataclass(frozen=True)
class Claim:
    """One claim: whose, what, our answer, the figures, and the command that gives them again."""

    source: str
    words: str
    answer: str
    figures: str
    command: str


def table(of: Of) -> str:
    """Return all claims as Markdown."""
    lines = ["| claim | answer | what we found | command |", "|---|---|---|---|"]
    for claim in claims(of):
        lines.append(
            f"| **{claim.source}**: {claim.words} | **{claim.answer}** | {claim.figures} | `{claim.command}` |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Figures:
    """Rows of one board by recipe."""

    board: Board

    def row(self, recipe: str) -> Row:
        """Return a row; a missing one is an error, as the page would lie."""
        return next(row for row in self.board.rows if row.recipe == recipe)

    def values(self, recipe: str, measure: str) -> tuple[float, ...]:
        """Return a measure over seeds."""
        return self.row(recipe).values[measure]

    def text(self, recipe: str, *measures: str, digits: int = 1) -> str:
        """Return means and standard deviations."""
        told = []
        for measure in measures:
            values = self.values(recipe, measure)
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else " (one seed)"
            told.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        return " / ".join(told)

    def higher(self, a: str, b: str, measure: str) -> str:
        """Tell whether a lies above b by more than the noise of training, within it, or below."""
        difference = statistics.fmean(self.values(a, measure)) - statistics.fmean(self.values(b, measure))
        found = compare_seeds(self.values(a, measure), self.values(b, measure))
        return "noise" if not found.supported else "higher" if difference > 0 else "lower"


def only(boards: Sequence[Board], **terms: object) -> Figures:
    """Return the one board whose terms are so."""
    (found,) = [b for b in boards if all(getattr(b.terms, k) == v for k, v in terms.items())]
    return Figures(found)


def rows_of(name: str) -> list[dict[str, object]]:
    """Return rows of a file of ``benchmarks/results``."""
    return [json.loads(line) for line in (RESULTS / name).read_text("utf-8").splitlines()]


def told(rows: Sequence[dict[str, object]], method: str, measure: str) -> str:
    """Return mean and standard deviation of a method over seeds."""
    values = [float(str(r[measure])) for r in rows if r["method"] == method]
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
