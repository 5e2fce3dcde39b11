"""1-Lipschitz layers: exact operator norms of unrolled layers, storage, modes, and the loss of the recipe."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.config import allow, from_plain, to_plain
from holdfast.encoders import (
    ENCODERS,
    GroupSort,
    LipschitzEncoder,
    OrthogonalConv2d,
    OrthogonalLinear,
    load,
    save,
)
from holdfast.encoders.orthogonal import gram_bound, orthogonalise, spectral_bound
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.losses import BisectorMargin
from holdfast.rng import seeded, stream

SMALL = LipschitzEncoder(width=4, depth=1, units=8, hidden=1, embedding_dim=6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "numbers"), dtype=torch.float64)


def unrolled(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine layer, column by column."""
    size = math.prod(shape)
    with torch.no_grad():
        at_zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)) - at_zero
    return columns.flatten(1).T


# orthogonalisation


def test_one_step_by_hand() -> None:
    """A 1x1 matrix is divided by its bound, which is its own size, and stays at 1; signs are kept."""
    assert float(gram_bound(torch.tensor([[-3.0]]))) == pytest.approx(3.0)
    assert float(orthogonalise(torch.tensor([[-3.0]]), 1)) == pytest.approx(-1.0)
    w = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    b = (2**16 + 1) ** (1 / 16)
    assert float(gram_bound(w)) == pytest.approx(b, rel=1e-12)
    expected = [1.5 * s - 0.5 * s**3 for s in (2 / b, 1 / b)]
    assert torch.allclose(orthogonalise(w, 1).diagonal(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1)])
def test_the_iteration_is_that_of_bjorck_and_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    w = random(*shape)
    step = w / gram_bound(w)
    for _ in range(4):
        step = 1.5 * step - 0.5 * step @ step.T @ step
    assert torch.allclose(orthogonalise(w, 4), step, atol=1e-12)
    u, _, v = torch.linalg.svd(w, full_matrices=False)
    assert torch.allclose(orthogonalise(w, 60), u @ v, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_bounds_are_above_the_norm_and_tight(scale: float) -> None:
    for seed in range(20):
        w = random(1 + seed % 6, 1 + seed % 4, seed=seed) * scale
        norm = float(torch.linalg.matrix_norm(w, 2))
        assert norm <= float(gram_bound(w)) * (1 + 1e-12) <= norm * min(w.shape) ** (1 / 16) * (1 + 1e-11)
        assert norm < spectral_bound(w) <= norm * (1 + 1e-12)
    assert spectral_bound(torch.zeros(2, 3)) == 0


# layers


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
with seeded(0, "layers"):
    for i, o in ((6, 6), (4, 9), (9, 4), (1, 3)):
        LAYERS[f"linear {i}-{o}"] = (OrthogonalLinear(i, o), (i,))
        LAYERS[f"conv {i}-{o}"] = (OrthogonalConv2d(i, o, shift=False), (i, 3, 4))
        LAYERS[f"shift {i}-{o}"] = (OrthogonalConv2d(i, o), (i, 3, 4))


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("kind", ["orthogonal", "random", "one large", "not converged", "zero"])
def test_the_unrolled_layer_has_an_operator_norm_of_at_most_one(name: str, kind: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[name])
    layer = layer.double().eval()
    with torch.no_grad():
        w: Any = layer.weight
        if kind != "orthogonal":
            w.copy_(random(*w.shape, seed=3))
        if kind == "one large":
            w[0] *= 1e6
        if kind == "not converged":
            layer.iterations = 1  # type: ignore[assignment]
        if kind == "zero":
            w.zero_()
        layer.bias.copy_(random(*layer.bias.shape))  # type: ignore[operator, union-attr]
    norm = float(torch.linalg.matrix_norm(unrolled(layer, shape), 2))
    assert norm <= 1 + 1e-14  # of the unrolled matrix; SVD itself rounds
    assert norm <= layer.lipschitz_constant() + 1e-14 <= 1 + 1e-14  # type: ignore[operator]
    assert layer.lipschitz_constant() <= 1.0  # type: ignore[operator]
    if kind == "zero":
        assert norm == 0
    else:
        assert norm == pytest.approx(1, abs=1e-10)
    if kind == "orthogonal":  # and no length is lost: all singular values are 1
        values = torch.linalg.svdvals(unrolled(layer, shape))
        assert torch.allclose(values, torch.ones_like(values), atol=1e-6)


def test_a_shifted_convolution_reads_a_cross_of_five_pixels() -> None:
    layer = OrthogonalConv2d(5, 5).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(5))
    x = torch.zeros(1, 5, 4, 4)
    x[0, :, 0, 1] = 1.0
    out = layer(x)[0]
    places = [tuple(torch.nonzero(channel)[0].tolist()) for channel in out]
    assert places == [(0, 1), (1, 1), (3, 1), (0, 2), (0, 0)]  # around the upper edge
    assert torch.allclose(out.flatten(1).sum(1), torch.ones(5))


