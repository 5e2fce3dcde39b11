from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data import SAMPLERS, MPerClass, PairSampler
from holdfast.errors import DataError, InvalidArgument
from holdfast.rng import stream

Y = torch.tensor([5, 5, 5, 2, 2, 9, 9, 9, 9, 2, 5])


def pairs_of(batches: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(batches).reshape(-1, 2)


labels = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(
    lambda drawn: torch.tensor([*drawn, *drawn, 0, 0, 1, 1])  # at least two images of at least two classes
)


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(y=labels, batch_pairs=st.integers(2, 20), self_pairs=st.booleans(), seed=st.integers(0, 99))
def test_pairs_contract(y: torch.Tensor, batch_pairs: int, self_pairs: bool, seed: int) -> None:
    sampler = PairSampler(batch_pairs, self_pairs=self_pairs)
    batches = sampler.epoch(y, stream(seed, "t"))
    pairs = pairs_of(batches)
    assert len(batches) == sampler.batches_per_epoch(y)
    assert sorted(pairs[:, 0].tolist()) == list(range(len(y)))  # every image once as anchor
    assert torch.equal(y[pairs[:, 0]], y[pairs[:, 1]])
    if not self_pairs:
        assert (pairs[:, 0] != pairs[:, 1]).all()
    assert all(len(batch) == 2 * batch_pairs for batch in batches[:-1]) or len(y) % batch_pairs == 1
    assert len(batches[-1]) <= 2 * (batch_pairs + 1)
    assert len(y[batches[-1]].unique()) >= 2
    assert all(batch.dtype == torch.int64 and batch.ndim == 1 for batch in batches)


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(y=labels, half=st.integers(1, 4), seed=st.integers(0, 99))
def test_m_per_class_contract(y: torch.Tensor, half: int, seed: int) -> None:
    m = 2 * half
    sampler = MPerClass(2, m)
    batches = sampler.epoch(y, stream(seed, "t"))
    assert len(batches) == sampler.batches_per_epoch(y) == -(-len(y) // (2 * m))
    counts = y.bincount()
    for batch in batches:
        assert sorted(Counter(y[batch].tolist()).values()) == [m, m]
        pairs = batch.reshape(-1, 2)
        assert torch.equal(y[pairs[:, 0]], y[pairs[:, 1]])
        assert (pairs[:, 0] != pairs[:, 1]).all()
        for label in y[batch].unique():
            rows = batch[y[batch] == label]
            if counts[label] >= m:
                assert len(rows.unique()) == m


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_generator_same_epoch(name: str) -> None:
    sampler = SAMPLERS[name](3, **({} if name == "pairs" else {"m": 2}))
    first, again, other = (sampler.epoch(Y, stream(0, "sampler", e)) for e in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(other))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_global_generator_is_left_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    SAMPLERS[name](2, **({} if name == "pairs" else {"m": 2})).epoch(Y, stream(0, "sampler"))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("self_pairs", [False, True])
def test_partners_are_uniform(self_pairs: bool) -> None:
    y = torch.tensor([0, 1, 0, 1, 0, 0])
    counts = torch.zeros(6, 6)
    generator = stream(0, "uniform")
    rounds = 4000
    for _ in range(rounds):
        pairs = pairs_of(PairSampler(6, self_pairs=self_pairs).epoch(y, generator))
        counts[pairs[:, 0], pairs[:, 1]] += 1
    allowed = (y[:, None] == y) & (torch.ones(6, 6, dtype=torch.bool) if self_pairs else ~torch.eye(6).bool())
    expected = rounds * allowed / allowed.sum(1, keepdim=True)
    assert (counts[~allowed] == 0).all()
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1e-9).all()  # five sigma, seeded


def test_anchors_are_shuffled_uniformly() -> None:
    y = torch.tensor([0, 0, 1, 1])
    generator = stream(1, "uniform")
    first = torch.zeros(4)
    for _ in range(4000):
        first[PairSampler(4).epoch(y, generator)[0][0]] += 1
    assert ((first - 1000).abs() < 5 * 1000**0.5).all()


def test_a_single_last_pair_is_merged() -> None:
    y = torch.tensor([0, 1] * 4 + [0])
    assert [len(b) for b in PairSampler(4).epoch(y, stream(0))] == [8, 10]
    assert [len(b) for b in PairSampler(3).epoch(y, stream(0))] == [6, 6, 6]
    assert [len(b) for b in PairSampler(7).epoch(y, stream(0))] == [14, 4]
    assert [len(b) for b in PairSampler(100).epoch(y, stream(0))] == [18]
    assert PairSampler(4).batches_per_epoch(y) == 2


def test_a_last_batch_of_one_class_is_mixed() -> None:
    y = torch.tensor([0] * 30 + [1, 1])  # left to chance, the last two would mostly be of class 0
    sampler = PairSampler(10)
    for seed in range(50):
        batches = sampler.epoch(y, stream(seed))
        assert [len(b) for b in batches] == [20, 20, 20, 4]
        assert y[batches[-1]].unique().tolist() == [0, 1]
        assert sorted(pairs_of(batches)[:, 0].tolist()) == list(range(32))


def test_an_image_without_partner_is_told() -> None:
    y = torch.tensor([0, 0, 7, 3, 3, 8])
    with pytest.raises(DataError, match=r"class 7 has a single image.*\(2 such classes\).*self_pairs=True"):
        PairSampler(2).epoch(y)
    pairs = pairs_of(PairSampler(2, self_pairs=True).epoch(y, stream(0)))
    assert [2, 2] in pairs.tolist()


def test_m_per_class_lets_a_lone_image_pair_with_itself() -> None:
    y = torch.tensor([0, 1, 1, 1, 1])
    for batch in MPerClass(2, 4).epoch(y, stream(0)):
        assert batch[y[batch] == 0].tolist() == [0, 0, 0, 0]
        assert sorted(batch[y[batch] == 1].tolist()) == [1, 2, 3, 4]


def test_m_per_class_draws_classes_and_images_uniformly() -> None:
    y = torch.arange(4).repeat_interleave(torch.tensor([2, 5, 5, 8]))
    batches = [b for seed in range(1000) for b in MPerClass(2, 4).epoch(y, stream(seed))]
    counts = torch.stack([b.bincount(minlength=20) for b in batches]).sum(0)
    per_class = torch.stack([counts[y == c].sum() for c in range(4)])
    drawn = 4 * len(batches) / 2  # images of a class, when each class is in half the batches
    assert ((per_class - drawn).abs() < 5 * 4 * (len(batches) / 4) ** 0.5).all()
    for c in range(4):
        share = per_class[c] / (y == c).sum()
        assert ((counts[y == c] - share).abs() < 5 * share.sqrt()).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PairSampler(1), "batch_pairs"),
        (lambda: MPerClass(1, 2), "classes"),
        (lambda: MPerClass(2, 3), "even"),
        (lambda: MPerClass(2, 0), "even"),
    ],
)
def test_bad_settings_are_told(make: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("sampler", [PairSampler(2), MPerClass(2, 2)])
def test_bad_labels_are_told(sampler: PairSampler | MPerClass) -> None:
    with pytest.raises(DataError, match="two classes"):
        sampler.epoch(torch.tensor([4, 4, 4]))
    with pytest.raises(InvalidArgument, match="y: need"):
        sampler.epoch(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(InvalidArgument, match="y: need"):
        sampler.epoch(torch.zeros(0, dtype=torch.int64))


def test_too_few_classes_for_a_batch_are_told() -> None:
    with pytest.raises(DataError, match="batches of 4 classes need as many, got 3"):
        MPerClass(4, 2).epoch(Y)
