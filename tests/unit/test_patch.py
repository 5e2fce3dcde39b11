"""Patches: anything inside the rectangle, nothing outside, places that follow the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.patch import PatchThreat, PlacedPatch
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD
from holdfast.types import rows_of

RANDOM = PatchThreat(height=2, width=3)


def images(n: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 5, 7, generator=stream(seed, "patch"), dtype=torch.float64)


def corners(patch: PlacedPatch) -> list[tuple[int, int]]:
    return [tuple(torch.nonzero(mask[0])[0].tolist()) for mask in patch.mask]


def total(z: Tensor) -> Tensor:
    return z.flatten(1).sum(1)


def test_by_hand() -> None:
    threat = PatchThreat(height=1, width=2, place=(1, 0))
    x0 = torch.full((1, 1, 2, 3), 0.5)
    x = torch.tensor([[[[9.0, 9.0, 9.0], [-4.0, 0.75, 9.0]]]])
    got = threat.project(x, x0)
    assert got[0, 0].tolist() == [[0.5, 0.5, 0.5], [0.0, 0.75, 0.5]]
    assert threat.size(got, x0).tolist() == [0.5]
    assert threat.size(x, x0).tolist() == [float("inf")]
    assert threat.direction(torch.tensor([-3.0, 0.0, 1e-9])).tolist() == [-1, 0, 1]
    assert (threat.eps, threat.norm) == (1.0, "patch")
    assert PatchThreat(height=1, width=1, bounds=(-1.0, 2.0)).eps == 3
    assert threat.rows(torch.tensor([0])) is threat


def test_noise_fills_the_rectangle_and_nothing_else() -> None:
    threat = PatchThreat(height=2, width=3, place=(3, 4), bounds=(-1.0, 2.0))
    x0 = images(200)
    noise = threat.noise(x0, RowStreams(0, "n", index=range(200)))
    inside = noise[:, :, 3:5, 4:7]
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.05)
    assert (float(inside.min()) < -0.95, float(inside.max()) > 1.95) == (True, True)
    changed = (noise != x0).any(1).any(0)
    assert changed.nonzero().tolist() == [[i, j] for i in (3, 4) for j in (4, 5, 6)]
    part = threat.noise(x0[[7, 3]], RowStreams(0, "n", index=[7, 3]))
    assert torch.equal(part, noise[[7, 3]])


def test_the_best_attack_on_a_sum_is_a_white_patch() -> None:
    x0 = images()
    patch = RANDOM.for_rows(range(6), 0, x0.shape)
    x = PGD(steps=12, alpha=0.1)(lambda x: x, x0, total, patch)
    assert torch.equal(x, torch.where(patch.mask, 1.0, x0))
    assert bool((patch.size(x, x0) <= patch.eps).all())
    assert torch.equal(patch.project(x, x0), x)


def test_places_are_uniform_inside_the_image() -> None:
    patch = RANDOM.for_rows(range(4000), 1, (1, 5, 7))
    assert patch.mask.shape == (4000, 1, 5, 7)
    assert bool((patch.mask.flatten(1).sum(1) == 6).all())
    found = corners(patch)
    counts = {place: found.count(place) for place in set(found)}
    assert set(counts) == {(i, j) for i in range(4) for j in range(5)}  # all 20 places, no other
    assert max(abs(count - 200) for count in counts.values()) < 60


def test_a_place_belongs_to_the_image_and_the_seed() -> None:
    shape = (2, 5, 7)
    whole = corners(RANDOM.for_rows(torch.arange(30), 0, shape))
    assert corners(RANDOM.for_rows([17, 4], 0, shape)) == [whole[17], whole[4]]
    assert corners(RANDOM.for_rows(range(30), 1, shape)) != whole
    fixed = PatchThreat(height=2, width=3, place=(1, 4)).for_rows(range(3), 0, shape)
    assert corners(fixed) == [(1, 4)] * 3


def test_a_patch_as_large_as_the_image_has_one_place() -> None:
    patch = PatchThreat(height=5, width=7).for_rows(range(4), 0, (5, 7))
    assert bool(patch.mask.all())


def test_rows_by_number_mask_and_group() -> None:
    patch = RANDOM.for_rows(range(4), 0, (2, 5, 7))
    assert torch.equal(rows_of(patch, torch.tensor([2, 0])).mask, patch.mask[[2, 0]])
    mask = torch.tensor([False, True, False, True])
    assert torch.equal(patch.rows(mask).mask, patch.mask[[1, 3]])
    assert torch.equal(patch.rows(torch.tensor([6, 3])).mask, patch.mask[[2, 3]])  # row 6 of groups of 4


def test_groups_of_several_rows_share_the_place_and_may_come_to_rest() -> None:
    """Six rows in three groups; group 1 is flat from the start, so that the search cuts the threat."""
    x0 = images(6)
    patch = RANDOM.for_rows(range(3), 0, x0.shape)
    weight = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)

    def gain(z: Tensor) -> Tensor:
        return weight * total(z).reshape(2, 3).sum(0)

    whole = patch.mask.repeat(2, 1, 1, 1)
    assert torch.equal(patch.project(torch.ones_like(x0), x0), torch.where(whole, 1.0, x0))
    x = PGD(steps=12, alpha=0.1)(lambda x: x, x0, gain, patch)
    moved = torch.tensor([True, False, True]).repeat(2)[:, None, None, None]
    expected = torch.where(whole & moved, 1.0, x0)
    assert torch.equal(x, expected)


def test_a_random_place_must_be_drawn_first() -> None:
    for call in (RANDOM.noise, lambda x: RANDOM.project(x, x), lambda x: RANDOM.size(x, x)):
        with pytest.raises(InvalidArgument, match="call for_rows first"):
            call(images())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "height"),
        ({"width": 2.5}, "width"),
        ({"place": "middle"}, "place"),
        ({"place": (1,)}, "place"),
        ({"place": (-1, 0)}, "place"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"bounds": None}, "bounds"),
    ],
)
def test_bad_patches(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{message}: need"):
        PatchThreat(**{"height": 2, "width": 2, **settings})


@pytest.mark.parametrize(
    ("threat", "shape"),
    [
        (PatchThreat(height=6, width=1), (5, 7)),
        (PatchThreat(height=1, width=8), (5, 7)),
        (PatchThreat(height=2, width=2, place=(4, 0)), (5, 7)),
        (PatchThreat(height=2, width=2, place=(0, 6)), (5, 7)),
        (RANDOM, (7,)),
    ],
)
def test_a_rectangle_must_fit(threat: PatchThreat, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="shape: need"):
        threat.for_rows([0], 0, shape)


@pytest.mark.parametrize("x", [torch.zeros(5, 1, 5, 7), torch.zeros(4, 1, 7, 5), torch.zeros(4, 7)])
def test_masks_must_fit(x: Tensor) -> None:
    patch = RANDOM.for_rows(range(4), 0, (5, 7))
    with pytest.raises(InvalidArgument, match="mask: need places for inputs"):
        patch.project(x, x)


@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool)])
def test_bad_masks(mask: Tensor) -> None:
    with pytest.raises(InvalidArgument, match="mask: need bool"):
        PlacedPatch(mask=mask)
