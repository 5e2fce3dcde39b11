"""What leaves the library: records, one line each, and tables made of them."""

from .record import SCHEMA, Record, append, latest, make, read
from .show import Records, card_html, run_html
from .table import Grid, Table

__all__ = [
    "SCHEMA", "Grid", "Record", "Records", "Table", "append", "card_html", "latest", "make", "read",
    "run_html",
]  # fmt: skip
