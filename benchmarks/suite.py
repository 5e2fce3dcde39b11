"""The whole ers-robrank suite in float32 and with bfloat16 searches, against recorded time.

Both are measured in one run on the same queries. ``recorded`` is the published reference code measured on 2
CPU cores: 112 to 119 s for 500 queries on an idle machine, scaled by the yardstick of ``holdfast.bench`` to
this machine. Also printed: the two scores, the share of equal decisions, and what check R31 says about the
bfloat16 searches. Usage: ``python benchmarks/suite.py RUN [--queries 500] [--threads 2]``, where RUN is a
finished run of the small Fashion-MNIST protocol.
"""

from __future__ import annotations

import argparse
import time

import torch

from holdfast.bench.recorded import measure, recorded
from holdfast.evaluation import SUITES, retrieval_task, run_suite, score
from holdfast.evaluation.verdict import CHECKS, Examination
from holdfast.runs import open_run
from holdfast.search import PGD

RECORDED = (112.0 / 500, 119.0 / 500)
"""Seconds of the reference for each query, all attacks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    opened = open_run(args.run)
    test = opened.run.data.load().test
    task = retrieval_task(opened.encoder(), test.x, test.y, opened.run.distance)
    task = task.rows(slice(0, args.queries))
    search, suite = PGD(steps=32, alpha=3 / 255), SUITES["ers-robrank"]
    here = measure("c2f2") / float(recorded()["yardsticks"]["c2f2"]["rate"])
    print(f"yardstick: {here:.2f} of the machine of the recorded times")
    decisions = {}
    for precision in ("fp32", "bf16"):
        start = time.perf_counter()
        results = run_suite(task, suite, search, opened.run.threat, precision=precision)
        spent = time.perf_counter() - start
        faster = " to ".join(f"{r * len(task) / here / spent:.2f}" for r in RECORDED)
        found = score(suite, results).total
        print(f"{precision}: {spent:.0f} s, recorded / this {faster}, ERS {found.value:.2f}")
        right = [r.outcome.attacked[m] for r in results for m in r.entry.higher_is_robust if "@" in m]
        decisions[precision] = torch.stack(right)
    same = float((decisions["fp32"] == decisions["bf16"]).double().mean())
    print(f"decisions (right or wrong under an attack) that are the same: {100 * same:.1f} %")
    examination = Examination(
        task=task, results=results, search=search, threat=opened.run.threat, precision="bf16", level="full"
    )
    finding = CHECKS["R31"].run(examination)
    print(f"R31 {finding.status}: {finding.detail}")


if __name__ == "__main__":
    main()
