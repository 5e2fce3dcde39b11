"""Clustering-based inference: fit clusters to embeddings, ask for the nearest, set up queries to attack.

Names are imported when they are asked for: scikit-learn takes longer to load than most commands need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .index import ClusterIndex
    from .task import cluster_task

__all__ = ["ClusterIndex", "cluster_task"]

_MODULES = {"ClusterIndex": "index", "cluster_task": "task"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
