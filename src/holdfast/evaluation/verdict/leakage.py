"""Has the test been seen before? R36."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional.ranking import chunks
from ...rng import stream
from ...types import ClusterTask, Images, RetrievalTask
from .compare import share
from .examination import Examination
from .finding import Finding
from .material import Unavailable
from .texts import at_most, found, percent, skipped

NEAR = 2 / 255
SIDE = 8
BLOCK = 4096


def leakage(e: Examination) -> Finding:
    """R36: labels of training among the test labels, and near-duplicates of random queries, right or wrong.

    Among clusters the references take the place of a gallery; a query that is a reference itself is left out
    where the task knows its place among them.

    Near means that no pixel differs by more than 2/255. Means over blocks of pixels differ by no more either,
    so that they rule out most pairs first.
    """
    order = torch.randperm(len(e.task), generator=stream(e.seed, "examination", "leakage"))
    part = e.task.rows(order[: e.effort.queries].sort().values.to(e.device))
    told = []
    if e.train_y is not None:
        labels = e.task.y if e.clusters is None else e.clusters.truth[e.clusters.truth >= 0]
        there = set(labels.tolist())
        shared = sorted(set(e.train_y.tolist()) & there)
        if shared:
            detail = f"{len(shared)} labels of training are test labels too: {shared[:5]}"
            return found("R36", "fail", len(shared) / len(there), detail)
        told.append("no label of training in the test")
    twice = torch.zeros(len(part), dtype=torch.bool, device=e.device)
    looked = False
    if part.x.ndim == 4:
        try:
            name, others, places = _others(e, part)
            twice |= near_duplicates(part.x, others, places)
            looked = True
            told.append(name)
        except Unavailable:
            pass
        if e.train_x is not None:
            twice |= near_duplicates(part.x, e.train_x, torch.full_like(part.self_index, -1))
            looked = True
            told.append("training images")
    if not looked and e.train_y is None:
        own = "gallery_x" if e.clusters is None else "references in the task"
        return skipped("R36", f"hand in {own}, train_x or train_y")
    value = share(twice)
    detail = f"{percent(value)} of {len(part)} queries have a near-duplicate; looked at: {', '.join(told)}"
    return found("R36", at_most(value, 0.0, 1e-3), value, detail)


def _others(e: Examination, part: RetrievalTask) -> tuple[str, Images, Tensor]:
    """Return what queries are looked up among: its name, its images, and the queries' own places there."""
    if not isinstance(part, ClusterTask):
        return "gallery", e.gallery_images, part.self_index
    images, _ = e.references
    seen = part.images
    if seen is not None and len(seen.gallery.z) == len(images):
        return "references", images, seen.self_index
    if images is e.task.x:
        return "references", images, e.places(part).to(part.x.device)
    return "references", images, torch.full_like(part.self_index, -1)


def near_duplicates(x: Tensor, others: Images, self_index: Tensor) -> Tensor:
    """Return which images (n, c, h, w) have a near-duplicate among others, themselves left out: (n,) bool."""
    small = _small(x)
    hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows in chunks(len(others), BLOCK):
        block = others[rows].to(x.device)
        near = torch.cdist(small, _small(block), p=torch.inf) <= NEAR + 1e-6
        inside = torch.nonzero((self_index >= rows.start) & (self_index < rows.stop)).squeeze(1)
        near[inside, self_index[inside] - rows.start] = False
        for query, other in torch.nonzero(near & ~hit[:, None]).tolist():
            hit[query] |= bool((x[query] - block[other]).abs().max() <= NEAR)
    return hit


def _small(x: Tensor) -> Tensor:
    """Return means over blocks of pixels, (n, k)."""
    side = (min(SIDE, x.shape[2]), min(SIDE, x.shape[3]))
    return F.adaptive_avg_pool2d(x, side).flatten(1)
