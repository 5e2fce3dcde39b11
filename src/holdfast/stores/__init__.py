"""Galleries in the stores people deploy: FAISS, and Qdrant without a server."""

from __future__ import annotations

from .faiss import FaissStore, build_faiss
from .qdrant import QdrantStore, build_qdrant

__all__ = ["FaissStore", "QdrantStore", "build_faiss", "build_qdrant"]
