"""Certificates of several methods put in tables: errors with intervals, medians, paired comparisons; kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..certify import Certificate
from ..errors import CorruptFile, InvalidArgument
from ..files import read_arrays, write_arrays
from ..results import record
from ..results.record import Record
from .paired import compare
from .stats import bootstrap, wilson

BASELINE = "arml"
"""The published ARML: what others are compared with where it was measured."""
SUITE = "certified"
"""Suite of the records of certified encoders."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One metric, certified for one K.

    Attributes
    ----------
    method, seed, k
        Whose, and of which vote.
    certificate
        Of every test point.
    train_seconds, seconds
        Of learning the metric and of certifying all test points.
    fingerprint
        Hash of the settings.
    file
        Where the radii are kept, relative to the folder.
    """

    method: str
    seed: int
    k: int
    certificate: Certificate
    train_seconds: float
    seconds: float
    fingerprint: str
    file: str

    @cached_property
    def median(self) -> tuple[float, float, float]:
        """Median radius and its 95 % bootstrap interval over points."""
        radius = self.certificate.radius.cpu().numpy()
        middle = float(np.median(radius))
        if not math.isfinite(middle):
            return middle, middle, middle
        low, high = bootstrap(lambda rows: float(np.median(radius[rows])), len(radius))
        return middle, min(low, middle), max(high, middle)


def given_radii(radii: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return radii in rising order, each once, or None for None.

    Raises
    ------
    InvalidArgument
        If there are none, or one is not a finite number above 0.
    """
    if radii is None:
        return None
    if not (len(radii) and all(math.isfinite(r) and r > 0 for r in radii)):
        raise InvalidArgument("radii", "finite numbers > 0", list(radii))
    return tuple(sorted({float(r) for r in radii}))


def fitting_radii(c: Certificate) -> tuple[float, ...]:
    """Return eight round radii up to about the 90 % quantile of those found."""
    positive = c.radius[(c.radius > 0) & c.radius.isfinite()]
    if not len(positive):
        return (0.1, 0.2, 0.5, 1.0)
    raw = float(positive.quantile(0.9)) / 8
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(
        s for s in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0) if s * power >= raw * (1 - 1e-9)
    )
    return tuple(float(f"{i * step * power:.6g}") for i in range(1, 9))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def share(shares: Sequence[float], n: int) -> dict[str, Any]:
    """Return the mean share over seeds, its interval over points, and the least and largest of the seeds."""
    value = float(np.mean(shares))
    low, high = wilson(round(value * n), n)
    spread = [min(shares), max(shares)] if len(shares) > 1 else None
    return {"value": value, "low": min(low, value), "high": max(high, value), "spread": spread}


