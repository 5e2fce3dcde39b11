"""Published ARML against ``RobustPrototypes`` on points that played no part in choosing its settings.

digits and breast cancer: other random splits than the usual one; pendigits and dna: the official test rows
after the first 500. Everything is trained on training rows alone; radii are exact (K = 1). Usage:
``python benchmarks/fresh_splits.py [--data-dir DIR] [--splits 1,2,3] [--seeds 0,1,2] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

from holdfast.certification import RADII
from holdfast.certify import Certificate
from holdfast.data.tabular import load_table
from holdfast.evaluation.paired import compare
from holdfast.linear import ARML, RobustPrototypes

Split = tuple[str, str, Any, Any, Any, Any]


def splits(data_dir: str | None, states: list[int]) -> Iterator[Split]:
    for name, load in (("digits", load_digits), ("breast-cancer", load_breast_cancer)):
        for state in states:
            x, y = load(return_X_y=True)
            a, b, c, d = train_test_split(x, y, test_size=0.3, stratify=y, random_state=state)
            scale = MinMaxScaler().fit(a)
            yield name, f"split {state}", scale.transform(a), c, scale.transform(b), d
    for name in ("dna", "pendigits") if data_dir else ():
        t = load_table(name, data_dir)
        yield name, "test rows 501 on", t.x_train, t.y_train, t.x_test[500:], t.y_test[500:]


def facts(c: Certificate, radii: tuple[float, ...], seconds: float) -> dict[str, Any]:
    return {
        "clean_error": c.error_at(-1.0), "median": c.median(), "seconds": seconds,
        "certified_error": [c.error_at(r) for r in radii],
    }  # fmt: skip


def paired(a: Certificate, b: Certificate, radius: float) -> dict[str, float]:
    wrong = [1.0 - (c.correct & (c.radius > radius)).double() for c in (a, b)]
    d = compare(*wrong)
    return {"radius": radius, "difference": d.difference, "p_value": d.p_value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--splits", default="1,2,3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name, split, x, y, z, w in splits(args.data_dir, [int(s) for s in args.splits.split(",")]):
        radii = RADII[name]
        start = time.process_time()
        theirs = ARML(mode="published", random_state=0).fit(x, y).certify(z, w)
        row: dict[str, Any] = {"data": name, "split": split, "n": len(z), "radii": radii, "holdfast": []}
        row["arml"] = facts(theirs, radii, time.process_time() - start)
        for seed in (int(s) for s in args.seeds.split(",")):
            start = time.process_time()
            model = RobustPrototypes(random_state=seed).fit(x, y)
            ours = model.certify(z, w)
            one = facts(ours, radii, time.process_time() - start) | {"seed": seed, "design": model.design_}
            one["at_median"] = paired(theirs, ours, theirs.median())
            one["clean"] = paired(theirs, ours, -1.0)
            row["holdfast"].append(one)
            pairs = zip(radii, row["arml"]["certified_error"], one["certified_error"], strict=True)
            worse = [r for r, a, b in pairs if b > a]
            at, clean = one["at_median"], one["clean"]
            print(
                f"{name:14} {split:17} seed {seed}  clean {row['arml']['clean_error']:.3f} -> "
                f"{one['clean_error']:.3f} (p {clean['p_value']:.2g})  median {theirs.median():.4f} -> "
                f"{ours.median():.4f}  error at the former {100 * at['difference']:+.1f} points "
                f"(p {at['p_value']:.1g})  higher at {worse or 'no radius'}",
                flush=True,
            )
        found.append(row)
    print("mean clean error", {k: float(np.mean(v)) for k, v in summary(found).items()})
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def summary(found: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        "arml": [row["arml"]["clean_error"] for row in found],
        "holdfast": [one["clean_error"] for row in found for one in row["holdfast"]],
    }


if __name__ == "__main__":
    main()
