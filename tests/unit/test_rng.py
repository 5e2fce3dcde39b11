"""Named streams: the same name gives the same numbers, whatever the batch, dtype or order."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.rng import RowStreams, choose, normal, seeded, stream, uniform

DRAWS = [uniform, normal]


def test_the_state_is_a_hash_of_the_name_and_stays_so() -> None:
    digest = hashlib.sha256(b"(3, 'noise', 7)").digest()
    assert stream(3, "noise", 7).initial_seed() == int.from_bytes(digest[:8], "big") >> 1


def test_other_seeds_and_names_give_other_streams() -> None:
    names = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a", 1, 2), (0, "a", 12)]
    assert len({stream(*name).initial_seed() for name in names}) == len(names)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        stream(-1)


@pytest.mark.parametrize("draw", DRAWS)
def test_rows_follow_their_index_and_not_their_neighbours(draw: object) -> None:
    x = torch.zeros(4, 2, 3)
    whole = draw(x, RowStreams(0, "n", index=torch.tensor([5, 6, 7, 8])))  # type: ignore[operator]
    part = draw(x[:2], RowStreams(0, "n", index=[8, 6]))  # type: ignore[operator]
    assert torch.equal(part, whole[[3, 1]])
    assert len(whole.unique()) == whole.numel()  # rows differ, and so do values within a row


@pytest.mark.parametrize("draw", DRAWS)
def test_row_i_belongs_to_stream_i_mod_n(draw: object) -> None:
    streams = RowStreams(0, "n", index=[1, 2])
    both = draw(torch.zeros(4, 3), streams)  # type: ignore[operator]
    again = RowStreams(0, "n", index=[1, 2])
    first, second = draw(torch.zeros(2, 3), again), draw(torch.zeros(2, 3), again)  # type: ignore[operator]
    assert torch.equal(both, torch.cat([first, second]))


@pytest.mark.parametrize("draw", DRAWS)
def test_dtype_does_not_change_the_numbers(draw: object) -> None:
    single, double = (draw(torch.zeros(3, 4, dtype=d), stream(1)) for d in (torch.float32, torch.float64))  # type: ignore[operator]
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("rows", [3, 5])
def test_streams_must_divide_the_rows(draw: object, rows: int) -> None:
    with pytest.raises(InvalidArgument, match="generator"):
        draw(torch.zeros(rows, 2), RowStreams(0, index=[1, 2]))  # type: ignore[operator]


@pytest.mark.parametrize("draw", DRAWS)
def test_no_streams_serve_no_rows_only(draw: object) -> None:
    nobody = RowStreams(0, index=[])
    assert draw(torch.zeros(0, 2), nobody).shape == (0, 2)  # type: ignore[operator]
    with pytest.raises(InvalidArgument, match="generator"):  # and never memory that nobody wrote
        draw(torch.zeros(3, 2), nobody)  # type: ignore[operator]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_scalar_has_no_rows_to_share(draw: object) -> None:
    with pytest.raises(InvalidArgument, match="generator"):
        draw(torch.zeros(()), RowStreams(0, index=[1, 2]))  # type: ignore[operator]


def test_moments() -> None:
    x = torch.zeros(20000)
    u, g = uniform(x, stream(0)), normal(x, stream(0))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(g.mean()) == pytest.approx(0, abs=0.03)
    assert float(g.std()) == pytest.approx(1, abs=0.03)


def allowed_mask() -> Tensor:
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, [1, 4, 5]] = True
    mask[1, 2] = True
    mask[2, :] = True
    return mask


def test_choose_takes_every_allowed_column_equally_often() -> None:
    mask = allowed_mask()
    columns = choose(mask, stream(0), k=6000)
    assert columns.dtype == torch.int64
    assert columns.shape == (3, 6000)
    for row, share in zip(range(3), (1 / 3, 1.0, 1 / 6), strict=True):
        counts = columns[row].bincount(minlength=6) / 6000
        assert torch.equal(counts > 0, mask[row])
        assert torch.allclose(counts[mask[row]], torch.tensor(share), atol=0.03)


def test_choose_without_replacement_never_repeats() -> None:
    mask = allowed_mask()[[0, 2]]
    firsts = set()
    for seed in range(50):
        columns = choose(mask, stream(seed), k=3, replacement=False)
        assert sorted(columns[0].tolist()) == [1, 4, 5]
        assert len(set(columns[1].tolist())) == 3
        firsts.add(int(columns[0, 0]))
    assert firsts == {1, 4, 5}


@pytest.mark.parametrize("replacement", [True, False])
def test_choose_follows_row_streams(replacement: bool) -> None:
    mask = torch.ones(4, 50, dtype=torch.bool)
    whole = choose(mask, RowStreams(0, index=range(4)), k=5, replacement=replacement)
    part = choose(mask[:2], RowStreams(0, index=[3, 0]), k=5, replacement=replacement)
    assert torch.equal(part, whole[[3, 0]])


def test_choose_refuses_what_cannot_be_chosen() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(InvalidArgument, match="at least one allowed column"):
        choose(mask, stream(0))
    with pytest.raises(InvalidArgument, match="at least 2 allowed columns"):
        choose(mask[:1], stream(0), k=2, replacement=False)


def test_seeded_restores_the_global_state_even_after_an_error() -> None:
    before = torch.get_rng_state()
    with seeded(0, "init"):
        one = torch.rand(3)
    with seeded(0, "init"):
        two = torch.rand(3)
    assert torch.equal(one, two)
    assert torch.equal(one, torch.rand(3, generator=stream(0, "init")))

    def fail_halfway() -> None:
        with seeded(0, "init"):
            torch.rand(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    uniform(torch.zeros(3), stream(0))
    normal(torch.zeros(3, 2), RowStreams(0, index=range(3)))
    choose(torch.ones(2, 3, dtype=torch.bool), stream(0))
    assert torch.equal(torch.get_rng_state(), before)
