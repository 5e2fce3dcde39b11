"""Words and numbers of the report: escaping, rounding, and what each attack does, in plain language."""

from __future__ import annotations

import html
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

THIN = "\u202f"  # narrow space that does not break
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

ATTACKS: Mapping[str, tuple[str, str]] = {
    "ES": ("embedding shift", "changes the query so that its embedding moves as far as it can."),
    "CA+": (
        "raise a gallery image",
        "changes one gallery image so that it climbs in the results of queries it has nothing to do with.",
    ),
    "CA-": (
        "sink a gallery image",
        "changes one gallery image so that it drops out of the results it belongs to.",
    ),
    "QA+": ("query raises an image", "changes the query so that chosen, unrelated images come up."),
    "QA-": ("query sinks an image", "changes the query so that images that belong on top go down."),
    "HUB": (
        "make a hub",
        "changes one gallery image so that it stands among the first results of many queries.",
    ),
    "TMA": (
        "targeted mismatch",
        "changes the query so that it looks to the model like one chosen other image.",
    ),
    "WORST": (
        "worst of many attacks",
        "is the worst case, query by query, over many strong attacks of different aims.",
    ),
    "REPAIRED": ("mended attacks", "is what the attacks found after the checks had them strengthened."),
    "MIN": ("smallest change", "is the smallest change found that makes the first result wrong."),
    "LTM": (
        "learning to misrank",
        "changes the query so that images of other classes come before those of its own.",
    ),
    "GTM": (
        "greedy top-1 misranking",
        "changes the query so that it lies as close as it can to an image of another class.",
    ),
    "GTT": (
        "greedy top-1 translocation",
        "changes the query so that the image that was first leaves the first four.",
    ),
    "SPQA+": (
        "query raises an image, quietly",
        "changes the query so that a chosen, unrelated image comes up and the best results stay on top.",
    ),
    "SPQA-": (
        "query sinks an image, quietly",
        "changes the query so that one image that belongs on top goes down and other good results stay.",
    ),
    "FOA2": ("order of two", "changes the query so that two of its first results swap places."),
    "FOA5": (
        "order of five",
        "changes the query so that five of its first results come back in a chosen order.",
    ),
    "SPFOA5": (
        "order of five, quietly",
        "changes the query so that five of its first results take a chosen order and stay on top.",
    ),
    "RANK": (
        "rank margin",
        "changes the query so that any image of another class comes before all those of its own.",
    ),
    "TARGET1": (
        "targeted neighbour",
        "changes the query so that the nearest image of another class comes before all those of its own.",
    ),
    "TRIPLET": (
        "triplet of neighbours",
        "changes the query so that it leaves its nearest image for the nearest one of another class.",
    ),
    "CENTROID": (
        "class means",
        "changes the query so that it leaves the middle of its class for that of another class.",
    ),
    "FIRST": (
        "first place",
        "changes the query so that another image takes the first place; needs no labels.",
    ),
    "LIST": (
        "result list alone",
        "changes the query, seeing only which images come back, so that those of its own class sink.",
    ),
    "UNION": ("the worst of all", "is the worst case, query by query, over the attacks of this table."),
    "A1": (
        "cluster margin",
        "changes the query so that any other cluster's centre comes nearer than that of its own.",
    ),
    "A2": (
        "soft assignment",
        "changes the query so that the model is as unsure as can be about its own cluster.",
    ),
    "A3.1": ("nearest other", "changes the query so that it moves into the nearest other cluster."),
    "A3.2": ("second nearest other", "changes the query so that it moves into the second nearest other one."),
    "A3.3": ("third nearest other", "changes the query so that it moves into the third nearest other one."),
    "A4": ("away from the centre", "changes the query so that it moves away from its own cluster's centre."),
    "A5": (
        "embedding shift",
        "changes the query so that its embedding moves as far as it can; knows no clusters and no labels.",
    ),
    "A6": (
        "training loss",
        "changes the query so that the loss of training rises, with cluster centres as proxies.",
    ),
    "A7": (
        "returned distances",
        "changes the query, seeing only the distances that come back and no gradient.",
    ),
    "A7-label": (
        "answers alone",
        "changes the query, seeing only the number of the cluster that comes back.",
    ),
    "A8": ("transfer", "changes the query on other encoders, without seeing this one."),
    "G1": (
        "gallery poisoning",
        "changes some of the reference images before the clusters are formed; the query stays as it is.",
    ),
    "G1-noise": ("references with noise", "changes the same reference images at random, for comparison."),
}
ITEMS: Mapping[str, str] = {
    "ES:D": "how far embedding shift moves the query",
    "ES:R": "right image first after embedding shift",
}
METRICS: Mapping[str, str] = {
    "rank": "mean rank of the image in the gallery",
    "kept_rank": "mean rank of the images kept on top",
    "kendall": "agreement with the chosen order (Kendall's tau)",
    "accuracy": "pairs that swapped places",
    "shift": "distance that the embedding moved",
    "hub": "share of queries that list the image",
    "map": "mean average precision",
    "map@r": "mean average precision at R",
    "map@10": "mean average precision at 10",
    "nmi": "agreement of clusters and classes (NMI)",
    "cosine": "cosine with the chosen image",
    "ers": "robustness score (0 to 100)",
}
_SHARES = (
    *("recall@", "map", "nmi", "rank", "kept_rank", "accuracy", "retain@", "precision@"),
    *("hub", "flip", "majority", "purity", "ami", "ari"),
)


