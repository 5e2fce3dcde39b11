"""The leaderboard as files: tracks that make one hashed record per run, and tables made from these."""

from .board import Board, Row, boards
from .entries import Entry, add, read_entries
from .plot import plot
from .running import Places, run_track
from .show import markdown, page
from .tracks import TRACKS, TableTrack, Track

__all__ = [
    "TRACKS", "Board", "Entry", "Places", "Row", "TableTrack", "Track", "add", "boards", "markdown", "page",
    "plot", "read_entries", "run_track",
]  # fmt: skip
