"""Recall and MAP@R, and nearest neighbours, against the bare matrix products and other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...functional.distance import Euclidean
from ...functional.ranking import chunks, nearest, retrieval_scores, top_scores
from ...rng import stream
from .. import peers
from ..job import Job, Size

ROWS = {"tiny": 40, "quick": 5000, "full": 60000}
WIDTH = {"tiny": 8, "quick": 512, "full": 512}
PER_CLASS, K, BLOCK = 20, 10, 1024


def embeddings(n: int, e: int) -> tuple[Tensor, Tensor]:
    """Return unit rows (n, e) around class centres, and labels (n,)."""
    y = torch.arange(n) % max(2, n // PER_CLASS)
    centres = torch.randn(int(y.max()) + 1, e, generator=stream(0, "centres"))
    return F.normalize(centres[y] + 1.5 * torch.randn(n, e, generator=stream(0, "rows")), dim=1), y


def products(z: Tensor, k: int) -> Any:
    """Multiply all pairs in blocks and keep the largest ``k`` of each row."""
    return [(z[rows] @ z.T).topk(k, dim=1) for rows in chunks(len(z), BLOCK)]


def ranking(size: Size) -> Iterator[Job]:
    """Yield the scores of a gallery that is its own query set, and its ten nearest rows."""
    n, e = ROWS[size], WIDTH[size]
    z, y = embeddings(n, e)
    own, flops = torch.arange(n), 2e-9 * n * n * e
    what = f"{n} x {n} x {e}"
    yield Job(
        name=f"R@k and MAP@R: {what}",
        ours=lambda: top_scores(z, y, z, y, Euclidean(), own),
        limit=lambda: products(z, PER_CLASS),
        limit_is=f"float32 products in blocks of {BLOCK}, and the {PER_CLASS} largest of each row",
        peers={"pytorch-metric-learning": peers.accuracy_calculator(z, y)},
        units=flops,
        unit="GFLOP",
        memory=True,
        note="ours also gives R@k to 10 and mAP@10",
    )
    yield Job(
        name=f"AP of the whole list: {what}",
        ours=lambda: retrieval_scores(z, y, z, y, Euclidean(), own),
        limit=lambda: products(z, PER_CLASS),
        limit_is=f"float32 products in blocks of {BLOCK}, and the {PER_CLASS} largest of each row",
        units=flops,
        unit="GFLOP",
        memory=True,
        note="R@k, MAP@R, and AP, which needs the place of every match; no other library here gives it",
    )
    yield Job(
        name=f"{K} nearest: {what}",
        ours=lambda: nearest(z, z, K, Euclidean(), own),
        limit=lambda: products(z, K),
        limit_is=f"float32 products in blocks of {BLOCK}, and the {K} largest of each row",
        peers={"faiss": peers.flat_search(z, z, K, torch.get_num_threads())},
        units=flops,
        unit="GFLOP",
        memory=True,
        references=("torch.matmul and topk", "faiss IndexFlatIP"),
    )
