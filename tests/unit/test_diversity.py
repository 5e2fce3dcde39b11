"""Diversity of ensembles: hand numbers, finite differences, symmetries, one member, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.config import allow, from_plain, to_plain
from holdfast.defenses.ensemble.distilled import Distilled
from holdfast.defenses.ensemble.diversity import (
    GradientAlignment,
    GradientDiversity,
    LogDet,
    ResidualDiversity,
)
from holdfast.defenses.ensemble.diversity.gradients import input_gradients, single_losses
from holdfast.defenses.ensemble.view import Diversity, EnsembleView
from holdfast.encoders.ensemble import Ensemble, Heads
from holdfast.encoders.table import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine
from holdfast.losses import LearnedProxies, ProxyAnchor
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat

STEEP = GradientDiversity(
    smoothness=0.5, search=PGD(steps=2, alpha=0.02, random_start=True), threat=LinfThreat(eps=0.05)
)
AT_X = replace(STEEP, threat=LinfThreat(eps=0.0))
"""The steep point is the clean one: no search that a finite difference would have to follow."""
TERMS: dict[str, Diversity] = {
    "residual": ResidualDiversity(),
    "grad": AT_X,
    "grad without smoothness": GradientDiversity(smoothness=0.0),
    "gal": GradientAlignment(),
    "logdet": LogDet(),
}
each_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


class Toy(nn.Module):
    """An ensemble of given members."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def __len__(self) -> int:
        return len(self.members)

    def member(self, m: int) -> nn.Module:
        return self.members[m]


