"""Projections: by hand, nearest, idempotent, and safe at the ends of the number range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from holdfast.functional.projection import box, l2_ball, linf_ball, psd_cone, unit
from holdfast.rng import stream

DTYPES = [torch.float32, torch.float64]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "projection"), dtype=dtype)


def test_linf_ball_by_hand() -> None:
    x, c = torch.tensor([[0.5, -1.0, 0.24]]), torch.tensor([[0.2, 0.0, 0.25]])
    torch.testing.assert_close(linf_ball(x, c, 0.1), torch.tensor([[0.3, -0.1, 0.24]]))


def test_l2_ball_by_hand_and_row_by_row() -> None:
    c = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]])
    x = c + torch.tensor([[[3.0], [4.0]], [[0.3], [-0.4]]])
    got = l2_ball(x, c, 2.0)
    torch.testing.assert_close(got[0], torch.tensor([[2.2], [2.6]]))
    assert torch.equal(got[1], x[1])  # inside: not touched, not even in the last bit


def test_radius_zero_is_the_centre() -> None:
    x, c = rand(5, 3), rand(5, 3, seed=1)
    for ball in (linf_ball, l2_ball):
        assert torch.equal(ball(x, c, 0.0), c)
        assert torch.equal(ball(c, c, 0.0), c)
        assert torch.equal(ball(c, c, 0.3), c)


@pytest.mark.parametrize("ball", [linf_ball, l2_ball])
def test_the_projection_is_the_nearest_point(ball: object) -> None:
    x, c = rand(4, 3, 2), rand(4, 3, 2, seed=1)
    nearest = ball(x, c, 0.7)  # type: ignore[operator]
    assert torch.equal(ball(nearest, c, 0.7 + 1e-12), nearest)  # type: ignore[operator]
    for seed in range(200):  # the projection of anything else is a point of the ball
        other = ball(c + rand(4, 3, 2, seed=seed + 2), c, 0.7)  # type: ignore[operator]
        d_nearest, d_other = ((v - x).flatten(1).norm(dim=1) for v in (nearest, other))
        assert bool((d_nearest <= d_other + 1e-12).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-22, 1.0, 1e20, 1e37])
def test_l2_holds_at_the_ends_of_the_number_range(scale: float, dtype: torch.dtype) -> None:
    """Squares of such numbers are 0 or infinite in float32: steps would be far too long, or none."""
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=dtype) * scale
    direction = torch.tensor([[0.6, -0.8], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(unit(x), direction, atol=1e-3 if scale < 1e-38 else 1e-6, rtol=0)
    projected = l2_ball(x, torch.zeros_like(x), 0.5)
    expected = x if scale < 1e-3 else direction * 0.5
    torch.testing.assert_close(projected, expected)


def test_unit_leaves_zero_rows_and_scales_whole_images() -> None:
    x = rand(3, 2, 4, 4)
    x[1] = 0
    norms = unit(x).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([1, 0, 1])
    torch.testing.assert_close(unit(x)[0], x[0] / x[0].norm())


def test_box() -> None:
    x = torch.tensor([-1.0, 0.25, 3.0])
    assert box(x, (0.0, 0.5)).tolist() == [0.0, 0.25, 0.5]
    assert box(x, None) is x


def test_psd_cone_by_hand() -> None:
    m = torch.tensor([[1.0, 3.0], [1.0, 1.0]], dtype=torch.float64)  # symmetric part: eigenvalues 3 and -1
    torch.testing.assert_close(psd_cone(m), torch.full((2, 2), 1.5, dtype=torch.float64))


def test_psd_cone_is_nearest_and_idempotent() -> None:
    m = rand(5, 5)
    m = m + m.T
    p = psd_cone(m)
    assert float(torch.linalg.eigvalsh(p).min()) >= -1e-12
    torch.testing.assert_close(psd_cone(p), p)
    # Moreau: p - m is positive semi-definite too, and orthogonal to p; both together say "nearest"
    assert float(torch.linalg.eigvalsh(p - m).min()) >= -1e-12
    assert float((p * (p - m)).sum()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("ball", [linf_ball, l2_ball])
def test_a_radius_for_every_row(ball: object) -> None:
    x, c = rand(3, 2, 2), rand(3, 2, 2, seed=1)
    radii = [0.0, 0.3, 50.0]
    got = ball(x, c, torch.tensor(radii, dtype=x.dtype).reshape(3, 1, 1))  # type: ignore[operator]
    for i, radius in enumerate(radii):
        assert torch.equal(got[i : i + 1], ball(x[i : i + 1], c[i : i + 1], radius))  # type: ignore[operator]
