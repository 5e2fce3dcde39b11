"""The leaderboard as files: one hashed record per run, tables and a static page made from them."""

from .board import Board, Row, boards
from .entries import Entry, add, read_entries
from .show import markdown, page

__all__ = ["Board", "Entry", "Row", "add", "boards", "markdown", "page", "read_entries"]
