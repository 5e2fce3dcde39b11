"""Miners on hand-sized numbers, and against the rules written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from holdfast.errors import DataError, InvalidArgument
from holdfast.functional.distance import Euclidean, SquaredEuclidean
from holdfast.miners import DistanceWeighted, GradualSemihard, Hardest, Random, Semihard, Softhard
from holdfast.miners.pairs import or_else, read_pairs
from holdfast.rng import stream
from holdfast.types import Progress

D = Euclidean()
LINE = torch.tensor([0.0, 1.0, 1.1, 1.3, 0.5, 3.0], dtype=torch.float64)[:, None]
LINE_Y = torch.tensor([0, 0, 1, 1, 2, 2])


def crowd(pairs: int = 16, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes on a sphere, several pairs of each, in pair layout."""
    generator = stream(seed, "crowd")
    y = torch.randint(classes, (pairs,), generator=generator).repeat_interleave(2)
    z = torch.randn(2 * pairs, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(z + 0.5 * torch.eye(classes, 3, dtype=torch.float64)[y], dim=1), y


def draws(miner: object, z: Tensor, y: Tensor, times: int = 300) -> tuple[Tensor, Tensor]:
    """Positives and negatives of many calls with one generator, each (times, t)."""
    generator = stream(7, "draws")
    mined = [miner(z, y, D, generator) for _ in range(times)]  # type: ignore[operator]
    return torch.stack([m.positive for m in mined]), torch.stack([m.negative for m in mined])


def rows(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


def test_pair_layout_by_hand() -> None:
    pairs = read_pairs(LINE, LINE_Y, D)
    assert pairs.anchor.tolist() == [0, 2, 4]
    assert pairs.partner.tolist() == [1, 3, 5]
    assert rows(pairs.itself) == [[0], [2], [4]]
    assert rows(pairs.same) == [[0, 1], [2, 3], [4, 5]]
    assert rows(pairs.other) == [[2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3]]
    torch.testing.assert_close(pairs.d_partner[:, 0], torch.tensor([1.0, 0.2, 2.5], dtype=torch.float64))
    assert pairs.d[pairs.itself].tolist() == [0.0, 0.0, 0.0]


def test_the_distance_to_itself_is_zero_whatever_the_rounding() -> None:
    z = 1e3 + torch.rand(8, 64, generator=stream(0))
    assert bool((D.matrix(z, z).diagonal() > 0).any())  # a product form alone would not give 0
    pairs = read_pairs(z, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), D)
    assert bool((pairs.d[pairs.itself] == 0).all())


def test_mining_leaves_no_gradient() -> None:
    z = LINE.clone().requires_grad_()
    assert not read_pairs(z, LINE_Y, D).d.requires_grad


def test_or_else_replaces_empty_rows_only() -> None:
    first, second = torch.tensor([[True, False], [False, False]]), torch.tensor([[False, True], [True, True]])
    assert or_else(first, second).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("z", "y", "error", "text"),
    [
        (torch.rand(3, 2), torch.tensor([0, 0, 1]), InvalidArgument, "even number of rows"),
        (torch.rand(0, 2), torch.zeros(0, dtype=torch.long), InvalidArgument, "even number of rows"),
        (torch.rand(4, 2), torch.tensor([0, 0, 1, 2]), InvalidArgument, "1 and 2 in rows 2 and 3"),
        (torch.rand(4, 2), torch.tensor([5, 5, 5, 5]), DataError, "at least two classes"),
        (torch.rand(4, 2), torch.tensor([0, 0, 1]), InvalidArgument, "shapes"),
        (torch.rand(4), torch.tensor([0, 0, 1, 1]), InvalidArgument, "shapes"),
        (torch.full((4, 2), math.nan), torch.tensor([0, 0, 1, 1]), InvalidArgument, "finite"),
    ],
)
def test_layout_errors(z: Tensor, y: Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_pairs(z, y, D)


def test_random_takes_every_negative_about_equally_often() -> None:
    positive, negative = draws(Random(), LINE, LINE_Y)
    assert bool((positive == torch.tensor([1, 3, 5])).all())
    counts = negative[:, 0].bincount(minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert int(counts[2:].min()) > 50  # 75 expected


def test_semihard_by_hand() -> None:
    assert rows(Semihard(margin=0.2).negatives(LINE, LINE_Y, D)) == [[2], [], []]
    assert rows(Semihard(margin=0.45).negatives(LINE, LINE_Y, D)) == [[2, 3], [4], []]
    _, negative = draws(Semihard(margin=0.2), LINE, LINE_Y)
    assert set(negative[:, 0].tolist()) == {2}
    assert set(negative[:, 1].tolist()) == {0, 1, 4, 5}  # nothing in the window: any other class
    assert set(negative[:, 2].tolist()) == {0, 1, 2, 3}


def test_semihard_window_is_open() -> None:
    z = torch.tensor([0.0, 1.0, 1.0, 2.0])[:, None]  # negatives exactly at both ends of the window
    y = torch.tensor([0, 0, 1, 1])
    assert rows(Semihard(margin=3.0).negatives(z, y, SquaredEuclidean()))[0] == []
    assert rows(Semihard(margin=3.5).negatives(z, y, SquaredEuclidean()))[0] == [3]


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_semihard_against_the_rule_written_out(margin: float) -> None:
    z, y = crowd()
    got = rows(Semihard(margin=margin).negatives(z, y, D))
    assert any(got)
    for i, found in enumerate(got):
        a = 2 * i
        ap = float((z[a] - z[a + 1]).norm())
        distances = [float((z[a] - z[k]).norm()) for k in range(len(z))]
        assert found == [k for k in range(len(z)) if y[k] != y[a] and ap < distances[k] < ap + margin]


def test_softhard_by_hand() -> None:
    assert rows(Softhard().negatives(LINE, LINE_Y, D)) == [[4], [1], [0, 1, 2, 3]]
    assert rows(Softhard().positives(LINE, LINE_Y, D)) == [[1], [3], [5]]


def test_softhard_comparisons_are_strict() -> None:
    z = torch.tensor([0.0, 1.0, 1.0, 2.0])[:, None]  # the partner is as far as the nearest negative
    y = torch.tensor([0, 0, 1, 1])
    assert rows(Softhard().negatives(z, y, SquaredEuclidean()))[0] == []
    assert rows(Softhard().positives(z, y, SquaredEuclidean()))[0] == []


def test_softhard_draws_from_its_sets() -> None:
    z, y = crowd()
    positives, negatives = Softhard().positives(z, y, D), Softhard().negatives(z, y, D)
    assert bool(negatives.any(1).all())
    positive, negative = draws(Softhard(), z, y, 1000)
    for i in range(16):
        partner = [] if positives[i].any() else [2 * i + 1]
        assert sorted(set(positive[:, i].tolist())) == (partner or rows(positives)[i])
        assert sorted(set(negative[:, i].tolist())) == rows(negatives)[i]


def test_softhard_never_takes_the_anchor_when_rounding_makes_a_distance_negative() -> None:
    class Rounded(Euclidean):
        def matrix(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.full((len(a), len(b)), -1e-8)

    assert rows(Softhard().positives(LINE, LINE_Y, Rounded())) == [[], [], []]


@pytest.mark.parametrize("self_positive", [False, True])
def test_softhard_against_the_rule_written_out(self_positive: bool) -> None:
    z, y = crowd()
    miner = Softhard(self_positive=self_positive)
    positives, negatives = rows(miner.positives(z, y, D)), rows(miner.negatives(z, y, D))
    assert len({len(found) for found in positives}) > 1  # the case is not a trivial one
    n = range(len(z))
    for i in range(len(z) // 2):
        a = 2 * i
        d = [0.0 if k == a else float((z[a] - z[k]).norm()) for k in n]
        farthest = max(d[k] for k in n if y[k] == y[a])
        nearest = min(d[k] for k in n if y[k] != y[a])
        assert negatives[i] == [k for k in n if y[k] != y[a] and d[k] < farthest]
        assert positives[i] == [k for k in n if y[k] == y[a] and d[k] > nearest]  # never a: d = 0


def test_softhard_fallbacks_on_easy_anchors() -> None:
    z = torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0, 9.1])[:, None]
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    assert rows(Softhard(self_positive=True).positives(z, y, D)) == [[], [], []]
    positive, negative = draws(Softhard(), z, y)
    assert bool((positive == torch.tensor([1, 3, 5])).all())  # the partner, never the anchor
    assert set(negative[:, 0].tolist()) == {4, 5}
    published, _ = draws(Softhard(self_positive=True), z, y)
    assert set(published[:, 0].tolist()) == {0, 1, 2, 3}  # any row of the class
    share = float((published[:, 2] == 4).double().mean())
    assert 0.4 < share < 0.6  # itself with chance 1/2


def test_hardest_by_hand() -> None:
    mined = Hardest()(LINE, LINE_Y, D)
    assert mined.negative.tolist() == [4, 1, 0] or mined.negative.tolist() == [4, 1, 1]  # a tie for row 4
    assert mined.positive.tolist() == [1, 3, 5]
    z = torch.tensor([0.0, 1.0, 0.0, 5.0])[:, None]  # row 2 is a copy of row 0 with another label
    assert Hardest()(z, torch.tensor([0, 0, 1, 1]), D).negative.tolist() == [2, 0]


def test_distance_weights_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, math.pi / 3, math.pi / 2], dtype=torch.float64)
    z = torch.stack([angles.cos(), angles.sin()], 1)  # distances 1 and sqrt(2) from row 0
    weights = DistanceWeighted(dimension=5).weights(z, torch.tensor([0, 0, 1, 1]), D)[0]
    near, far = 1 / (1 * (1 - 1 / 4)), 1 / (2**1.5 * (1 - 2 / 4))  # d^(2-D) (1 - d^2/4)^((3-D)/2)
    expected = torch.tensor([0, 0, near, far], dtype=torch.float64) / (near + far)
    torch.testing.assert_close(weights, expected)


