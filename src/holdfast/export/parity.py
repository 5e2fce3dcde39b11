"""Is the int8 copy as good, and only seemingly more robust? Attacks by transfer and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks import RankMargin, hits, run
from ..encoders import adapt
from ..evaluation import Comparison, Estimate, compare, embed, estimate, retrieval_task
from ..evaluation.card import sample
from ..functional.ranking import chunks
from ..runs import default_search
from ..search import NES, PGD, Square, full_float32
from ..types import Encoder, Images, PairwiseDistance, RetrievalTask, Search, Threat

QUERIES = 200
"""Queries that are attacked, unless told otherwise."""
MARGIN = 0.03
"""Share of queries by which images made on the float encoder have to do less on the copy to be told."""
TRANSFER = "white-box transfer"


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How a float encoder and its int8 copy fare on the same queries.

    Attributes
    ----------
    rows
        For each state (``clean``, ``white-box transfer``, ``square``, ``nes``, ``worst``) the Recall@1 of
        both with its 95 % interval, and the paired difference int8 minus float.
    queries, eps, norm
        Of the attacks; ``eps`` in input units.
    searches
        What attacked, in words.
    verdict
        What follows, in words.
    more_robust
        Whether the int8 copy is more robust than the float one in the worst case over all attacks.
    masks
        Whether images made on the float encoder break the copy clearly less often than the float encoder
        itself: then what looks like robustness may be a gradient that nobody can follow.
    """

    rows: Mapping[str, tuple[Estimate, Estimate, Comparison]]
    queries: int
    eps: float
    norm: str
    searches: Mapping[str, str]
    verdict: str
    more_robust: bool
    masks: bool

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        rows = {
            name: {
                "float": _plain(a), "int8": _plain(b), "difference": asdict(c),
                "words": c.words("float", "int8"), "supported": c.supported,
            }
            for name, (a, b, c) in self.rows.items()
        }  # fmt: skip
        return {
            "metric": "recall@1", "queries": self.queries, "eps": self.eps, "norm": self.norm,
            "searches": dict(self.searches), "rows": rows, "verdict": self.verdict,
            "more_robust": self.more_robust, "masks": self.masks,
        }  # fmt: skip


def _plain(e: Estimate) -> dict[str, Any]:
    return {"value": e.value, "ci": [e.low, e.high], "n": e.n}


@full_float32()
def robustness_parity(
    float_encoder: Encoder,
    int8_encoder: Encoder,
    images: Images,
    labels: Tensor,
    threat: Threat,
    *,
    distance: PairwiseDistance | None = None,
    queries: int | None = QUERIES,
    white_box: Search | None = None,
    square: Search | None = None,
    nes: Search | None = None,
    seed: int = 0,
    batch_size: int = 128,
    on_state: Callable[[str], None] | None = None,
) -> Parity:
    """Attack a float encoder and its int8 copy, by transfer and without gradients, on the same queries.

    Parameters
    ----------
    float_encoder
        Differentiable.
    int8_encoder
        Its copy, which needs no gradient; its gallery is embedded by itself.
    images, labels
        Every image is a query against all the others.
    threat
        What the attacker may do.
    distance
        Euclidean by default.
    queries
        Attack a random sample of so many; ``None`` attacks all.
    white_box, square, nes
        Searches: by gradient on the float encoder, whose images are shown to both, 40 steps by default; and
        by queries on each of the two, 500 squares and 20 steps of NES with 20 pairs by default.
    seed, batch_size
        As for :func:`holdfast.attacks.run`; both encoders get the same random numbers.
    on_state
        Called with the name of each part that begins.

    Notes
    -----
    All attacks climb the rank margin (``RANK``). That nothing can be differentiated is no robustness: the
    figure of the copy is the worst, query by query, over transfer and the attacks on the copy itself, and
    the float figure that over its own attacks. The attacks without gradients are the same for both and much
    weaker than those by gradient, so that their figures compare the two encoders and are upper bounds of
    the robustness of each.
    """
    tell = on_state or (lambda name: None)
    searches: dict[str, Any] = {
        TRANSFER: white_box or default_search(threat.eps),
        "square": square or Square(queries=500),
        "nes": nes or PGD(
            steps=20, alpha=threat.eps / 5, keep="best", gradient=NES(samples=20, sigma=threat.eps / 10)
        ),
    }  # fmt: skip
    tell("clean")
    whole = [retrieval_task(e, images, labels, distance) for e in (float_encoder, adapt(int8_encoder))]
    tasks = [sample(task, queries, seed) for task in whole]
    clean = [_right(task.z, task) for task in tasks]
    worst = [right.copy() for right in clean]
    rows = {"clean": _row(*clean)}
    for name, search in searches.items():
        tell(name)
        moved = [
            run(task, RankMargin(), search, threat, seed=seed, label=name, batch_size=batch_size)
            for task in (tasks[:1] if name == TRANSFER else tasks)
        ]
        z = [outcome.z for outcome in moved]
        if name == TRANSFER:  # the images of the float encoder
            z.append(embed(tasks[1].encoder, moved[0].x, batch_size))
        found = [_right(one, task) for one, task in zip(z, tasks, strict=True)]
        rows[name] = _row(*found)
        worst = [np.minimum(a, b) for a, b in zip(worst, found, strict=True)]
    rows["worst"] = _row(*worst)
    verdict, more, masks = _verdict(rows)
    return Parity(
        rows=rows, queries=len(tasks[0]), eps=float(threat.eps), norm=getattr(threat, "norm", ""),
        searches={name: _told(search) for name, search in searches.items()}, verdict=verdict,
        more_robust=more, masks=masks,
    )  # fmt: skip


