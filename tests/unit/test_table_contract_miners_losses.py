"""What every miner and every loss of the tables promises; a new entry is tested by being listed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import DataError, InvalidArgument
from holdfast.functional.distance import DISTANCES
from holdfast.losses import LOSSES, IntraClassStructure
from holdfast.miners import MINERS
from holdfast.rng import seeded, stream
from holdfast.types import PairwiseDistance, Roles, TripletView

CLASSES = 5
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
EVERY_MINER = pytest.mark.parametrize("name", list(MINERS))
EVERY_LOSS = pytest.mark.parametrize("name", list(LOSSES))
EVERY_DISTANCE = pytest.mark.parametrize("distance", list(DISTANCES.values()), ids=list(DISTANCES))


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit rows in pair layout, with repeated classes and one exact duplicate."""
    generator = stream(seed, "batch")
    y = torch.tensor([0, 1, 2, 0, 3, 1, 4, 0]).repeat_interleave(2)
    z = F.normalize(torch.randn(16, 6, generator=generator, dtype=torch.float64), dim=1)
    z[9] = z[8]
    return z.to(dtype), y


def ready(name: str) -> Any:
    """The loss itself, or what its ``setup`` gives."""
    loss: Any = LOSSES[name]
    with seeded(0, name):
        return loss.setup(6, CLASSES) if hasattr(loss, "setup") else loss


