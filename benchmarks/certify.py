"""What certificates and ARML cost: against the published code, on 60 000 images, and against N and D.

The published costs are data (``arml_published.json``); ours are measured here, in one run. Usage:
``python benchmarks/certify.py [--data-dir DIR] [--points 1000] [--threads 2] [--scaling] [--out FILE]``.
Without a folder that holds Fashion-MNIST only the sets that come with scikit-learn are measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.data.tabular import Table, load_table
from holdfast.linear import ARML, RobustKNeighborsClassifier
from holdfast.runs import machine

PUBLISHED = json.loads(Path(__file__).with_name("arml_published.json").read_text())


def timed(work: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    out = work(*args)
    return out, time.perf_counter() - start


def peak() -> float:
    """GiB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def digits() -> dict[str, Any]:
    table = load_table("digits")
    x, y, z, w = table.x_train, table.y_train, table.x_test, table.y_test
    ours, seconds = timed(ARML(random_state=0).fit, x, y)
    exactly, slow = timed(ARML(mode="published", random_state=0).fit, x, y)
    rows: dict[str, Any] = {"train_s": seconds, "train_published_schedule_s": slow}
    for name, metric in (("default", ours), ("published", exactly)):
        knn = RobustKNeighborsClassifier(1, metric=metric).fit(x, y)
        found, spent = timed(knn.certify, z, w)
        rows[f"{name}_exact_s_per_point"] = spent / len(z)
        rows[f"{name}_clean_error"] = found.error_at(0.0)
        rows[f"{name}_median"] = found.median()
        knn = RobustKNeighborsClassifier(11, metric=metric, method="bound").fit(x, y)
        rows[f"{name}_k11_s_per_point"] = timed(knn.certify, z, w)[1] / len(z)
    base = PUBLISHED["digits"]
    rows["ratio_train"] = base["train_s_per_1000_epochs"] / seconds
    rows["ratio_train_same_schedule"] = base["train_s_per_1000_epochs"] / slow
    rows["ratio_exact"] = base["exact_1nn_s_per_point"] / rows["published_exact_s_per_point"]
    rows["ratio_k11"] = base["bound_k11_s_per_point"] / rows["published_k11_s_per_point"]
    return rows


def large(table: Table, points: int, train: bool) -> dict[str, Any]:
    x, y, z, w = table.x_train, table.y_train, table.x_test[:points], table.y_test[:points]
    rows: dict[str, Any] = {"train": list(x.shape), "points": len(z)}
    metric: Any = None
    if train:
        metric, rows["train_s"] = timed(ARML(random_state=0).fit, x, y)
        rows["train_peak_gib"] = peak()
    for name, m in (("euclidean", None), ("arml", metric)):
        if name == "arml" and m is None:
            continue
        for k, method in ((1, "auto"), (11, "bound")):
            knn, fit = timed(
                lambda k=k, m=m, method=method: RobustKNeighborsClassifier(k, metric=m, method=method).fit(
                    x, y
                )
            )
            found, spent = timed(knn.certify, z, w)
            rows[f"{name}_k{k}"] = {
                "fit_s": fit, "s_per_point": spent / len(z), "clean_error": found.error_at(0.0),
                "median": found.median(),
            }  # fmt: skip
            rows["peak_gib"] = peak()
    return rows


def scaling() -> dict[str, Any]:
    """Seconds per point of the exact radius and of the K = 11 bound against N and D, with exponents."""
    rng = np.random.default_rng(0)
    rows = []
    sizes = [(n, 64) for n in (1000, 2000, 4000, 8000, 16000, 32000)]
    for n, d in [*sizes, *((4000, d) for d in (16, 32, 128, 256, 512))]:
        means = rng.random((10, d))
        y = np.arange(n) % 10
        x = means[y] + 0.35 * rng.normal(size=(n, d))
        z, w = means[np.arange(100) % 10] + 0.35 * rng.normal(size=(100, d)), np.arange(100) % 10
        row: dict[str, Any] = {"n": n, "d": d}
        for k, method in ((1, "auto"), (11, "bound")):
            knn = RobustKNeighborsClassifier(k, method=method).fit(x, y)
            row[f"k{k}_s"] = timed(knn.certify, z, w)[1] / len(z)
        rows.append(row)
    out: dict[str, Any] = {"rows": rows}
    for k in (1, 11):
        for letter, fixed in (("n", ("d", 64)), ("d", ("n", 4000))):
            part = [r for r in rows if r[fixed[0]] == fixed[1]]
            logs = np.log([[r[letter], r[f"k{k}_s"]] for r in part])
            out[f"k{k}_exponent_{letter}"] = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return out


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, letter, fixed in zip(axes, "nd", (("d", 64), ("n", 4000)), strict=True):
        part = sorted((r for r in found["rows"] if r[fixed[0]] == fixed[1]), key=lambda r: r[letter])
        for k, label in ((1, "exact, K = 1"), (11, "bound, K = 11")):
            power = found[f"k{k}_exponent_{letter}"]
            axis.loglog(
                [r[letter] for r in part], [1e3 * r[f"k{k}_s"] for r in part], "o-",
                label=f"{label}: {letter.upper()}$^{{{power:.2f}}}$",
            )  # fmt: skip
        axis.set_xlabel({"n": "references N (D = 64)", "d": "features D (N = 4000)"}[letter])
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per point")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-train", action="store_true", help="of the large set: certify only")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"machine": machine(), "threads": args.threads, "published": PUBLISHED}
    found["digits"] = digits()
    print(json.dumps(found["digits"], indent=1), flush=True)
    if args.data_dir:
        table = load_table("fashion-mnist", args.data_dir)
        found["fashion-mnist"] = large(table, args.points, not args.no_train)
        print(json.dumps(found["fashion-mnist"], indent=1), flush=True)
    if args.scaling:
        found["scaling"] = scaling()
        print(json.dumps(found["scaling"], indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        if args.scaling:
            plot(found["scaling"], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
