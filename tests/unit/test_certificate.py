from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from holdfast.certify import Certificate, References, certify_neighbours
from holdfast.certify.references import majority
from holdfast.errors import InvalidArgument
from holdfast.rng import stream

RIGHT = torch.tensor([True, True, False, True])


def test_wrong_answers_have_radius_0_and_radii_count_beyond() -> None:
    c = Certificate(radius=torch.tensor([0.2, 0.5, 0.9, math.inf], dtype=torch.float64), correct=RIGHT)
    assert c.radius.tolist() == pytest.approx([0.2, 0.5, 0.0, math.inf])
    assert c.radius.dtype == torch.float64
    assert c.curve([0.0, 0.2, 0.5, 1e9]) == [0.75, 0.5, 0.25, 0.25]  # a radius covers what is shorter
    assert c.error_at(-1.0) == 0.25
    assert c.median() == pytest.approx(0.35)
    assert len(c) == 4


def test_gap_and_attacked_error() -> None:
    c = Certificate(
        radius=torch.tensor([0.2, 0.5, 0.0, 0.1]), correct=RIGHT,
        exact=torch.tensor([True, False, False, False]),
        upper=torch.tensor([0.2, 0.7, 0.0, math.inf]),
    )  # fmt: skip
    assert c.gap().tolist() == pytest.approx([0.0, 0.2, 0.0, math.inf])
    assert c.attacked_error_at(0.3) == 0.5
    assert c.attacked_error_at(0.7) == 0.75
    with pytest.raises(InvalidArgument, match="upper"):
        Certificate(radius=torch.ones(1), correct=torch.tensor([True])).attacked_error_at(0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"radius": torch.tensor([math.nan, 1, 1, 1])}, "radius"),
        ({"radius": torch.tensor([-1e-9, 1, 1, 1])}, "radius"),
        ({"radius": torch.ones(2, 2)}, "radius"),
        ({"correct": RIGHT[:2]}, "correct"),
        ({"upper": torch.ones(3)}, "upper"),
        ({"alpha": 1.0}, "alpha"),
        ({"norm": 3.0}, "norm"),
    ],
)
def test_impossible_certificates_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        Certificate(**({"radius": torch.ones(4), "correct": RIGHT} | change))


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_predictions_are_those_of_scikit_learn(k: int) -> None:
    draw = stream(0, "references")
    x, z = torch.rand(80, 3, generator=draw), torch.rand(50, 3, generator=draw)
    y = torch.arange(80) % 3
    theirs = KNeighborsClassifier(k, algorithm="brute").fit(x.double().numpy(), y.numpy())
    assert References.prepare(x, y).predict(z, k).tolist() == theirs.predict(z.double().numpy()).tolist()


def test_equal_votes_go_to_the_lower_code_and_equal_distances_to_the_lower_row() -> None:
    r = References.prepare(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([2, 1, 0, 3]))
    at = r.inside(torch.tensor([[0.0]]))
    assert r.nearest(at, 2).tolist() == [[0, 1]]
    assert r.predict(torch.tensor([[0.0]]), 1).tolist() == [2]
    assert r.predict(torch.tensor([[0.0]]), 2).tolist() == [1]


def test_directions_that_the_metric_does_not_see_are_dropped() -> None:
    g = torch.randn(2, 5, generator=stream(1, "g"), dtype=torch.float64)
    x = torch.rand(30, 5, generator=stream(1, "x"), dtype=torch.float64)
    r = References.prepare(x, torch.arange(30) % 2, g.T @ g)
    assert r.points.shape == (30, 2)
    kept = References.prepare(x, torch.arange(30) % 2, g.T @ g, rotate=False)
    assert kept.points.shape == (30, 5)
    expected = torch.cdist(x[:4] @ g.T, x @ g.T).square()
    for one in (r, kept):
        torch.testing.assert_close(one.distances(one.inside(x[:4])), expected, atol=1e-12, rtol=1e-9)
    move = torch.tensor([[0.3, -0.2]]).double()
    assert float(r.outside(move).norm()) == pytest.approx(float(move.norm()))
    torch.testing.assert_close(r.inside(x[:1] + r.outside(move)), r.inside(x[:1]) + move)


def test_bad_references_are_named() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, 0, 1, 1])
    nan = x.clone()
    nan[0, 0] = math.nan
    skew = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    for match, arguments in {
        "finite": (nan, y), "a label for each": (x, y[:3]), "references": (x[:0], y[:0]),
        "symmetric": (x, y, skew), "semi-definite": (x, y, -torch.eye(2)),
        r"\(2, 2\) matrix": (x, y, torch.eye(3)),
    }.items():  # fmt: skip
        with pytest.raises(InvalidArgument, match=match):
            References.prepare(*arguments)
    with pytest.raises(InvalidArgument, match="low < high"):
        References.prepare(x, y, box=(1.0, 0.0))
    with pytest.raises(InvalidArgument, match="inside the box"):
        References.prepare(x, y, box=(0.0, 1.0)).inside(torch.tensor([[0.5, 1.5]]))
    with pytest.raises(InvalidArgument, match="between 1 and the 4"):
        References.prepare(x, y).predict(x, 5)


@pytest.mark.parametrize("method", ["bound", "tight", "exact"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_metric_that_sees_nothing_certifies_nothing(method: Any, k: int) -> None:
    x, y = torch.rand(12, 3, generator=stream(3, "x")), torch.arange(12) % 2
    r = References.prepare(x, y, torch.zeros(3, 3))
    assert certify_neighbours(r, x[:4], r.predict(x[:4], k), k=k, method=method).radius.tolist() == [0.0] * 4


def test_majorities() -> None:
    assert [majority(k) for k in (1, 2, 3, 4, 11)] == [(1, 0), (1, 1), (2, 1), (2, 2), (6, 5)]