def _right(z: Tensor, task: RetrievalTask) -> np.ndarray:
    parts = [hits(z[at], task.rows(at)) for at in chunks(len(z), 1024)]
    return torch.cat(parts).numpy(force=True).astype(np.float64)


def _row(a: np.ndarray, b: np.ndarray) -> tuple[Estimate, Estimate, Comparison]:
    return estimate(a), estimate(b), compare(a, b)


def _told(search: Any) -> str:
    if isinstance(search, Square):
        return f"Square, {search.queries} queries"
    if isinstance(search, PGD):
        source = search.gradient
        many = f", NES with {source.samples} pairs" if isinstance(source, NES) else ""
        return f"PGD, {search.steps} steps{many}"
    return type(search).__name__


def _verdict(rows: Mapping[str, tuple[Estimate, Estimate, Comparison]]) -> tuple[str, bool, bool]:
    """Say what the figures mean, and whether the copy is more robust or only hides its gradient."""
    clean, worst, transfer = rows["clean"][2], rows["worst"], rows[TRANSFER]
    own = min((rows[name] for name in ("square", "nes")), key=lambda row: row[1].value)
    more = worst[2].supported and worst[2].difference > 0
    masks = transfer[2].supported and transfer[2].difference > MARGIN
    words = [
        f"clean Recall@1 {100 * rows['clean'][0].value:.1f} % float, {100 * rows['clean'][1].value:.1f} % "
        f"int8 ({clean.words('float', 'int8')})",
        f"images made on the float encoder leave {100 * transfer[0].value:.1f} % and "
        f"{100 * transfer[1].value:.1f} % ({transfer[2].words('float', 'int8')})",
        f"the strongest attack without gradients on int8 leaves {100 * own[1].value:.1f} %, the same attack "
        f"on float {100 * own[0].value:.1f} % ({own[2].words('float', 'int8')})",
    ]
    facts = "; ".join(words)
    if not more:
        less = worst[2].supported and worst[2].difference < 0
        head = "int8 is less robust" if less else "int8 is not more robust"
        return f"{head}: {facts}.", more, masks
    if masks:
        caution = (
            "as it has no gradient, only transfer and weak attacks reached it, so that the gain is more "
            "likely hidden gradients than robustness"
        )
        return f"int8 looks more robust, which is no proof that it is: {facts}; {caution}.", more, masks
    return f"int8 is more robust against these attacks: {facts}.", more, masks