def test_group_sort_by_hand() -> None:
    x = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert GroupSort()(x).tolist() == [[4.0, 1.0, 3.0, 2.0]]
    assert GroupSort(4)(x).tolist() == [[4.0, 3.0, 2.0, 1.0]]
    assert GroupSort(4)(x[:, :, None, None]).shape == (1, 4, 1, 1)
    for size in (2, 3, 6):
        a, b = random(200, 6, 2), random(200, 6, 2, seed=1)
        moved = (GroupSort(size)(a) - GroupSort(size)(b)).flatten(1).norm(dim=1)
        assert bool((moved <= (a - b).flatten(1).norm(dim=1) + 1e-12).all())
        assert torch.equal(GroupSort(size)(a).flatten(1).sort(1).values, a.flatten(1).sort(1).values)
    with pytest.raises(InvalidArgument, match="channels divisible by 2, got 3"):
        GroupSort()(torch.zeros(1, 3))


def test_training_and_evaluation_agree_and_gradients_are_right() -> None:
    with seeded(0, "layer"):
        layer = OrthogonalLinear(4, 3, iterations=5).double()
    with torch.no_grad():
        layer.weight.add_(0.1 * random(3, 4))
    x = random(2, 4)
    trained = layer.train()(x)
    evaluated = layer.eval()(x)
    assert torch.allclose(trained, evaluated, atol=1e-3)
    # The bound that scales is held constant, and the iteration is nearly blind to scale once converged.
    layer.iterations = 40
    w = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: orthogonalise(v, 40), (w,), atol=1e-6)


def test_evaluation_follows_the_weights() -> None:
    """The kept matrix is left as soon as a weight changes, by whatever road."""
    layer = OrthogonalLinear(3, 3).eval()
    x = torch.eye(3)
    first = layer(x).detach()
    assert torch.equal(layer(x), first)
    layer.weight.data.copy_(torch.eye(3).flip(0))
    assert torch.allclose(layer(x), torch.eye(3).flip(0), atol=1e-6)
    layer.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    assert torch.allclose(layer(x), torch.eye(3), atol=1e-6)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.matrix().requires_grad is False


def test_weights_that_are_not_finite_show_in_the_embedding() -> None:
    """The trainer looks for them there; the singular values must not raise before."""
    layer = OrthogonalLinear(3, 3).eval()
    layer.weight.data[0, 0] = torch.nan
    assert bool(layer(torch.ones(1, 3)).isnan().any())
    assert layer.lipschitz_constant() == math.inf


# encoder


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 12), (1, 1, 5), (2, 4, 4), (1, 64, 33)])
@pytest.mark.parametrize("depth", [0, 1])
def test_encoders_of_every_size_have_gain_one(shape: tuple[int, int, int], depth: int) -> None:
    spec = LipschitzEncoder(width=4, depth=depth, units=8, hidden=depth, embedding_dim=6)
    encoder = spec.build(shape, seed=1).eval()
    assert 1 - 1e-9 < encoder.lipschitz_constant() <= 1
    x = torch.rand(4, *shape, generator=stream(0))
    z = encoder(x)
    assert z.shape == (4, 6)
    assert encoder.normalize is False
    assert encoder.spec == spec
    assert bool((torch.cdist(z, z) <= torch.cdist(x.flatten(1), x.flatten(1)) + 1e-5).all())


