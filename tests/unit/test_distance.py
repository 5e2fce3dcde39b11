"""Distances against SciPy, by hand, and at the places where gradients break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.functional.distance import (
    DISTANCES,
    OFFSET,
    Cosine,
    Euclidean,
    Mahalanobis,
    SquaredEuclidean,
    squared_matrix,
)
from holdfast.rng import stream
from holdfast.types import PairwiseDistance

DTYPES = [torch.float32, torch.float64]
SCIPY = {"euclidean": "euclidean", "squared": "sqeuclidean", "cosine": "cosine"}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "distance"), dtype=torch.float64).to(dtype)


def psd(e: int = 5, rank: int = 5, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    factor = rand(rank, e, seed=seed, dtype=dtype)
    return factor.T @ factor


def everything(e: int = 5) -> dict[str, Any]:
    return {**DISTANCES, "mahalanobis": Mahalanobis.from_matrix(psd(e)), "flat": Mahalanobis(rand(2, e))}


NAMES = sorted(everything())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCIPY)
def test_matrix_and_rows_agree_with_scipy(name: str, dtype: torch.dtype) -> None:
    a, b = rand(6, 5, dtype=dtype), rand(4, 5, seed=1, dtype=dtype)
    theirs = torch.from_numpy(cdist(a.double().numpy(), b.double().numpy(), SCIPY[name]))
    ours = DISTANCES[name].matrix(a, b)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)
    rows = DISTANCES[name].rowwise(a[:4], b)
    assert rows.dtype == dtype
    torch.testing.assert_close(rows.double(), theirs.diagonal(), atol=max(tolerance, 5e-6), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mahalanobis_agrees_with_scipy(dtype: torch.dtype) -> None:
    a, b, m = rand(6, 5, dtype=dtype), rand(4, 5, seed=1, dtype=dtype), psd()
    theirs = torch.from_numpy(cdist(a.double().numpy(), b.double().numpy(), "mahalanobis", VI=m.numpy()))
    metric = Mahalanobis.from_matrix(m)
    torch.testing.assert_close(metric.matrix(a, b).double(), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(metric.rowwise(a[:4], b).double(), theirs.diagonal(), atol=1e-5, rtol=0)
    assert metric.matrix(a, b).dtype == metric.rowwise(a, a).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_diagonal_of_the_matrix(name: str) -> None:
    a, b = rand(7, 5), rand(7, 5, seed=1)
    distance = everything()[name]
    assert isinstance(distance, PairwiseDistance)
    torch.testing.assert_close(distance.rowwise(a, b), distance.matrix(a, b).diagonal(), atol=2e-5, rtol=0)
    torch.testing.assert_close(distance.matrix(a, b), distance.matrix(b, a).T)


def test_by_hand() -> None:
    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert Euclidean(offset=0.0).rowwise(a, b).tolist() == pytest.approx([5, 5**0.5])
    assert SquaredEuclidean().rowwise(a, b).tolist() == [25, 5]
    assert Cosine().rowwise(a[1:], b[:1]).tolist() == pytest.approx([0.4])
    assert float(Cosine().rowwise(a[1:], -3 * a[1:])) == pytest.approx(2)
    m = torch.tensor([[4.0, 0.0], [0.0, 0.25]])
    assert Mahalanobis.from_matrix(m).rowwise(a, b).tolist() == pytest.approx([(36 + 4) ** 0.5, 5**0.5])


def test_the_offset_is_the_one_of_torch() -> None:
    a, b = rand(6, 5), rand(6, 5, seed=1)
    torch.testing.assert_close(
        Euclidean().rowwise(a, b), torch.nn.functional.pairwise_distance(a, b), atol=0, rtol=1e-14
    )
    at_zero = Euclidean().rowwise(a, a)
    torch.testing.assert_close(at_zero, torch.full_like(at_zero, OFFSET * 5**0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_at_distance_zero(name: str, dtype: torch.dtype) -> None:
    distance = everything()[name]
    z = torch.nn.functional.normalize(rand(4, 5, dtype=dtype))
    z = torch.cat([z, z[:1]])  # a duplicate
    for form in ("rowwise", "matrix"):
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        grads = torch.autograd.grad(getattr(distance, form)(a, b).sum(), (a, b))
        assert all(bool(torch.isfinite(g).all()) for g in grads), form
        assert all(g.dtype == dtype for g in grads)


@pytest.mark.parametrize("name", ["euclidean", "mahalanobis", "flat"])
def test_rows_have_a_direction_even_at_distance_zero(name: str) -> None:
    """An adversary that climbs the distance to its own clean embedding must be able to start."""
    a = rand(3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(everything()[name].rowwise(a, a.detach()).sum(), a)
    assert bool((grad.abs().sum(1) > 0.1).all())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right_elsewhere(name: str) -> None:
    distance = everything()[name]
    a, b = rand(3, 5).requires_grad_(), rand(4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(distance.matrix, (a, b))
    assert torch.autograd.gradcheck(distance.rowwise, (a, b[:3]))


def test_squared_distances_are_never_negative() -> None:
    x = 1000 + rand(50, 8, dtype=torch.float32)
    d = squared_matrix(x, x.clone())
    assert float(d.min()) >= 0
    assert float(d.diagonal().max()) <= 50 * torch.finfo(torch.float32).eps * float(x.square().sum(1).max())


def test_cosine_of_zero_embeddings_is_finite() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert Cosine().matrix(zero, one).tolist() == [[1.0]]
    assert Cosine().rowwise(zero, one).tolist() == [1.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_from_matrix_factors_matrices_of_any_rank_and_precision(rank: int, dtype: torch.dtype) -> None:
    for seed in range(10):
        m = psd(rank=rank, seed=seed, dtype=dtype)
        factor = Mahalanobis.from_matrix(m).factor
        assert factor.dtype == dtype
        tolerance = float(m.abs().max()) * 50 * torch.finfo(dtype).eps
        torch.testing.assert_close(factor.T @ factor, m, atol=tolerance, rtol=0)


def test_from_matrix_takes_the_zero_matrix() -> None:
    z = rand(2, 3)
    assert float(Mahalanobis.from_matrix(torch.zeros(3, 3)).matrix(z, z).abs().max()) == 0


BAD = {
    "a vector": (torch.ones(3), "a square matrix"),
    "not square": (torch.ones(2, 3), "a square matrix"),
    "NaN": (torch.tensor([[1.0, np.nan], [np.nan, 1.0]]), "finite numbers"),
    "infinite": (torch.tensor([[np.inf, 0.0], [0.0, 1.0]]), "finite numbers"),
    "not symmetric": (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), "a symmetric matrix"),
    "slightly not symmetric": (torch.tensor([[1.0, 0.5], [0.5001, 1.0]]), "a symmetric matrix"),
    "indefinite": (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "a positive semi-definite matrix"),
    "negative": (-torch.eye(2), "a positive semi-definite matrix"),
    "slightly indefinite": (torch.diag(torch.tensor([1.0, -1e-4])), "a positive semi-definite matrix"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", BAD)
def test_from_matrix_refuses(case: str, dtype: torch.dtype) -> None:
    m, required = BAD[case]
    with pytest.raises(InvalidArgument, match=f"m: need {required}"):
        Mahalanobis.from_matrix(m.to(dtype))


def test_double_precision_is_judged_more_strictly() -> None:
    with pytest.raises(InvalidArgument, match="semi-definite"):
        Mahalanobis.from_matrix(torch.diag(torch.tensor([1.0, -1e-7], dtype=torch.float64)))
    with pytest.raises(InvalidArgument, match="semi-definite"):
        Mahalanobis.from_matrix(torch.diag(torch.tensor([1.0, -1e-4], dtype=torch.float64)), tolerance=1e-5)
    Mahalanobis.from_matrix(torch.diag(torch.tensor([1.0, -1e-4], dtype=torch.float64)), tolerance=1e-3)


@pytest.mark.parametrize("factor", [torch.ones(3), torch.ones(1, 2, 3), torch.tensor([[np.nan, 1.0]])])
def test_a_bad_factor(factor: Tensor) -> None:
    with pytest.raises(InvalidArgument, match="factor"):
        Mahalanobis(factor)