def value(name: str, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
    """Call a loss of either kind on one batch; triplets are rows (2i, 2i + 1, 2i + 2)."""
    loss = ready(name)
    if loss.reads == "batch":
        return loss(z, y, distance)
    return loss(Roles(z[0::2], z[1::2], z[0::2].roll(-1, 0)), distance)


def test_tables_hold_the_public_names() -> None:
    assert list(MINERS) == ["random", "semihard", "softhard", "hard", "distance", "gradual"]
    first = ["triplet", "contrastive", "margin", "multi-similarity", "proxy-anchor"]
    assert list(LOSSES) == [*first, "lifted", "n-pair", "snr", "quadruplet"]


@pytest.mark.parametrize("entry", [*MINERS.values(), *LOSSES.values(), IntraClassStructure()], ids=str)
def test_entries_are_frozen_values(entry: Any) -> None:
    assert is_dataclass(entry)
    assert entry == type(entry)()
    assert hash(entry) == hash(type(entry)())
    with pytest.raises(FrozenInstanceError):
        entry.anything = 1
    if fields(entry):
        with pytest.raises(TypeError):
            type(entry)(0.3)  # keyword-only


@EVERY_MINER
@EVERY_DISTANCE
@DTYPES
def test_triplets_are_valid(name: str, distance: PairwiseDistance, dtype: torch.dtype) -> None:
    for seed in range(5):
        z, y = batch(seed, dtype)
        mined = MINERS[name](z, y, distance, stream(seed))
        assert all(role.shape == (8,) and role.dtype == torch.int64 for role in mined)
        assert mined.anchor.tolist() == list(range(0, 16, 2))
        assert torch.equal(y[mined.anchor], y[mined.positive])
        assert bool((y[mined.anchor] != y[mined.negative]).all())
        assert bool((mined.anchor != mined.positive).all())


@EVERY_MINER
def test_triplets_are_valid_where_all_rows_are_equal(name: str) -> None:
    _, y = batch(0)
    z = torch.ones(16, 6) / 6**0.5
    mined = MINERS[name](z, y, DISTANCES["euclidean"], stream(0))
    assert torch.equal(y[mined.anchor], y[mined.positive])
    assert bool((y[mined.anchor] != y[mined.negative]).all())


@EVERY_MINER
def test_the_same_generator_gives_the_same_triplets(name: str) -> None:
    z, y = batch(0)
    euclidean = DISTANCES["euclidean"]
    first, second = (MINERS[name](z, y, euclidean, stream(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    others = [MINERS[name](z, y, euclidean, stream(seed)).negative for seed in range(20)]
    varied = any(not torch.equal(first.negative, other) for other in others)
    assert varied is (name != "hard")  # all but the hardest are random


@EVERY_MINER
def test_the_global_generator_is_read_only_if_none_is_given(name: str) -> None:
    z, y = batch(0)
    euclidean = DISTANCES["euclidean"]
    before = torch.get_rng_state()
    MINERS[name](z, y, euclidean, stream(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    first = MINERS[name](z, y, euclidean)
    torch.manual_seed(3)
    second = MINERS[name](z, y, euclidean)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_rng_state(before)


@EVERY_MINER
def test_mining_changes_nothing(name: str) -> None:
    z, y = batch(0)
    kept_z, kept_y = z.clone(), y.clone()
    z.requires_grad_()
    mined = MINERS[name](z, y, DISTANCES["euclidean"], stream(0))
    assert torch.equal(z.detach(), kept_z)
    assert torch.equal(y, kept_y)
    assert z.grad is None
    assert not any(role.requires_grad for role in mined)


@EVERY_MINER
def test_miner_errors(name: str) -> None:
    z, y = batch(0)
    euclidean = DISTANCES["euclidean"]
    with pytest.raises(DataError, match="two classes"):
        MINERS[name](z, torch.zeros(16, dtype=torch.long), euclidean)
    with pytest.raises(InvalidArgument, match="even number"):
        MINERS[name](z[:5], y[:5], euclidean)
    with pytest.raises(InvalidArgument, match="same label"):
        MINERS[name](z, y.roll(1), euclidean)


@EVERY_LOSS
@EVERY_DISTANCE
@DTYPES
def test_losses_are_unreduced_finite_and_not_negative(
    name: str, distance: PairwiseDistance, dtype: torch.dtype
) -> None:
    z, y = batch(1, dtype)
    got = value(name, z, y, distance).detach()
    assert got.shape == ((16,) if ready(name).reads == "batch" else (8,))
    assert got.dtype == dtype
    assert bool(torch.isfinite(got).all())
    assert float(got.min()) >= 0
    assert float(got.max()) > 0


@EVERY_LOSS
@EVERY_DISTANCE
@DTYPES
@pytest.mark.parametrize("rows", ["random", "equal"])
def test_gradients_are_finite(name: str, distance: PairwiseDistance, dtype: torch.dtype, rows: str) -> None:
    z, y = batch(1, dtype)
    if rows == "equal":
        z = z[:1].expand(16, 6).clone()
    z.requires_grad_()
    value(name, z, y, distance).mean().backward()
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())
    assert rows == "equal" or bool((z.grad != 0).any())


@EVERY_LOSS
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    z, y = batch(2)
    z[9] = -z[8]  # no duplicate here: smooth at every row
    loss = ready(name)
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    z.requires_grad_()

    def mean(z: Tensor) -> Tensor:
        if loss.reads == "batch":
            return loss(z, y, DISTANCES["euclidean"]).mean()
        return loss(Roles(z[0::2], z[1::2], z[0::2].roll(-1, 0)), DISTANCES["euclidean"]).mean()

    assert torch.autograd.gradcheck(mean, (z,), eps=1e-7, atol=1e-5)


@EVERY_LOSS
def test_permuting_rows_permutes_values(name: str) -> None:
    z, y = batch(3)
    loss, euclidean = ready(name), DISTANCES["euclidean"]
    if loss.reads == "batch":
        order = torch.randperm(16, generator=stream(0))
        before, after = loss(z, y, euclidean), loss(z[order], y[order], euclidean)
    else:
        order = torch.randperm(8, generator=stream(0))
        roles = Roles(z[0::2], z[1::2], z[0::2].roll(-1, 0))
        before, after = loss(roles, euclidean), loss(Roles(*(role[order] for role in roles)), euclidean)
    assert float(before.detach().std()) > 0
    torch.testing.assert_close(after, before[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if hasattr(loss, "setup")])
def test_learnable_parts_get_gradients(name: str) -> None:
    loss = ready(name)
    assert isinstance(loss, nn.Module)
    assert loss.reads == LOSSES[name].reads  # type: ignore[union-attr]
    assert list(loss.parameters())
    z, y = batch(1, torch.float32)
    triplets = Roles(z[0::2], z[1::2], z[0::2].roll(-1, 0))
    out = loss(z, y, DISTANCES["cosine"]) if loss.reads == "batch" else loss(triplets, DISTANCES["cosine"])
    # each row alone, for a boundary that pulls and pushes equally has no slope in the mean
    (grad,) = torch.autograd.grad(out[0], list(loss.parameters()))
    assert bool(torch.isfinite(grad).all())
    assert bool((grad != 0).any())


@EVERY_LOSS
def test_loss_shape_errors(name: str) -> None:
    z, y = batch(0, torch.float32)
    loss = ready(name)
    if loss.reads == "batch":
        bad = [(z, y[:3]), (z[0], y)]
        for wrong in bad:
            with pytest.raises(InvalidArgument, match="shapes"):
                loss(*wrong, DISTANCES["euclidean"])
        return
    for roles in (Roles(z[:4], z[:4], z[:1]), Roles(z[:4], z[:1], z[:4]), Roles(z[0], z[0], z[0])):
        with pytest.raises(InvalidArgument, match="one shape"):
            loss(roles, DISTANCES["euclidean"])


@EVERY_DISTANCE
@DTYPES
def test_structure_term_keeps_the_contract(distance: PairwiseDistance, dtype: torch.dtype) -> None:
    z, _ = batch(4, dtype)
    z.requires_grad_()
    clean = Roles(z[0::2], z[1::2], z[0::2].roll(-1, 0))
    unmoved = IntraClassStructure()(TripletView(now=clean, clean=clean), distance)
    moved = IntraClassStructure()(TripletView(now=Roles(*(-r for r in clean)), clean=clean), distance)
    assert moved.shape == (8,)
    assert moved.dtype == dtype
    assert float(moved.detach().min()) >= 0
    assert float(moved.detach().max()) > 0.1
    assert float(unmoved.detach().max()) < 1e-5
    (unmoved.sum() + moved.sum()).backward()
    assert bool(torch.isfinite(z.grad).all())
    with pytest.raises(InvalidArgument, match="one shape"):
        IntraClassStructure()(TripletView(now=Roles(z[:2], z[:2], z[:1]), clean=clean), distance)
