"""The tables of an evaluation of clusters: an attack in each row, a measure in each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ..evaluation import SUITES
from ..results.record import Record

FROZEN: Mapping[str, str] = {
    "flip": "flip", "accuracy": "accuracy", "majority": "majority", "recall@1": "R@1", "map@r": "MAP@R",
    "purity": "purity", "nmi": "NMI", "ami": "AMI", "ari": "ARI",
}  # fmt: skip
ANEW: Mapping[str, str] = {
    "accuracy-t": "accuracy", "purity-t": "purity", "nmi-t": "NMI", "ami-t": "AMI", "ari-t": "ARI",
}  # fmt: skip
"""Columns: of queries assigned to frozen centroids, and of queries clustered anew."""


def cluster_tables(records: Sequence[Record], title: str) -> list[Table]:
    """Return tables in percent; none where no record is of a suite on clusters."""
    mine = [r for r in records if r["suite"] in SUITES and SUITES[r["suite"]].clusters]
    if not mine:
        return []
    value = "in percent, ± half the 95 % interval; flip: lower is robust"
    refitted = any(r["suite"] == "poisoning" for r in mine)
    how = "centroids fitted again on changed references" if refitted else "assigned to frozen centroids"
    frozen = _table(mine, FROZEN, f"{title}\n{how}, {value}")
    anew = _table(mine, ANEW, "clustered anew, in percent, ± standard deviation over seeds of k-means")
    transfer = {r["metric"]: r["metric"].removeprefix("flip from ") for r in mine if " from " in r["metric"]}
    made = [frozen, anew]
    if transfer:
        made.append(_table(mine, transfer, "flips by images made on other encoders, in percent"))
    return [table for table in made if table.row_count]


def _table(records: Sequence[Record], columns: Mapping[str, str], title: str) -> Table:
    cells: dict[str, dict[str, str]] = {}
    for r in records:
        if r["metric"] not in columns or (r["state"] == "clean" and r["attack"] not in ("none", "G1")):
            continue
        row = r["attack"]
        if r["state"] == "clean":
            row = "clean" if row == "none" else "fitted again"
        low, high = r["ci"] or (r["value"], r["value"])
        cells.setdefault(row, {})[r["metric"]] = f"{100 * r['value']:.1f} ±{50 * (high - low):.1f}"
    there = [metric for metric in columns if any(metric in row for row in cells.values())]
    table = Table(title=title, title_justify="left")
    table.add_column("attack")
    for metric in there:
        table.add_column(columns[metric], justify="right")
    for attack, found in cells.items():
        table.add_row(attack, *(found.get(metric, "–") for metric in there))
    return table