def summarise(measured: Sequence[Measured], radii: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row of plain data for each method and K: means over its seeds, with intervals over points.

    Shares carry ``value``, the 95 % Wilson interval ``low`` to ``high``, and ``spread``, the least and the
    largest of several seeds. The interval of the median is that of the first seed.
    """
    groups: dict[tuple[str, int], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.method, one.k), []).append(one)
    rows = []
    for (name, k), ones in groups.items():
        certificates = [one.certificate for one in ones]
        n = len(certificates[0])
        medians = [one.median[0] for one in ones]
        right = sum(float(c.correct.sum()) for c in certificates)
        exact = sum(float((c.exact_rows() & c.correct).sum()) for c in certificates)
        rows.append(
            {
                "method": name,
                "k": k,
                "n": n,
                "seeds": [one.seed for one in ones],
                "clean_error": share([c.error_at(-1.0) for c in certificates], n),
                "median": {
                    "value": _finite(float(np.mean(medians))),
                    "low": _finite(ones[0].median[1]),
                    "high": _finite(ones[0].median[2]),
                    "spread": [_finite(min(medians)), _finite(max(medians))] if len(ones) > 1 else None,
                },
                "certified_error": [share([c.error_at(r) for c in certificates], n) for r in radii],
                "attacked_error": [
                    share([c.attacked_error_at(r) for c in certificates], n) for r in radii
                ] if all(c.upper is not None for c in certificates) else None,
                "exact": exact / right if right else None,
                "certificate": certificates[0].method,
                "train_seconds": float(np.mean([one.train_seconds for one in ones])),
                "seconds": float(np.mean([one.seconds for one in ones])),
                "files": [one.file for one in ones],
            }
        )  # fmt: skip
    return rows


def records_of(
    one: Measured, dataset: str, norm: str, radii: Iterable[float], about: Mapping[str, Any] | None = None
) -> list[Record]:
    """Return clean error, certified share at each radius, and median radius as records.

    ``certified@R`` is the share of points that are right and certified beyond ``R``, which is its ``eps``;
    the suite tells K. ``about`` holds fields that are others than those of nearest neighbours.
    """
    c, n = one.certificate, len(one.certificate)
    shared: dict[str, Any] = {
        "run": one.method, "dataset": dataset, "encoder": "mahalanobis", "defense": one.method,
        "suite": f"knn-{one.k}", "norm": norm, "seed": one.seed, "seconds": one.seconds, "n": n,
        "fingerprint": one.fingerprint, **(about or {}),
    }  # fmt: skip
    wrong = int((~c.correct).sum())
    made = [
        record.make(
            metric="clean-error", value=wrong / n, ci=wilson(wrong, n), higher_is_robust=False, **shared
        )
    ]
    for r in radii:
        held = int((c.correct & (c.radius > r)).sum())
        made.append(
            record.make(metric=f"certified@{r:g}", value=held / n, ci=wilson(held, n), eps=r, **shared)
        )
    middle, *ends = one.median
    if all(map(math.isfinite, (middle, *ends))):
        made.append(record.make(metric="certified-median", value=middle, ci=ends, **shared))
    return made


def write_certificate(path: Path, c: Certificate, seconds: float, **more: np.ndarray) -> None:
    """Write radii and what belongs to them (no perturbations), the seconds they took, and more arrays."""
    arrays = {"radius": c.radius, "correct": c.correct, "exact": c.exact_rows()}
    arrays |= {name: v for name in ("answer", "upper") if (v := getattr(c, name)) is not None}
    facts = {"alpha": np.array(c.alpha), "method": np.array(c.method), "seconds": np.array(seconds)}
    write_arrays(path, {**{name: v.detach().cpu().numpy() for name, v in arrays.items()}, **facts, **more})


def read_certificate(path: Path, norm: float) -> tuple[Certificate, float]:
    """Read what :func:`write_certificate` wrote.

    Raises
    ------
    CorruptFile
        If the file cannot be read, or its arrays do not fit each other.
    """
    a = read_arrays(path)
    n = a["radius"].shape if "radius" in a else (0,)
    kinds = {"radius": "f", "correct": "b", "exact": "b", "answer": "iu", "upper": "f"}
    wrong = [k for k in ("alpha", "method", "seconds", "radius", "correct", "exact") if k not in a]
    wrong += [k for k, kind in kinds.items() if k in a and (a[k].shape != n or a[k].dtype.kind not in kind)]
    wrong += [k for k in ("alpha", "seconds") if k in a and (a[k].shape or a[k].dtype.kind not in "iuf")]
    if wrong or len(n) != 1 or bool(np.isnan(a["radius"]).any()):
        raise CorruptFile(path, None, f"need a certificate; missing or unfit: {', '.join(wrong) or 'radius'}")
    facts: dict[str, Any] = {
        n: torch.from_numpy(a[n]) for n in ("radius", "correct", "exact", "answer", "upper") if n in a
    }
    facts |= {"alpha": float(a["alpha"]), "method": str(a["method"]), "norm": norm}
    return Certificate(**facts), float(a["seconds"])


def comparisons(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Compare certified errors at the median radius of the published ARML, or of the first method.

    The same points twice, by McNemar's test; of several seeds the first of each method.
    """
    names = list(dict.fromkeys(one.method for one in measured))
    base = BASELINE if BASELINE in names else names[0]
    first = {(one.method, one.k): one.certificate for one in reversed(measured)}
    found = []
    for (name, k), c in sorted(first.items(), key=lambda item: (item[0][1], names.index(item[0][0]))):
        theirs = first[base, k]
        radius = theirs.median()
        if name == base or not math.isfinite(radius):
            continue
        a, b = (1.0 - (x.correct & (x.radius > radius)).double() for x in (theirs, c))
        d = compare(a, b)
        found.append(
            {
                "method": name,
                "baseline": base,
                "k": k,
                "radius": radius,
                "difference": d.difference,
                "low": d.low,
                "high": d.high,
                "p_value": d.p_value,
                "n": d.n,
                "discordant": list(d.discordant),
                "supported": d.supported,
                "words": d.words(base, name),
            }
        )
    return found