def test_the_jacobian_of_an_encoder_has_norm_at_most_one() -> None:
    encoder = SMALL.build((1, 5, 5), seed=2).double().eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(random(*p.shape, seed=len(p)))
    for seed in range(5):
        x = torch.rand(1, 1, 5, 5, generator=stream(seed), dtype=torch.float64)
        jacobian: Any = torch.autograd.functional.jacobian(encoder, x)
        norm = float(torch.linalg.matrix_norm(jacobian.reshape(6, 25), 2))
        assert 0.1 < norm <= 1 + 1e-12


def test_rounding_error_bounds_what_float32_does() -> None:
    encoder = SMALL.build((1, 8, 8), seed=0).eval()
    double = copy.deepcopy(encoder).double()
    x = torch.rand(64, 1, 8, 8, generator=stream(0))
    moved = float((encoder(x).double() - double(x.double())).norm(dim=1).max().detach())
    assert 0 < moved < encoder.rounding_error(torch.float32) < 1e-3
    assert encoder.rounding_error() < 1e-11
    with pytest.raises(InvalidArgument, match="dtype"):
        encoder.rounding_error(torch.bfloat16)


def test_storage_and_plain_data(tmp_path: Path) -> None:
    assert ENCODERS["lipschitz"] is LipschitzEncoder
    plain = json.loads(json.dumps(to_plain(SMALL)))
    assert from_plain(plain, allow(*ENCODERS.values())) == SMALL
    encoder = SMALL.build((1, 8, 8), seed=3).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=stream(0)))
    save(encoder, tmp_path / "e.safetensors")
    again: Any = load(tmp_path / "e.safetensors").eval()
    x = torch.rand(3, 1, 8, 8, generator=stream(1))
    assert torch.equal(again(x), encoder(x))
    assert again.spec == SMALL
    assert again.lipschitz_constant() == encoder.lipschitz_constant()


def test_the_seed_alone_decides_the_weights() -> None:
    a, b, c = (SMALL.build((1, 8, 8), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 3}, "width: need an even number"),
        ({"units": 0}, "units"),
        ({"depth": -1}, "depth"),
        ({"hidden": 1.0}, "hidden"),
        ({"iterations": 0}, "iterations"),
        ({"embedding_dim": True}, "embedding_dim"),
    ],
)
def test_bad_fields_are_told(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        LipschitzEncoder(**fields)


# loss


def test_bisector_margin_by_hand_and_by_brute_force() -> None:
    z, y = random(12, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])
    expected = []
    for a in range(12):
        heights = [
            min(
                float((z[a] - (z[p] + z[q]) / 2) @ (z[p] - z[q]) / (z[p] - z[q]).norm())
                for q in range(12)
                if y[q] != y[a]
            )
            for p in range(12)
            if p != a and y[p] == y[a]
        ]
        expected.append(max(0.0, 1.5 - max(heights)) if heights else 0.0)
    values = BisectorMargin(margin=1.5)(z, y, Euclidean())
    assert values.tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[-1] == 0  # alone in its class


def test_bisector_margin_has_a_finite_gradient_at_duplicates() -> None:
    z = torch.zeros(4, 2, requires_grad=True)
    loss = BisectorMargin()(z, torch.tensor([0, 0, 1, 1]), Euclidean())
    assert loss.tolist() == [1.0] * 4
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert bool(grad.isfinite().all())
    assert BisectorMargin()(torch.ones(3, 2), torch.zeros(3), Euclidean()).tolist() == [0.0] * 3
    with pytest.raises(InvalidArgument, match="margin"):
        BisectorMargin(margin=-1.0)
    with pytest.raises(InvalidArgument, match="z, y"):
        BisectorMargin()(z, torch.zeros(3), Euclidean())