class Smooth(nn.Module):
    """A small smooth encoder with batch normalisation, for inputs (n, 2, 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.last(torch.tanh(self.norm(self.first(x.flatten(1))))), dim=1)


def embed(encoder: nn.Module, x: Tensor) -> Tensor:
    encoder.eval()
    z: Tensor = encoder(x)
    encoder.train()
    return z


def view_of(
    encoder: Toy, proxies: Sequence[LearnedProxies], x: Tensor, y: Tensor, attacked: Sequence[Tensor]
) -> EnsembleView:
    members = range(len(encoder))
    return EnsembleView(
        encoder=encoder,
        proxies=tuple(proxies),
        x=x,
        y=y,
        attacked=tuple(attacked),
        z=tuple(embed(encoder.member(m), x) for m in members),
        z_attacked=tuple(embed(encoder.member(m), attacked[m]) for m in members),
        generator=stream(0, "step"),
    )


def example(widths: Sequence[int] = (3, 4, 2), n: int = 5, classes: int = 4, seed: int = 0) -> EnsembleView:
    torch.manual_seed(seed)
    encoder = Toy(*(Smooth(width) for width in widths)).double()
    loss = ProxyAnchor(alpha=4.0)
    proxies = [loss.setup(width, classes).double() for width in widths]
    x = torch.rand(n, 2, 3, dtype=torch.float64)
    attacked = [(x + 0.1 * torch.randn_like(x)).clamp(0, 1) for _ in widths]
    return view_of(encoder, proxies, x, torch.arange(n) % classes, attacked)


def again(view: EnsembleView) -> EnsembleView:
    """The same view, its embeddings and random stream new."""
    assert isinstance(view.encoder, Toy)
    return view_of(view.encoder, view.proxies, view.x, view.y, view.attacked)


def flat(*z: list[list[float]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in z)


def by_hand(
    z: tuple[Tensor, ...], moved: tuple[Tensor, ...], proxies: Sequence[list[list[float]]], alpha: float = 2.0
) -> EnsembleView:
    """A view of given embeddings; labels are 0."""
    parts = []
    for rows in proxies:
        part = ProxyAnchor(alpha=alpha).setup(len(rows[0]), len(rows)).double()
        part.proxies.data = torch.tensor(rows, dtype=torch.float64)
        parts.append(part)
    x = torch.zeros(len(z[0]), 1, dtype=torch.float64)
    return EnsembleView(
        encoder=Toy(*(nn.Identity() for _ in z)),
        proxies=tuple(parts),
        x=x,
        y=torch.zeros(len(x), dtype=torch.long),
        attacked=(x,) * len(z),
        z=z,
        z_attacked=moved,
    )


# residual

TURN = [[1.0, 0.0], [0.0, 2.0]]
"""Proxies along the axes; lengths do not matter."""


def test_residual_by_hand() -> None:
    # Row 0: both members go from the first proxy to the second: profiles (-1, 1) alike, 1. Row 1: member 1
    # goes the other way, opposite profiles, 0. Row 2: (1, 0) -> (-1, 0) and (0, 1) -> (1, 0), that is
    # (-1, 0) and (1, -1) / sqrt 2, opposed, 0. Row 3: (1, 0) -> (-1, 0) and (0.6, 0.8) -> (-0.6, 0.8)
    # with a profile (-1, 0) again, 1. Row 4: (-1, 0) and (-1, 1) / sqrt 2, cosine 1 / sqrt 2, 1/2.
    z = flat(
        [[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]],
        [[1, 0], [0, 1], [0, 1], [0.6, 0.8], [1, 0]],
    )
    moved = flat(
        [[0, 1], [0, 1], [-1, 0], [-1, 0], [-1, 0]],
        [[0, 1], [1, 0], [1, 0], [-0.6, 0.8], [0, 1]],
    )
    value = ResidualDiversity()(by_hand(z, moved, [TURN, TURN]))
    assert float(value.detach()) == pytest.approx((1 + 0 + 0 + 1 + 0.5) / 5, abs=1e-12)


def test_residual_averages_pairs() -> None:
    z = flat(*[[[1, 0]]] * 3)
    moved = flat([[0, 1]], [[0, 1]], [[-1, 0]])  # pairs: 1, 1/2, 1/2
    value = ResidualDiversity()(by_hand(z, moved, [TURN] * 3))
    assert float(value.detach()) == pytest.approx(2 / 3, abs=1e-12)


def test_residual_at_zero_and_below_rounding() -> None:
    start = [[1.0, 0.0], [1.0, 0.0]]
    still = flat(start, [[1.0, 0.0], [1.0, 1e-9]])
    view = by_hand(flat(start, start), still, [TURN, TURN])
    value = ResidualDiversity()(view)
    assert float(value.detach()) == 0
    inputs = (*view.z, *view.z_attacked, *(p.proxies for p in view.proxies))
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(value, inputs))
    # Without a limit the change of 1e-9 counts as a direction.
    moved = flat(start, [[1.0, 0.0], [1.0, 1e-9]])
    loud = by_hand(flat(start, start), (flat([[0.0, 1.0]] * 2)[0], moved[1]), [TURN, TURN])
    assert float(ResidualDiversity(smallest=0.0)(loud).detach()) > 0.2
    assert float(ResidualDiversity()(loud).detach()) == 0


def test_not_a_number_is_not_hidden() -> None:
    z = flat([[1, 0]], [[1, 0]])
    view = by_hand(z, flat([[0, 1]], [[math.nan, 0]]), [TURN, TURN])
    assert math.isnan(float(ResidualDiversity()(view).detach()))


# gradients


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


def turned(angle: float) -> EnsembleView:
    """Two linear members in the plane, the second reading an input that is turned by an angle.

    At x = (1, 1) / sqrt 2 both embed x between their proxies of the axes, and move along the circle only.
    """
    c, s = math.cos(angle), math.sin(angle)
    x = torch.full((1, 2), math.sqrt(0.5), dtype=torch.float64)
    first, second = linear([[1, 0, 0], [0, 1, 0]]), linear([[1, 0, 0], [0, c, s]])
    x = torch.cat([x, torch.zeros(1, 1, dtype=torch.float64)], 1)
    x[:, 1:] = torch.tensor([[1.0, 0.0]]) * math.sqrt(0.5)
    proxies = [ProxyAnchor(alpha=2.0).setup(2, 2).double() for _ in range(2)]
    for part in proxies:
        part.proxies.data = torch.eye(2, dtype=torch.float64)
    return view_of(Toy(first, second), proxies, x, torch.zeros(1, dtype=torch.long), [x, x])


def gradient_by_hand(w: list[list[float]], x: list[float]) -> list[float]:
    """Gradient of softplus(a (m - u_0)) + softplus(a (u_1 + m)) / 2 with u = Wx / |Wx|, label 0 of two."""
    alpha, margin = 2.0, 0.1
    v = [sum(p * q for p, q in zip(row, x, strict=True)) for row in w]
    length = math.hypot(*v)
    u = [p / length for p in v]
    sigma = [1 / (1 + math.exp(-alpha * (margin - u[0]))), 1 / (1 + math.exp(-alpha * (margin + u[1])))]
    by_u = [-alpha * sigma[0], alpha * sigma[1] / 2]
    along = by_u[0] * u[0] + by_u[1] * u[1]
    by_v = [(by_u[k] - along * u[k]) / length for k in range(2)]
    return [sum(by_v[k] * w[k][j] for k in range(2)) for j in range(len(x))]


@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2])
def test_gradient_terms_by_hand(angle: float) -> None:
    view = turned(angle)
    x = view.x[0].tolist()
    weights = [view.member(m).weight.tolist() for m in range(2)]  # type: ignore[union-attr]
    g = [gradient_by_hand(w, x) for w in weights]
    lengths = [math.hypot(*part) for part in g]
    cosine = sum(p * q for p, q in zip(*g, strict=True)) / math.prod(lengths)
    assert torch.cat(input_gradients(view, view.x)).tolist() == [pytest.approx(part) for part in g]
    value = float(GradientDiversity(smoothness=0.0)(view).detach())
    assert value == pytest.approx(abs(cosine), abs=1e-9)
    assert float(GradientAlignment()(view).detach()) == pytest.approx(cosine, abs=1e-9)
    steep = float(AT_X(view).detach())
    assert steep == pytest.approx(abs(cosine) + 0.5 * sum(lengths) / 2, abs=1e-9)


def test_alignment_of_three_by_hand() -> None:
    view = turned(0.0)
    encoder = Toy(view.member(0), view.member(0), view.member(0))
    three = view_of(encoder, [view.proxies[0]] * 3, view.x, view.y, [view.x] * 3)
    assert float(GradientAlignment()(three).detach()) == pytest.approx(math.log(3) + 1, abs=1e-9)
    # One with proxies that say the opposite: cosines 1, -1, -1.
    other = ProxyAnchor(alpha=2.0).setup(2, 2).double()
    other.proxies.data = -torch.eye(2, dtype=torch.float64)
    mixed = replace(three, proxies=(view.proxies[0], view.proxies[0], other))
    g = torch.cat([F.normalize(part) for part in input_gradients(mixed, mixed.x)]).detach()
    cosines = [float(g[0] @ g[1]), float(g[0] @ g[2]), float(g[1] @ g[2])]
    assert cosines == pytest.approx([1, -1, -1])
    hand = math.log(math.e + 2 / math.e)
    assert float(GradientAlignment()(mixed).detach()) == pytest.approx(hand, abs=1e-9)
    assert float(GradientDiversity(smoothness=0.0)(mixed).detach()) == pytest.approx(1.0)


def test_single_losses_are_the_loss_of_batches_of_one() -> None:
    view = example()
    for z, part in zip(view.z, view.proxies, strict=True):
        alone = [part(z[i : i + 1], view.y[i : i + 1], Cosine()) for i in range(len(z))]
        torch.testing.assert_close(single_losses(z, view.y, part), torch.cat(alone))


def test_the_search_finds_steeper_points() -> None:
    view = example(n=8)
    norm = [
        float(GradientDiversity(smoothness=1.0, search=search, threat=LinfThreat(eps=0.2))(view).detach())
        for search in (
            PGD(steps=0),
            PGD(steps=3, alpha=0.05, keep="best"),
            PGD(steps=12, alpha=0.05, keep="best"),
        )
    ]
    assert all(a < b for a, b in pairwise(norm))


def test_a_member_without_gradient_is_nobodys_likeness() -> None:
    view = example(widths=(3, 3))
    dead = view.member(1)
    with torch.no_grad():
        dead.first.weight.zero_()  # type: ignore[union-attr]
    view = again(view)
    for term in (
        GradientAlignment(),
        GradientDiversity(smoothness=0.5, search=PGD(steps=2), threat=LinfThreat(eps=0.1)),
    ):
        value = term(view)
        parameters = list(view.encoder.parameters())
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)
    assert float(GradientAlignment()(view).detach()) == 0


# log-determinant


def test_log_det_by_hand() -> None:
    # K = 3, label 0, proxies along the axes. Odds of the wrong classes 3 : 1 and 1 : 3, that is profiles
    # (3, 1) and (1, 3) over sqrt 10 with cosine 0.6: det = (1 + eta)^2 - 0.36.
    b = math.log(3) / 2
    a = math.sqrt(1 - b * b)
    z = flat([[a, b, 0]], [[a, 0, b]])
    axes = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    view = by_hand(flat([[0, 1, 0]], [[1, 0, 0]]), z, [axes, axes])  # what is clean is not looked at
    eta = 0.01
    volume = -math.log(1.01**2 - 0.36)
    assert float(LogDet(eta=eta, entropy=0.0)(view).detach()) == pytest.approx(volume, abs=1e-12)
    odds = [math.exp(2 * a), 3.0, 1.0]
    mean = [odds[0] / sum(odds), 2 / sum(odds), 2 / sum(odds)]
    entropy = -sum(p * math.log(p) for p in mean)
    both = float(LogDet(eta=eta, entropy=4.0)(view).detach())
    assert both == pytest.approx(volume - 4 * entropy, abs=1e-12)


def test_log_det_bounds() -> None:
    axes = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    same = flat([[0.8, 0.6, 0]], [[0.8, 0.6, 0]], [[0.8, 0.6, 0]])
    term = LogDet(eta=1e-6, entropy=0.0)
    value = term(by_hand(same, same, [axes] * 3))
    assert float(value.detach()) == pytest.approx(-math.log(3 + 1e-6) - 2 * math.log(1e-6), rel=1e-6)
    apart = flat([[0, 1.0, 0]], [[0, 0, 1.0]])  # alpha 100: all on one wrong class each
    value = term(by_hand(apart, apart, [axes] * 2, alpha=100.0))
    assert float(value.detach()) == pytest.approx(-2 * math.log(1 + 1e-6), abs=1e-9)


def test_log_det_in_float32_with_members_that_agree() -> None:
    z = tuple(torch.tensor([[0.8, 0.6, 0.0]]).requires_grad_() for _ in range(5))
    parts = [ProxyAnchor().setup(3, 3) for _ in range(5)]
    for part in parts:
        part.proxies.data = torch.eye(3)
    x = torch.zeros(1, 1)
    view = EnsembleView(
        encoder=Toy(*(nn.Identity() for _ in z)), proxies=tuple(parts),
        x=x, y=torch.zeros(1, dtype=torch.long), attacked=(x,) * 5, z=z, z_attacked=z,
    )  # fmt: skip
    value = LogDet(eta=1e-6, entropy=0.0)(view)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(-math.log(5 + 1e-6) - 4 * math.log(1e-6), rel=1e-5)
    grads = torch.autograd.grad(LogDet(eta=1e-6)(view), z)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


# every term


@each_term
def test_finite_differences(term: Diversity) -> None:
    view = example()
    parameters = [*view.encoder.parameters(), *(p.proxies for p in view.proxies)]
    value = term(again(view))
    assert value.ndim == 0
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    torch.manual_seed(1)
    step = 1e-5
    for p, g in zip(parameters, grads, strict=True):
        way = torch.randn_like(p)
        with torch.no_grad():
            p += step * way
            up = float(term(again(view)).detach())
            p -= 2 * step * way
            down = float(term(again(view)).detach())
            p += step * way
        slope = 0.0 if g is None else float((g * way).sum())
        assert slope == pytest.approx((up - down) / (2 * step), abs=2e-6, rel=1e-5)
    assert sum(g is not None and bool((g != 0).any()) for g in grads) > 9  # all members, all proxies


@each_term
def test_order_of_members_and_of_rows_does_not_matter(term: Diversity) -> None:
    view = example()
    expected = float(term(view).detach())
    for order in permutations(range(3)):
        encoder = Toy(*(view.member(m) for m in order))
        proxies, attacked = [view.proxies[m] for m in order], [view.attacked[m] for m in order]
        changed = view_of(encoder, proxies, view.x, view.y, attacked)
        assert float(term(changed).detach()) == pytest.approx(expected, abs=1e-10)
    rows = torch.tensor([3, 0, 4, 2, 1])
    assert isinstance(view.encoder, Toy)
    changed = view_of(
        view.encoder, view.proxies, view.x[rows], view.y[rows], [a[rows] for a in view.attacked]
    )
    assert float(term(changed).detach()) == pytest.approx(expected, abs=1e-10)


@each_term
def test_a_batch_is_the_mean_of_its_rows(term: Diversity) -> None:
    view = example()
    assert isinstance(view.encoder, Toy)
    rows = [
        view_of(
            view.encoder,
            view.proxies,
            view.x[i : i + 1],
            view.y[i : i + 1],
            [a[i : i + 1] for a in view.attacked],
        )
        for i in range(5)
    ]
    alone = [float(term(row).detach()) for row in rows]
    assert float(term(view).detach()) == pytest.approx(sum(alone) / 5, abs=1e-10)


@each_term
def test_rotating_a_member_with_its_proxies_changes_nothing(term: Diversity) -> None:
    view = example()
    before = float(term(view).detach())
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    with torch.no_grad():
        view.member(1).last.weight.copy_(rotation @ view.member(1).last.weight)  # type: ignore[union-attr]
        view.proxies[1].proxies.copy_(view.proxies[1].proxies @ rotation.T)
    assert float(term(again(view)).detach()) == pytest.approx(before, abs=1e-10)
    with torch.no_grad():  # but turned without its proxies, a member is another one
        view.proxies[1].proxies.copy_(view.proxies[1].proxies @ rotation)
    assert abs(float(term(again(view)).detach()) - before) > 1e-4


def test_raw_coordinates_would_depend_on_the_rotation() -> None:
    def raw(view: EnsembleView) -> float:
        a, b = (F.normalize(moved - z) for moved, z in zip(view.z_attacked, view.z, strict=True))
        return float((a * b).sum(1).relu().square().mean().detach())

    view = example(widths=(4, 4))
    before = raw(view), float(ResidualDiversity()(view).detach())
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    with torch.no_grad():
        view.member(1).last.weight.copy_(rotation @ view.member(1).last.weight)  # type: ignore[union-attr]
        view.proxies[1].proxies.copy_(view.proxies[1].proxies @ rotation.T)
    after = raw(again(view)), float(ResidualDiversity()(again(view)).detach())
    assert after[1] == pytest.approx(before[1], abs=1e-10)
    assert abs(after[0] - before[0]) > 0.01


@each_term
@pytest.mark.parametrize("seed", range(5))
def test_bounds(term: Diversity, seed: int) -> None:
    value = float(term(example(n=6, seed=seed)).detach())
    low, high = {
        ResidualDiversity: (0.0, 1.0),
        GradientAlignment: (math.log(3) - 1, math.log(3) + 1),
        GradientDiversity: (0.0, math.inf if getattr(term, "smoothness", 0) else 1.0),
        LogDet: (-3 * math.log(1.001) - 4 * math.log(4), -math.log(3.001) - 2 * math.log(1e-3)),
    }[type(term)]  # type: ignore[index]
    assert low <= value <= high


@each_term
def test_one_member_has_no_diversity(term: Diversity) -> None:
    view = example(widths=(3,))
    value = term(view)
    assert float(value.detach()) == 0
    inputs = (*view.z, *view.z_attacked, view.proxies[0].proxies)
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("term", [*TERMS.values(), STEEP], ids=[*TERMS, "grad with search"])
def test_no_trace_is_left(term: Diversity) -> None:
    view = example()
    encoder = view.encoder
    encoder.members[0].norm.eval()  # type: ignore[index]
    modes = [module.training for module in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    term(view)
    assert torch.initial_seed() == 5
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None for p in (*encoder.parameters(), *(p.proxies for p in view.proxies)))
    assert view.x.grad is None
    assert not view.x.requires_grad


@each_term
def test_minimising_a_term_lowers_it(term: Diversity) -> None:
    view = example()
    parameters = [*view.encoder.parameters(), *(p.proxies for p in view.proxies)]
    optimiser = torch.optim.SGD(parameters, lr=1e-5)
    values = []
    for _ in range(4):
        optimiser.zero_grad()
        value = term(again(view))
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert all(a > b for a, b in pairwise(values))


@pytest.mark.parametrize(
    "spec",
    [
        Ensemble(members=(SmallCNN(embedding_dim=8), SmallCNN(embedding_dim=12))),
        Heads(part=SmallCNN(embedding_dim=8), count=2),
    ],
    ids=["ensemble", "heads"],
)
def test_real_ensembles(spec: Ensemble | Heads) -> None:
    encoder = spec.build((1, 28, 28), seed=0)
    torch.manual_seed(0)
    proxies = tuple(ProxyAnchor().setup(width, 3) for width in encoder.widths)
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 2])
    attacked = tuple((x + 0.1 * torch.randn_like(x)).clamp(0, 1) for _ in range(2))
    view = EnsembleView(
        encoder=encoder,
        proxies=proxies,
        x=x,
        y=y,
        attacked=attacked,
        z=encoder.split(encoder(x)),
        z_attacked=tuple(encoder.split(encoder(part))[m] for m, part in enumerate(attacked)),
        generator=stream(0),
    )
    weights = [*encoder.parameters(), *(p.proxies for p in proxies)]
    for term in (*TERMS.values(), STEEP):
        grads = torch.autograd.grad(term(view), weights, allow_unused=True, retain_graph=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)
        assert any(g is not None and bool((g != 0).any()) for g in grads)


# examples that carry others' features


def test_distilled_on_the_identity_by_hand() -> None:
    x = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.5]], dtype=torch.float64)
    search = PGD(steps=40, alpha=0.01)
    moved = Distilled(search=search, threat=LinfThreat(eps=0.25))(nn.Identity(), x, stream(0))
    expected = torch.tensor([[0.3, 0.65, 0.5], [0.1, 0.45, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(moved, expected, atol=0.0101, rtol=0)
    moved = Distilled(search=search, threat=L2Threat(eps=0.2))(nn.Identity(), x, stream(0))
    way = (x[1] - x[0]) / torch.linalg.vector_norm(x[1] - x[0])
    torch.testing.assert_close(moved[0], x[0] + 0.2 * way, atol=1e-6, rtol=0)


def test_distilled_comes_nearer_and_stays_inside() -> None:
    view = example(n=8)
    member, distilled = (
        view.member(0),
        Distilled(threat=LinfThreat(eps=0.2), search=PGD(steps=20, alpha=0.02)),
    )
    modes = [module.training for module in member.modules()]
    rows = distilled.sources(view.x, stream(3))
    moved = distilled(member, view.x, stream(3))
    assert [module.training for module in member.modules()] == modes
    assert all(p.grad is None for p in member.parameters())
    assert float((moved - view.x).abs().max()) <= 0.2 + 1e-12
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    aim, was, now = embed(member, view.x)[rows], embed(member, view.x), embed(member, moved)
    before, after = ((z - aim).square().sum(1) for z in (was, now))
    assert bool((after < before).all())
    assert float((after / before).mean().detach()) < 0.5
    torch.testing.assert_close(distilled(member, view.x, sources=rows), moved)


def test_sources_are_others_each_once() -> None:
    draw = Distilled().sources
    x = torch.rand(7, 1)
    seen = set()
    for seed in range(20):
        rows = draw(x, stream(seed))
        assert sorted(rows.tolist()) == list(range(7))
        assert bool((rows != torch.arange(7)).all())
        seen.add(tuple(rows.tolist()))
    assert len(seen) > 15
    assert torch.equal(draw(x, stream(1)), draw(x, stream(1)))
    assert draw(x[:2]).tolist() == [1, 0]
    # With a stream for each sample, the pairing follows the samples.
    index, order = torch.tensor([4, 9, 2, 7, 5, 11, 3]), torch.tensor([6, 2, 0, 5, 1, 4, 3])
    one = draw(x, RowStreams(0, "pair", index=index))
    two = draw(x[order], RowStreams(0, "pair", index=index[order]))
    assert torch.equal(index[order][two], index[one[order]])


def test_pairs_of_all_members_can_be_shared() -> None:
    view = example(n=6)
    distilled = Distilled()
    rows = distilled.sources(view.x, stream(0))
    moved = [distilled(view.member(m), view.x, sources=rows) for m in range(3)]
    assert not torch.equal(moved[0], moved[1])
    assert torch.equal(moved[0], distilled(view.member(0), view.x, sources=rows))


# settings and bad input


@pytest.mark.parametrize(
    "value", [ResidualDiversity(), GradientDiversity(), GradientAlignment(), LogDet(), Distilled()]
)
def test_settings_are_plain_data(value: object) -> None:
    allowed = allow(
        ResidualDiversity, GradientDiversity, GradientAlignment, LogDet, Distilled, PGD, LinfThreat,
        type(PGD().gradient),
    )  # fmt: skip
    assert from_plain(to_plain(value), allowed) == value


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ResidualDiversity(smallest=-1.0), "smallest"),
        (lambda: ResidualDiversity(smallest=math.nan), "smallest"),
        (lambda: GradientDiversity(smoothness=-0.1), "smoothness"),
        (lambda: GradientDiversity(smoothness=math.inf), "smoothness"),
        (lambda: GradientDiversity(search=None), "search"),  # type: ignore[arg-type]
        (lambda: GradientDiversity(threat=None), "threat"),  # type: ignore[arg-type]
        (lambda: LogDet(eta=0.0), "eta"),
        (lambda: LogDet(eta=-1.0), "eta"),
        (lambda: LogDet(eta=math.nan), "eta"),
        (lambda: LogDet(entropy=-1.0), "entropy"),
        (lambda: Distilled(search=3), "search"),  # type: ignore[arg-type]
        (lambda: Distilled(threat=0.1), "threat"),  # type: ignore[arg-type]
        (lambda: Distilled()(nn.Identity(), torch.rand(1, 2)), "x"),
        (lambda: Distilled()(nn.Identity(), torch.rand(2, 2), sources=torch.tensor([1, 2])), "sources"),
        (lambda: Distilled()(nn.Identity(), torch.rand(3, 2), sources=torch.tensor([1, 0])), "sources"),
        (lambda: LogDet()(example(classes=1)), "proxies"),
    ],
)
def test_bad_settings(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (lambda v: {"y": v.y + 1}, "y"),
        (lambda v: {"y": v.y - 1}, "y"),
        (lambda v: {"y": v.y[:4]}, "x, y"),
        (lambda v: {"x": v.x[:0], "y": v.y[:0]}, "x, y"),
        (lambda v: {"z": v.z[:2]}, "proxies, attacked, z, z_attacked"),
        (
            lambda v: {"z": (), "z_attacked": (), "attacked": (), "proxies": ()},
            "proxies, attacked, z, z_attacked",
        ),
        (lambda v: {"z": v.z[::-1]}, "z[0]"),
        (lambda v: {"z_attacked": (v.z[0], v.z[1][:3], v.z[2])}, "z_attacked[1]"),
        (lambda v: {"proxies": (v.proxies[0],) * 3}, "z[1]"),  # shared proxies, different widths
        (lambda v: {"proxies": (*v.proxies[:2], ProxyAnchor().setup(2, 5))}, "proxies"),
        (lambda v: {"attacked": (v.x, v.x[:, :1], v.x)}, "attacked[1]"),
    ],
)
def test_bad_views(change: Callable[[EnsembleView], dict[str, object]], argument: str) -> None:
    view = example()
    with pytest.raises(InvalidArgument) as caught:
        replace(view, **change(view))  # type: ignore[arg-type]
    assert caught.value.argument == argument
