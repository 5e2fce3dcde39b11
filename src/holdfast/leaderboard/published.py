"""Figures of others, to stand beside ours: never ours, never mixed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One row of a paper, or of the published code as it was measured.

    Attributes
    ----------
    method
        As the source calls it.
    recall
        Clean Recall@1 in percent.
    score
        ERS with the faults of the published code (suite ``ers-robrank``), in [0, 100].
    source
        Where the figures stand.
    """

    method: str
    recall: float
    score: float
    source: str


_CVPR = "Zhou and Patel, CVPR 2022, main table"
_CODE = "published code, measured on this protocol"
_TPAMI = "Zhou et al., TPAMI 2024, summary"


def _rows(source: str, *rows: tuple[str, float, float]) -> tuple[Published, ...]:
    return tuple(Published(*row, source) for row in rows)


PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "fashion-small": _rows(
        _CODE,
        ("plain, seed 0", 80.9, 15.7), ("plain, seed 1", 76.2, 14.1),
        ("EST, seed 0", 68.1, 30.4), ("EST, seed 1", 73.4, 30.8),
        ("ACT, seed 0", 65.9, 48.1), ("ACT, seed 1", 68.5, 49.4),
        ("HM[S,gLGA], seed 0", 78.5, 40.2),
        ("HM[S,gLGA]&ICS, seed 0", 78.6, 38.3), ("HM[S,gLGA]&ICS, seed 1", 78.8, 41.3),
        ("HM[S,gLGA]&ICS, seed 2", 79.3, 38.8),
        ("CA-TRIDE, seed 0", 77.3, 31.6), ("CA-TRIDE, seed 1", 77.1, 31.0),
    ),
    "fashion-full": _rows(_TPAMI, ("plain", 87.6, 4.5), ("EST", 78.6, 36.4), ("ACT", 79.4, 67.7)),
    "cub": _rows(
        _CVPR,
        ("plain", 53.9, 3.8),
        ("EST[R], eta 8", 37.1, 7.9), ("ACT[R], eta 8", 30.6, 31.3), ("HM[S,gLGA], eta 8", 38.0, 32.4),
        ("HM[S,gLGA]&ICS, eta 8", 37.2, 33.5), ("EST[R], eta 32", 8.5, 5.3), ("ACT[R], eta 32", 27.5, 33.9),
        ("HM[S,gLGA], eta 32", 36.5, 35.9), ("HM[S,gLGA]&ICS, eta 32", 34.9, 36.0),
    ),
    "cars": _rows(
        _CVPR,
        ("plain", 62.5, 3.6),
        ("EST[R], eta 8", 57.1, 4.4), ("ACT[R], eta 8", 46.8, 39.8), ("HM[S,gLGA], eta 8", 63.2, 42.4),
        ("HM[S,gLGA]&ICS, eta 8", 61.7, 47.9), ("EST[R], eta 32", 30.7, 7.3), ("ACT[R], eta 32", 43.4, 38.6),
        ("HM[S,gLGA], eta 32", 62.3, 44.9), ("HM[S,gLGA]&ICS, eta 32", 60.2, 46.0),
    ),
    "sop": _rows(
        _CVPR,
        ("plain", 62.9, 4.0),
        ("EST[R], eta 8", 52.7, 19.0), ("ACT[R], eta 8", 45.3, 49.5), ("HM[S,gLGA], eta 8", 49.0, 61.7),
        ("HM[S,gLGA]&ICS, eta 8", 48.3, 61.2), ("EST[R], eta 32", 46.0, 31.7), ("ACT[R], eta 32", 47.5, 50.8),
        ("HM[S,gLGA], eta 32", 47.7, 61.8), ("HM[S,gLGA]&ICS, eta 32", 46.8, 61.6),
    ),
}  # fmt: skip
"""Rows by the name of a track."""
