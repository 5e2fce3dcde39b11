"""Certificates of nearest neighbours against the matrix products involved, and learning a metric."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...data.tabular import load_table
from ...linear import ARML, RobustKNeighborsClassifier
from .. import peers
from ..job import Job, Size

TRAIN = {"tiny": 60, "quick": 1257, "full": 1257}
POINTS = {"tiny": 4, "quick": 200, "full": 540}
LEARN = {"tiny": 60, "quick": 400, "full": 1257}
ITERATIONS = {"tiny": 2, "quick": 30, "full": 50}


def certificates(size: Size) -> Iterator[Job]:
    """Yield certified radii of digits for K = 1 and K = 11, and ARML beside NCA."""
    table = load_table("digits")
    x, y = table.x_train[: TRAIN[size]], table.y_train[: TRAIN[size]]
    points, labels = table.x_test[: POINTS[size]], table.y_test[: POINTS[size]]
    a, b = torch.from_numpy(points), torch.from_numpy(x)

    def products() -> None:
        torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
        for _ in labels_of:
            torch.cdist(b, b, compute_mode="use_mm_for_euclid_dist")

    labels_of = sorted(set(labels.tolist()))
    what = f"digits, {len(points)} points, {len(x)} references"
    for k, method, name in ((1, "auto", "K = 1 exact"), (11, "bound", "K = 11 bound")):
        made = RobustKNeighborsClassifier(k, method=method).fit(x, y)  # type: ignore[arg-type]
        yield Job(
            name=f"certify {name}: {what}",
            ours=lambda made=made: made.certify(points, labels),  # type: ignore[misc]
            limit=products,
            limit_is="float64 distances of points to references, and for each class of references to"
            " references; no quadratic programme and no search of pairs is in it",
            units=len(points),
            unit="points",
            memory=k == 1,
            references=(f"published ARML, {name}",),
        )
    u, v, most = x[: LEARN[size]], y[: LEARN[size]], ITERATIONS[size]
    yield Job(
        name=f"learn a metric: digits, {len(u)} rows",
        ours=lambda: ARML(random_state=0).fit(u, v),
        peers={
            f"scikit-learn NCA, {most} iterations": peers.sklearn_nca(u, v, most),
            "metric-learn NCA": peers.metric_learn_nca(u, v, most),
        },
        note="another objective: ARML learns certified radii, NCA a soft 1-NN vote",
    )
