"""Votes under noise around a black box: by hand, fresh samples, abstention, bad answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from holdfast.certify import Smoothing, certify_votes
from holdfast.errors import InvalidArgument
from holdfast.rng import stream

S = Smoothing(sigma=0.5, n_select=60, n_certify=500)


def sign(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long()


class Box:
    """A black box that keeps what it was asked."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.seen = answers, list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        given: Tensor = self.answers(x)
        return given


def test_the_radius_is_that_of_the_counted_votes() -> None:
    x = torch.tensor([[0.4, 9.0]])
    got = certify_votes(sign, x, S, index=[7])
    noise = stream(0, "vote", "certify", 7)
    copies = x[0] + 0.5 * torch.stack([torch.randn(2, generator=noise) for _ in range(500)])
    hits = int((copies[:, 0] > 0).sum())
    low = beta.ppf(1e-3, hits, 500 - hits + 1)
    assert float(got.radius[0]) == pytest.approx(0.5 * norm.ppf(low), abs=1e-7)
    assert float(got.radius[0]) <= 0.5 * norm.ppf(low) < 0.4
    assert got.answer is not None
    assert got.answer.tolist() == [1]
    assert (got.method, got.norm, got.alpha) == ("vote", 2.0, 1e-3)
    assert not bool(got.exact_rows().any())


def test_all_votes_alike_give_the_largest_radius_that_n_allows() -> None:
    got = certify_votes(lambda x: torch.full((len(x),), 3), torch.zeros(2, 2), S)
    expected = 0.5 * norm.ppf(1e-3 ** (1 / 500))
    assert got.radius.tolist() == [pytest.approx(expected, abs=1e-7)] * 2
    assert float(got.radius.max()) < expected


def test_without_a_majority_it_abstains() -> None:
    thirds = lambda x: ((x[:, 0] * 1e4).floor().long() % 3).abs()  # noqa: E731
    got = certify_votes(thirds, torch.zeros(1, 2), S)
    assert got.radius.tolist() == [0]
    assert got.correct.tolist() == [False]
    assert got.answer is not None
    assert got.answer.tolist() == [-1]


def test_right_answers_are_compared_and_wrong_ones_keep_no_radius() -> None:
    x = torch.tensor([[1.0], [1.0], [-1.0]])
    got = certify_votes(sign, x, S, y=torch.tensor([1, 0, 0]))
    assert got.correct.tolist() == [True, False, True]
    assert got.radius[1] == 0
    assert got.answer is not None
    assert got.answer.tolist() == [1, 1, 0]


def test_selection_and_certification_are_different_draws_unclipped() -> None:
    box = Box(sign)
    certify_votes(box, torch.zeros(1, 2), replace(S, n_select=300, n_certify=300, batch_size=300))
    select, certify = box.seen
    assert not bool((select[:, None] == certify[None]).all(2).any())
    assert float(certify.min()) < -0.5
    assert float(certify.max()) > 1


def test_ties_of_the_select_sample_go_to_the_smallest_answer() -> None:
    calls = iter([torch.tensor([5, 2, 2, 5]), torch.full((500,), 2)])
    got = certify_votes(lambda x: next(calls), torch.zeros(1, 1), replace(S, n_select=4, batch_size=500))
    assert got.answer is not None
    assert got.answer.tolist() == [2]
    assert float(got.radius[0]) > 0


def test_the_certify_sample_does_not_choose() -> None:
    """The select sample says 5, every certify vote says 2: nothing is certified."""
    calls = iter([torch.full((4,), 5), torch.full((500,), 2)])
    got = certify_votes(lambda x: next(calls), torch.zeros(1, 1), replace(S, n_select=4, batch_size=500))
    assert got.radius.tolist() == [0]


@pytest.mark.parametrize("batch_size", [1, 33, 10_000])
def test_batches_and_neighbours_do_not_change_votes(batch_size: int) -> None:
    x = torch.tensor([[0.3], [-0.1], [0.9]])
    whole = certify_votes(sign, x, S)
    alone = certify_votes(sign, x[[2, 0]], replace(S, batch_size=batch_size), index=[2, 0])
    assert torch.equal(alone.radius, whole.radius[[2, 0]])


def test_modules_answer_in_evaluation_mode_and_without_gradient() -> None:
    class Engine(nn.Module):
        """Answers 1 in evaluation mode without gradient, else 0."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x),), int(not self.training and not torch.is_grad_enabled()))

    engine = Engine().train()
    got = certify_votes(engine, torch.zeros(1, 1), S)
    assert got.answer is not None
    assert got.answer.tolist() == [1]
    assert engine.training


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: x[:, 0], "integers"),
        (lambda x: torch.full((len(x),), -1), "integers >= 0"),
        (lambda x: torch.zeros(len(x), 1).long(), "one answer for each"),
        (lambda x: torch.zeros(1).long(), "one answer for each"),
        (lambda x: [0] * len(x), "one answer for each"),
        (lambda x: torch.full((len(x),), math.nan), "integers"),
    ],
)
def test_answers_that_are_no_votes_are_refused(answer: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        certify_votes(answer, torch.zeros(2, 2), S)


def test_bad_lengths_are_refused_and_no_input_is_no_answer() -> None:
    with pytest.raises(InvalidArgument, match="y: need"):
        certify_votes(sign, torch.zeros(2, 2), S, y=torch.zeros(3))
    with pytest.raises(InvalidArgument, match="index"):
        certify_votes(sign, torch.zeros(2, 2), S, index=[1])
    assert len(certify_votes(sign, torch.zeros(0, 2), S)) == 0
