"""The cases by name; each is a function from a size to its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..job import Job, Size
from .certificates import certificates
from .clustering import clustering
from .ranking import ranking
from .search import search
from .step import step

CASES: Mapping[str, Callable[[Size], Iterator[Job]]] = {
    "search": search,
    "step": step,
    "ranking": ranking,
    "certificates": certificates,
    "clustering": clustering,
}
"""Cases by name, in the order in which they are measured."""

__all__ = ["CASES"]