def plain(text: object) -> str:
    """Return text in which nothing is invisible: control, surrogate and direction marks become a box."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI else c for c in str(text)
    )


def texts(array: NDArray[Any]) -> tuple[str, ...]:
    """Return what an array of a file says, as text.

    Raises
    ------
    ValueError
        If it holds numbers that are no characters, which Python refuses with an error of its own core.
    """
    if array.dtype.kind == "U" and array.nbytes:
        codes = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if int(codes.max()) > sys.maxunicode:
            raise ValueError("text of numbers that are no characters")
    return tuple(str(item) for item in array.reshape(-1))


def esc(text: object) -> str:
    """Return text that is safe in HTML and inside quoted attributes."""
    return html.escape(plain(text), quote=True)


def short(text: object, most: int = 26) -> str:
    """Return text of at most ``most`` characters, with an ellipsis where it was cut."""
    text = plain(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def is_share(metric: str) -> bool:
    """Say whether a metric is a fraction that reads well as a percentage."""
    return metric.startswith(_SHARES)


def number(value: float, digits: int = 3) -> str:
    """Return a number with three significant digits and thin spaces between thousands.

    Examples
    --------
    >>> number(0.98), number(12.345), number(99.96), number(0)
    ('0.980', '12.3', '100', '0')
    >>> number(1234567.0).replace(THIN, " ")
    '1 234 567'
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]))
    return f"{value:,.{decimals}f}".replace(",", THIN).replace("-", "−")


def percent(value: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * value:.1f}".replace("-", "−") + f"{THIN}%"


def quantity(metric: str, value: float) -> str:
    """Return a value in the unit of its metric."""
    return percent(value) if is_share(metric) else number(value)


def interval(metric: str, ci: Sequence[float] | None) -> str:
    """Return ``95 to 99 %`` in the unit of the metric; empty where there is none."""
    if ci is None:
        return ""
    if is_share(metric):
        return f"{100 * ci[0]:.1f} to {percent(ci[1])}"
    return f"{number(ci[0])} to {number(ci[1])}"


def of_100(fraction: float) -> str:
    """Return how many of 100, without rounding something to nothing."""
    count = round(100 * fraction)
    if count == 0 and fraction > 0:
        return "fewer than 1"
    if count == 100 and fraction < 1:
        return "more than 99"
    return str(count)


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{number(seconds, 2 if seconds < 100 else 3)}{THIN}s"
    minutes = round(seconds / 60)
    return f"{minutes}{THIN}min" if minutes < 120 else f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def budget(norm: str, eps: float) -> str:
    """Return in words how much the attacker may change.

    Examples
    --------
    >>> budget("linf", 0.2).replace(THIN, " ")
    'changes of at most 20 % of the grey range'
    >>> budget("linf", 8 / 255).replace(THIN, " ")
    'changes of at most 8 of 255 grey levels'
    """
    if norm != "linf":
        return f"changes of length at most {number(eps)} ({plain(norm)} norm, pixels from 0 to 1)"
    levels, share = 255 * eps, 100 * eps
    if abs(share - round(share)) > 1e-6 and abs(levels - round(levels)) < 1e-6:
        return f"changes of at most {round(levels)} of 255 grey levels"
    return f"changes of at most {f'{share:.3g}'}{THIN}% of the grey range"


def radius(eps: float) -> str:
    """Return the size of a change for a small place: in 255ths where that is exact, else as a number.

    Examples
    --------
    >>> radius(8 / 255), radius(0.2), radius(0.5)
    ('8/255', '0.2', '0.5')
    """
    levels = 255 * eps
    if abs(100 * eps - round(100 * eps)) > 1e-4 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{eps:.3g}"


def attack_title(attack: str) -> str:
    """Return the label of an attack with its short name in words."""
    return f"{attack}, {ATTACKS[attack][0]}" if attack in ATTACKS else attack


def item_title(name: str) -> str:
    """Return the name of a summand of a score with what it stands for."""
    return f"{name}, {ITEMS[name]}" if name in ITEMS else attack_title(name)


def attack_says(attack: str) -> str:
    """Return one sentence about what an attack, or the attack of a score's item, does."""
    words = ATTACKS.get(attack, ATTACKS.get(attack.partition(":")[0], ("", "not described.")))[1]
    return words[0].upper() + words[1:]


def metric_title(metric: str) -> str:
    """Return the name of a metric for an axis or a table."""
    if metric.endswith(":index"):
        return f"{metric_title(metric.removesuffix(':index'))}, by the index"
    if metric.startswith("recall@"):
        return "right image first" if metric == "recall@1" else f"right image in the first {metric[7:]}"
    if metric.startswith("retain@"):
        if metric == "retain@1":
            return "former first image still first"
        return f"former first image still in the first {metric[7:]}"
    return METRICS.get(metric, metric)


def join(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
