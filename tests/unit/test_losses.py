"""Losses on hand-computed numbers, and against their formulas written out term by term."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine, Euclidean, SquaredEuclidean
from holdfast.losses import (
    Contrastive,
    IntraClassStructure,
    LearnedMargin,
    LearnedProxies,
    Margin,
    MultiSimilarity,
    ProxyAnchor,
    Triplet,
)
from holdfast.losses.reduce import log_one_plus_sum_exp, over_violators
from holdfast.rng import seeded, stream
from holdfast.types import Roles, TripletView

SQUARED = SquaredEuclidean()


def line(*values: tuple[float, float, float]) -> Roles:
    """Triplets of points on a line, one tuple (a, p, n) for each."""
    columns = torch.tensor(values, dtype=torch.float64).T
    return Roles(*(column[:, None] for column in columns))


def sphere(n: int, e: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, e, generator=stream(seed), dtype=torch.float64), dim=1)


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype))


def test_triplet_by_hand() -> None:
    z = line((0, 1, 2), (0, 2, 1), (0, 1, 1))  # squared gaps: -3, 3, 0
    close(Triplet(margin=0.5)(z, SQUARED), [0.0, 3.5, 0.5])
    close(Triplet(margin=0.0)(z, SQUARED), [0.0, 3.0, 0.0])


def test_triplet_is_pytorchs_for_euclidean() -> None:
    z = Roles(sphere(9, 5, 1), sphere(9, 5, 2), sphere(9, 5, 3))
    expected = F.triplet_margin_loss(*z, margin=0.2, reduction="none")
    torch.testing.assert_close(Triplet()(z, Euclidean()), expected, rtol=0, atol=1e-12)
    assert float(expected.min()) == 0 < float(expected.max())


def test_triplet_in_cosine_distance() -> None:
    z = Roles(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    close(Triplet(margin=0.1)(z, Cosine()), [1 - (1 - math.sqrt(0.5)) + 0.1])


def test_contrastive_by_hand() -> None:
    z = line((0, 0.5, 2), (0, 1, 0.5), (0, 0, 0.1), (0, 2, 1))  # two of four negatives are inside margin 1
    got = Contrastive(margin=1.0)(z, SQUARED)
    close(got, [0.25, 1 + 2 * 0.75, 2 * 0.99, 4.0])
    published = (0.25 + 1 + 0 + 4) / 4 + (0.75 + 0.99) / 2
    assert float(got.mean()) == pytest.approx(published)


def test_contrastive_without_violators_is_the_distance_of_positives() -> None:
    close(Contrastive()(line((0, 1, 2), (0, 0.5, 3)), SQUARED), [1.0, 0.25])


def test_margin_by_hand() -> None:
    z = line((0, 1, 1), (0, 0.5, 2), (0, 0.1, 0.5))  # squared: ap 1, .25, .01; an 1, 4, .25
    got = Margin(margin=0.2, beta=0.3)(z, SQUARED)  # pull .9, .15, (-.09); push (-.5), (-3.5), .25
    close(got, [0.9 * 3 / 2, 0.15 * 3 / 2, 0.25 * 3])
    assert float(got.mean()) == pytest.approx((0.9 + 0.15) / 2 + 0.25)


def test_learned_margin_starts_at_beta_and_learns_it() -> None:
    module = Margin(margin=0.2, beta=0.3).setup(8, 5)
    assert isinstance(module, LearnedMargin)
    z = line((0, 1, 1), (0, 0.5, 2), (0, 0.1, 0.5))
    torch.testing.assert_close(module(z, SQUARED), Margin(margin=0.2, beta=0.3)(z, SQUARED))
    assert [name for name, _ in module.named_parameters()] == ["beta"]
    only_pull = line((0, 1, 2), (0, 2, 3))
    module(only_pull, SQUARED).mean().backward()
    assert float(module.beta.grad) == pytest.approx(
        -1.0
    )  # a mean over violators: slope -1 whatever their share


def multi_similarity_written_out(z: Tensor, y: Tensor) -> list[float]:
    s = (z @ z.T / (z.norm(dim=1)[:, None] * z.norm(dim=1))).tolist()
    n, out = range(len(z)), []
    for i in n:
        positives = [k for k in n if k != i and y[k] == y[i]]
        negatives = [k for k in n if y[k] != y[i]]
        if not positives or not negatives:
            out.append(0.0)
            continue
        least, most = min(s[i][k] for k in positives), max(s[i][k] for k in negatives)
        pull = sum(math.exp(-2 * (s[i][k] - 0.5)) for k in positives if s[i][k] < most + 0.1)
        push = sum(math.exp(40 * (s[i][k] - 0.5)) for k in negatives if s[i][k] > least - 0.1)
        out.append(math.log1p(pull) / 2 + math.log1p(push) / 40)
    return out


def test_multi_similarity_against_the_formula() -> None:
    z, y = sphere(12, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 3, 2])
    expected = multi_similarity_written_out(z, y)
    assert expected[10] == 0.0  # alone in its class
    assert sum(value > 0.1 for value in expected) > 5
    close(MultiSimilarity()(z, y, Cosine()), expected)


def test_multi_similarity_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    got = MultiSimilarity()(z, torch.tensor([0, 0, 1]), Cosine())
    first = math.log1p(math.exp(1.0)) / 2 + math.log1p(math.exp(20.0)) / 40  # s: positive 0, negative 1
    second = math.log1p(math.exp(1.0)) / 2 + math.log1p(math.exp(-20.0)) / 40  # positive 0, negative 0
    close(got, [first, second, 0.0])


def test_multi_similarity_counts_a_duplicate_but_not_the_row_itself() -> None:
    y = torch.tensor([0, 0, 1])
    apart = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    twin = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    # were row 0 its own positive, both would hold a term of similarity 1
    close(
        MultiSimilarity()(apart, y, Cosine())[:1],
        [math.log1p(math.exp(-0.2)) / 2 + math.log1p(math.exp(20)) / 40],
    )
    close(
        MultiSimilarity()(twin, y, Cosine())[:1],
        [math.log1p(math.exp(-1.0)) / 2 + math.log1p(math.exp(20)) / 40],
    )


def test_multi_similarity_reads_directions_only() -> None:
    z, y = sphere(8, 4), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    longer = z * torch.arange(1, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(MultiSimilarity()(longer, y, Euclidean()), MultiSimilarity()(z, y, Cosine()))


def proxies_for(loss: ProxyAnchor, e: int, c: int) -> LearnedProxies:
    with seeded(3, "proxies"):
        module = loss.setup(e, c)
    assert isinstance(module, LearnedProxies)
    return module.double()


def test_proxy_anchor_against_the_formula() -> None:
    z, y, c = sphere(7, 4), torch.tensor([0, 0, 2, 2, 2, 4, 0]), 6
    module = proxies_for(ProxyAnchor(alpha=8.0, margin=0.1), 4, c)
    got = module(z, y, Cosine()).detach()
    s = (z @ F.normalize(module.proxies.detach(), dim=1).T).tolist()
    n = range(len(z))
    pull = {p: math.log1p(sum(math.exp(-8 * (s[i][p] - 0.1)) for i in n if y[i] == p)) for p in range(c)}
    push = {p: math.log1p(sum(math.exp(8 * (s[i][p] + 0.1)) for i in n if y[i] != p)) for p in range(c)}
    published = (pull[0] + pull[2] + pull[4]) / 3 + sum(push.values()) / 6
    assert float(got.mean()) == pytest.approx(published)
    size = {0: 3, 2: 3, 4: 1}
    row = 7 * (pull[4] / 3 + sum(push[p] / (7 - size.get(p, 0)) for p in range(c) if p != 4) / 6)
    assert float(got[5]) == pytest.approx(row)


def test_proxy_anchor_of_one_class_in_the_batch() -> None:
    z, y = sphere(4, 3), torch.zeros(4, dtype=torch.long)
    module = proxies_for(ProxyAnchor(), 3, 1)
    s = (z @ F.normalize(module.proxies.detach(), dim=1).T)[:, 0]
    got = module(z, y, Cosine())
    assert float(got.detach().mean()) == pytest.approx(math.log1p(float((-32 * (s - 0.1)).exp().sum())))
    got.mean().backward()
    assert bool(torch.isfinite(module.proxies.grad).all())


def test_proxies_come_from_the_global_generator() -> None:
    first, second = proxies_for(ProxyAnchor(), 4, 3), proxies_for(ProxyAnchor(), 4, 3)
    assert torch.equal(first.proxies, second.proxies)
    assert first.proxies.shape == (3, 4)
    assert not torch.equal(first.proxies, ProxyAnchor().setup(4, 3).double().proxies)


def test_proxy_anchor_errors() -> None:
    z, y = sphere(2, 3), torch.tensor([0, 3])
    with pytest.raises(InvalidArgument, match="setup"):
        ProxyAnchor()(z, y, Cosine())
    with pytest.raises(InvalidArgument, match="labels 0 to 2"):
        proxies_for(ProxyAnchor(), 3, 3)(z, y, Cosine())
    with pytest.raises(InvalidArgument, match="labels from -1 to 0"):
        proxies_for(ProxyAnchor(), 3, 3)(z, torch.tensor([-1, 0]), Cosine())
    with pytest.raises(InvalidArgument, match="n_classes"):
        ProxyAnchor().setup(4, 0)
    with pytest.raises(InvalidArgument, match="embedding_dim"):
        ProxyAnchor().setup(0, 4)


def test_structure_by_hand() -> None:
    clean, now = line((0, 1, 5), (0, 2, 5), (0, 0, 5)), line((2, 9, 9), (1, 9, 9), (3, 9, 9))
    got = IntraClassStructure(weight=0.5)(TripletView(now=now, clean=clean), SQUARED)
    close(got, [0.5 * (4 - 1), 0.0, 0.5 * 9])  # the last: anchor its own positive


def test_structure_gradient_reaches_clean_and_attacked_rows() -> None:
    clean = Roles(*(role.clone().requires_grad_() for role in line((0, 1, 5))))
    now = Roles(*(role.clone().requires_grad_() for role in line((2, 1, 5))))
    IntraClassStructure(weight=1.0)(TripletView(now=now, clean=clean), SQUARED).sum().backward()
    assert float(now.anchor.grad) == pytest.approx(4.0)
    assert float(clean.positive.grad) == pytest.approx(-2.0)
    assert float(clean.anchor.grad) == pytest.approx(-4.0 + 2.0)
    assert now.positive.grad is None


def test_over_violators() -> None:
    x = torch.tensor([1.0, -5.0, 3.0, 0.0, 2.0])
    assert float(over_violators(x).mean()) == pytest.approx(2.0)
    assert over_violators(-x.abs()).tolist() == [0.0] * 5
    assert over_violators(x[:0]).shape == (0,)


def test_log_one_plus_sum_exp() -> None:
    x = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    which = torch.tensor([[True, True, False], [False, False, False]])
    got = log_one_plus_sum_exp(x, which, dim=1)
    close(got.detach(), [math.log(1 + math.e + math.e**2), 0.0])
    got.sum().backward()
    total = 1 + math.e + math.e**2
    torch.testing.assert_close(x.grad[0, :2], torch.tensor([math.e, math.e**2], dtype=torch.float64) / total)
    assert x.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert log_one_plus_sum_exp(x, which, dim=0).shape == (3,)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Triplet(margin=-0.1), "margin"),
        (lambda: Triplet(margin=math.nan), "margin"),
        (lambda: Contrastive(margin=0.0), "margin"),
        (lambda: Margin(margin=-1.0), "margin"),
        (lambda: Margin(beta=0.0), "beta"),
        (lambda: MultiSimilarity(alpha=0.0), "alpha"),
        (lambda: MultiSimilarity(beta=math.inf), "beta"),
        (lambda: MultiSimilarity(threshold=1.5), "threshold"),
        (lambda: MultiSimilarity(mining=-0.1), "mining"),
        (lambda: ProxyAnchor(alpha=-1.0), "alpha"),
        (lambda: ProxyAnchor(margin=math.nan), "margin"),
        (lambda: IntraClassStructure(weight=-0.5), "weight"),
    ],
)
def test_fields_are_checked(make: object, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        make()  # type: ignore[operator]