def test_distance_weighted_draws_follow_the_weights() -> None:
    z, y = crowd()
    miner = DistanceWeighted(dimension=6)
    weights = miner.weights(z, y, D)
    torch.testing.assert_close(weights.sum(1), torch.ones(16, dtype=torch.float64))
    assert bool((weights[y[0::2, None] == y] == 0).all())
    times = 2000
    _, negative = draws(miner, z, y, times)
    for i in range(3):
        shares = negative[:, i].bincount(minlength=len(z)) / times
        assert float((shares - weights[i]).abs().max()) < 5 * math.sqrt(0.25 / times)
    assert 0.1 < float(weights[:3].max()) < 0.9  # neither uniform nor certain


def test_distance_weighted_dimension() -> None:
    z, y = crowd()
    assert torch.equal(DistanceWeighted().weights(z, y, D), DistanceWeighted(dimension=3).weights(z, y, D))
    # in many dimensions the nearest negative is as good as certain, unless one lies almost opposite
    sharp = DistanceWeighted(dimension=512).weights(LINE / 10, LINE_Y, D)
    assert sharp[1].argmax() == 1
    assert float(sharp[1].max()) > 0.999


def test_distance_weighted_extremes() -> None:
    y = torch.tensor([0, 0, 1, 1])
    far = torch.tensor([0.0, 0.1, 5.0, 9.0])[:, None]  # all distances >= 2: any negative
    assert DistanceWeighted(dimension=8).weights(far, y, D)[0].tolist() == [0, 0, 0.5, 0.5]
    copy = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]  # a duplicate with another label: as good as certain
    weights = DistanceWeighted(dimension=8).weights(copy, y, D)[0].tolist()
    assert weights == pytest.approx([0, 0, 1, 0], abs=1e-60)
    assert weights[:2] == [0, 0]
    opposite = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert DistanceWeighted(dimension=8).weights(opposite, y, D)[0].tolist() == [0, 0, 0, 1]


def test_gradual_window_shrinks_to_a_quarter() -> None:
    miner = GradualSemihard(margin=0.2)
    windows = [miner.at(Progress(epoch=e, epochs=8)).margin for e in range(8)]
    torch.testing.assert_close(windows, [0.2 * (1 - e / 16) ** 2 for e in range(8)])
    assert windows == sorted(windows, reverse=True)
    assert miner.at(Progress(epoch=8, epochs=8)).margin == pytest.approx(0.05)


def test_gradual_called_directly_is_semihard_of_the_first_epoch() -> None:
    z, y = crowd()
    direct = GradualSemihard(margin=0.3)(z, y, D, stream(1))
    assert all(
        torch.equal(a, b) for a, b in zip(direct, Semihard(margin=0.3)(z, y, D, stream(1)), strict=True)
    )


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("miner", [Semihard, GradualSemihard])
def test_margin_is_checked(miner: type[Semihard], margin: float) -> None:
    with pytest.raises(InvalidArgument, match="margin"):
        miner(margin=margin)


def test_dimension_is_checked() -> None:
    with pytest.raises(InvalidArgument, match="dimension"):
        DistanceWeighted(dimension=1)
