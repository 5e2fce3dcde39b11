"""Ranking in tiles: the old whole-row algorithm, budgets that change nothing, screening, distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation.embed import retrieval_task
from holdfast.evaluation.retrieval import evaluate_retrieval
from holdfast.functional import order, ranking, screening, tiles
from holdfast.functional.distance import DISTANCES, Cosine, Euclidean, Mahalanobis, SquaredEuclidean
from holdfast.functional.ranking import nearest, retrieval_scores, top_scores
from holdfast.functional.screening import Screen
from holdfast.functional.tiles import Tiles, count_closer, plan_tiles
from holdfast.rng import stream


def whole_rows(d: Tensor, y: Tensor, gallery_y: Tensor, own: Tensor) -> tuple[Tensor, ...]:
    """The former algorithm: sort every row whole."""
    d = d.clone()
    has = own >= 0
    d[has, own[has]] = torch.inf
    listing = d.argsort(dim=1, stable=True)
    relevant = (gallery_y[listing] == y[:, None]) & (listing != own[:, None])
    total, place = relevant.sum(1), torch.arange(1, d.shape[1] + 1)
    precision = relevant.cumsum(1).to(d.dtype) / place * relevant
    first = torch.where(total > 0, relevant.int().argmax(1), torch.full_like(total, d.shape[1]))
    inside = place[None, :] <= total[:, None]
    safe = total.clamp_min(1)
    return (
        first,
        precision.sum(1) / safe,
        (precision * inside).sum(1) / safe,
        precision[:, :10].sum(1) / 10,
        listing,
    )


def problem(
    seed: int, labels: str, n: int = 37, m: int = 331, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Points of a coarse grid: exact products, many ties and duplicates."""
    g = stream(seed, "scale", labels)
    gallery = torch.randint(-2, 3, (m, 4), generator=g).to(dtype)
    gallery[::7] = gallery[3]
    sizes = {
        "tiny": torch.arange(m) // 3,
        "single": torch.arange(m),
        "large": torch.randint(2, (m,), generator=g),
        "mixed": torch.where(torch.rand(m, generator=g) < 0.5, 0, torch.randint(60, (m,), generator=g)),
    }
    gallery_y = sizes[labels][torch.randperm(m, generator=g)]
    own = torch.randperm(m, generator=g)[:n]
    z, y = gallery[own].clone(), gallery_y[own].clone()
    own[::4] = -1
    y[1] = 10**6  # stands nowhere else
    own[1] = -1
    return z, y, gallery, gallery_y, own


@pytest.mark.parametrize("labels", ["tiny", "single", "large", "mixed"])
@pytest.mark.parametrize("name", ["euclidean", "squared", "cosine", "mahalanobis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_those_of_whole_rows(labels: str, name: str, dtype: torch.dtype) -> None:
    z, y, gallery, gallery_y, own = problem(0, labels, dtype=dtype)
    distance = {**DISTANCES, "mahalanobis": Mahalanobis(torch.eye(4) * 2)}[name]
    if name == "cosine":  # its rounding is not exact on the grid: axes are
        z, gallery = (torch.eye(5, dtype=dtype)[x.sum(1).long().remainder(5)] for x in (z, gallery))
    slow = whole_rows(distance.matrix(z, gallery), y, gallery_y, own)
    fast = retrieval_scores(z, y, gallery, gallery_y, distance, own)
    assert torch.equal(fast.first_match, slow[0])
    top = top_scores(z, y, gallery, gallery_y, distance, own, depth=20)
    assert torch.equal(top.first_match, torch.where(slow[0] < 20, slow[0], len(gallery)))
    pairs = [*zip(fast[1:], slow[1:4], strict=True), *zip(top[1:3], slow[2:4], strict=True)]
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, atol=1e-6 if dtype == torch.float32 else 1e-13, rtol=0)
    for k in (1, 2, 5, 20):
        assert torch.equal(top.recall(k), fast.recall(k))
    for k in (1, 7, 90, len(gallery) - 1):  # lists too, in the order of the gallery
        d, rows = nearest(z, gallery, k, distance, own)
        assert torch.equal(rows, slow[4][:, :k])
        assert torch.equal(d, distance.matrix(z, gallery).gather(1, rows))


@pytest.mark.parametrize("labels", ["tiny", "large", "mixed"])
@pytest.mark.parametrize("few", [0, 48])
def test_tiles_and_budgets_change_nothing(labels: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (order, ranking, tiles):  # few = 0: every rank by sorted tiles
        monkeypatch.setattr(module, "FEW", few)
    z, y, gallery, gallery_y, own = problem(1, labels, m=900)
    whole = retrieval_scores(z, y, gallery, gallery_y, Euclidean(), own)
    top = top_scores(z, y, gallery, gallery_y, Euclidean(), own)
    lists = nearest(z, gallery, 70, Euclidean(), own)
    limit = lists[0][:, ::5].contiguous()
    counts = count_closer(Euclidean(), z, gallery, limit, own)
    for memory in (2**17, 2**18, 2**20, 2**30):
        for chunk in (1, 5, 1024):
            some = retrieval_scores(z, y, gallery, gallery_y, Euclidean(), own, chunk, memory=memory)
            assert all(torch.equal(a, b) for a, b in zip(some, whole, strict=True))
        again = top_scores(z, y, gallery, gallery_y, Euclidean(), own, memory=memory)
        assert all(torch.equal(a, b) for a, b in zip(again[:3], top[:3], strict=True))
        found = nearest(z, gallery, 70, Euclidean(), own, memory=memory)
        assert all(torch.equal(a, b) for a, b in zip(found, lists, strict=True))
        assert torch.equal(count_closer(Euclidean(), z, gallery, limit, own, memory=memory), counts)


def test_counts_are_strict_and_leave_the_query_out() -> None:
    z, _, gallery, _, own = problem(2, "tiny")
    d = Euclidean().matrix(z, gallery)
    for limit in (d[:, 3:8].contiguous(), d[:, :60].contiguous()):
        without = d.clone()
        without[own >= 0, own[own >= 0]] = torch.inf
        expected = (without[:, None, :] < limit[:, :, None]).sum(2)
        assert torch.equal(count_closer(Euclidean(), z, gallery, limit, own), expected)
    assert count_closer(Euclidean(), z, gallery, d[:, :0]).shape == (len(z), 0)
    line = torch.tensor([[1.0], [2.0], [2.0], [3.0]])
    by_hand = count_closer(Euclidean(), torch.zeros(1, 1), line, torch.tensor([[1.0, 2.0, 2.5, 9.0]]))
    assert by_hand.tolist() == [[0, 1, 3, 4]]


class Recording:
    """A distance that remembers the largest matrix that anybody asked for."""

    def __init__(self) -> None:
        self.largest = 0

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        self.largest = max(self.largest, len(a) * len(b))
        return Euclidean().matrix(a, b)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        return Euclidean().rowwise(a, b)


def test_no_tile_exceeds_the_budget() -> None:
    g = stream(0, "budget")
    gallery, y = torch.randn(20000, 4, generator=g), torch.arange(20000) // 5
    rows = torch.arange(0, 20000, 400)
    for memory in (2**20, 2**22):
        for call in (
            lambda d, b: retrieval_scores(gallery[rows], y[rows], gallery, y, d, rows, memory=b),
            lambda d, b: top_scores(gallery[rows], y[rows], gallery, y, d, rows, memory=b),
            lambda d, b: nearest(gallery[rows], gallery, 5, d, rows, memory=b),
            lambda d, b: count_closer(d, gallery[rows], gallery, torch.ones(50, 3), memory=b),
        ):
            seen: Any = Recording()
            call(seen, memory)
            assert 256 <= seen.largest <= memory / 4
    for call in (
        lambda b: retrieval_scores(gallery[rows], y[rows], gallery, y, Euclidean(), rows, memory=b),
        lambda b: nearest(gallery[rows], gallery, 5, Euclidean(), rows, memory=b),
        lambda b: count_closer(Euclidean(), gallery[rows], gallery, torch.ones(50, 3), memory=b),
    ):
        with pytest.raises(InvalidArgument, match=r"memory: need at least [\d.]+K? for"):
            call(1000)


def test_the_smallest_budget_that_is_named_works() -> None:
    z, y, gallery, gallery_y, own = problem(3, "tiny", m=3000)
    with pytest.raises(InvalidArgument) as caught:
        retrieval_scores(z, y, gallery, gallery_y, Euclidean(), own, memory=1)
    named = int(float(str(caught.value).split("at least ")[1].split("K")[0]) * 1024)
    least = retrieval_scores(z, y, gallery, gallery_y, Euclidean(), own, memory=named)
    whole = retrieval_scores(z, y, gallery, gallery_y, Euclidean(), own)
    assert all(torch.equal(a, b) for a, b in zip(least, whole, strict=True))


def test_planned_tiles_grow_with_the_budget_and_keep_within_it() -> None:
    last = 0
    for power in range(19, 34):
        found = plan_tiles(10**6, 10**6, 128, 2**power)
        assert 4 * (found.rows * found.columns * 4 + (found.rows + 2 * found.columns) * 128) <= 2**power
        assert found.rows * found.columns >= last
        last = found.rows * found.columns
    assert found == tiles.LARGEST
    assert plan_tiles(3, 50, 8) == Tiles(3, 50)


@pytest.mark.parametrize("labels", ["large", "mixed"])
@pytest.mark.parametrize("name", ["euclidean", "squared", "cosine"])
def test_sampled_long_lists_are_those_of_whole_rows(
    labels: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, y, gallery, gallery_y, own = problem(5, labels, n=40, m=3000)
    g = stream(5, "wide")
    gallery = torch.randint(-20, 21, (3000, 4), generator=g).float()
    gallery[::50] = gallery[3]  # ties, also around the last places of a list
    z = torch.where((own >= 0)[:, None], gallery[own.clamp_min(0)], z * 7)
    distance = DISTANCES[name]
    whole = top_scores(z, y, gallery, gallery_y, distance, own)
    lists = nearest(z, gallery, 400, distance, own)
    monkeypatch.setattr(ranking, "LEAST_SAMPLED", 1000)
    seen = []
    plain = ranking._Sampled.keys

    def keys(self: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        found = plain(self, *rest)
        seen.append(float(found[1].float().mean()))
        return found

    monkeypatch.setattr(ranking._Sampled, "keys", keys)
    monkeypatch.setattr(ranking, "MOST", 8)
    assert all(torch.equal(a, b) for a, b in zip(nearest(z, gallery, 400, distance, own), lists, strict=True))
    assert len(seen) == 1
    assert seen[0] > 0.9  # known without the slow way
    for memory in (2**20, 2**30):
        again = top_scores(z, y, gallery, gallery_y, distance, own, memory=memory)
        assert all(torch.equal(a, b) for a, b in zip(again[:3], whole[:3], strict=True))


def test_what_a_sample_does_not_tell_goes_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "LEAST_SAMPLED", 1000)
    gallery = torch.zeros(3000, 4)  # every distance is the edge: more rows than there is room for
    own = torch.arange(100)
    rows = nearest(gallery[:100], gallery, 300, Euclidean(), own)[1]
    assert rows[0].tolist() == list(range(1, 301))
    assert rows[99].tolist() == [*range(99), *range(100, 301)]
    gallery = torch.randn(3000, 4, generator=stream(0, "edge"))
    expected = nearest(gallery[:100], gallery, 300, Cosine(), own)
    monkeypatch.setattr(ranking._Sampled, "planned", _too_near)
    assert all(
        torch.equal(a, b)
        for a, b in zip(nearest(gallery[:100], gallery, 300, Cosine(), own), expected, strict=True)
    )


def _too_near(*rest: Any) -> Any:
    """A plan whose edge lies at the nearest of the sample, so that fewer rows than k are found."""
    distance, n, gallery, k = rest[:4]
    made = ranking._Sampled(distance, gallery, k)
    made.tiles, made.sample, made.place = Tiles(n, 500), gallery[::3].clone(), 1
    made.buffer = torch.empty(n, made.room, dtype=torch.int64)
    return made


def test_keys_below_an_edge_by_hand() -> None:
    found = order.Below(torch.tensor([2.0, 0.5, 9.0]), torch.empty(3, 3, dtype=torch.int64))
    found.add(0, torch.tensor([[3.0, 2.0], [1.0, 1.0], [1.0, 2.0]]))
    found.add(2, torch.tensor([[-0.5, 2.0], [0.5, 0.6], [3.0, 4.0]]))
    keys, known = found.first(2)
    assert known.tolist() == [True, False, False]  # the second has one, the third more than fit
    d, rows = order.unpack(keys[:1])
    assert d.tolist() == [[-0.5, 2.0]]
    assert rows.tolist() == [[2, 1]]


def clouds(n: int, m: int, e: int, noise: float, scale: float = 1.0, unit: bool = True) -> tuple[Tensor, ...]:
    g = stream(0, "clouds")
    y = torch.arange(m) % (m // 6)
    z = torch.randn(m // 6, e, generator=g)[y] + noise * e**0.5 * torch.randn(m, e, generator=g)
    z = torch.nn.functional.normalize(z) if unit else z * scale + 0.3
    z[50] = z[4000]
    z[60] = z[10]  # duplicates: the order of the gallery decides
    return z[:n].clone(), y[:n], z, y, torch.arange(n)


@pytest.mark.parametrize("name", ["euclidean", "squared", "cosine"])
@pytest.mark.parametrize(("noise", "unit"), [(0.03, True), (0.5, True), (0.03, False), (1.0, False)])
def test_screened_lists_are_those_of_float32(
    name: str, noise: float, unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, _, gallery, _, own = clouds(150, 4997, 64, noise, 3.0, unit)
    distance = DISTANCES[name]
    monkeypatch.setattr(screening, "bfloat16_is_fast", lambda: True)
    assert screening.pays(z, gallery, 9, distance)
    d, rows = nearest(z, gallery, 9, distance, own)
    monkeypatch.setattr(screening, "bfloat16_is_fast", lambda: False)
    exact = torch.cdist(z.double(), gallery.double()) if name != "cosine" else None
    if exact is None:
        exact = Cosine().matrix(z.double(), gallery.double())
    exact = exact.square() if name == "squared" else exact
    exact[torch.arange(150), own] = torch.inf
    best = exact.sort(dim=1).values[:, :9]
    scale = float(best.max())
    torch.testing.assert_close(d.double(), best, atol=3e-6 * max(scale, 1), rtol=0)
    torch.testing.assert_close(exact.gather(1, rows), best, atol=3e-6 * max(scale, 1), rtol=0)
    assert rows[10, 0] == 60
    both = nearest(gallery[[70]] * 0 + gallery[10], gallery, 2, distance, torch.tensor([-1]))[1]
    assert both.tolist() == [[10, 60]]


@pytest.mark.parametrize("unit", [True, False])
def test_screening_proves_its_lists_and_says_so(unit: bool) -> None:
    z, _, gallery, _, own = clouds(150, 4997, 64, 0.03, 3.0, unit)
    for columns in (512, 4096, 8192):
        for keep in (False, True):
            screen = Screen(gallery, Euclidean(), Tiles(150, columns), keep)
            for _ in range(2):  # the second time from kept tiles
                d, _, sound = screen.nearest(z, 9, own)
                assert float(sound.float().mean()) > 0.9
                exact = torch.cdist(z.double(), gallery.double())
                exact[torch.arange(150), own] = torch.inf
                best = exact.sort(dim=1).values[:, :9]
                torch.testing.assert_close(d[sound].double(), best[sound], atol=2e-5, rtol=0)
    same = torch.ones(4997, 64) / 8  # nothing tells these apart
    assert not bool(Screen(same, Euclidean(), Tiles(64, 4096), True).nearest(same[:64], 9, own[:64])[2].any())
    # every product is negative: no proof
    sound = Screen(gallery.abs(), Cosine(), Tiles(64, 4096), True).nearest(-gallery.abs()[:64], 9, own[:64])[
        2
    ]
    assert not bool(sound.any())


def test_what_screening_cannot_prove_goes_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "bfloat16_is_fast", lambda: True)
    same = torch.ones(5000, 64)
    _, rows = nearest(same[:2000], same, 5, Euclidean(), torch.arange(2000), chunk=500)
    assert rows[0].tolist() == [1, 2, 3, 4, 5]
    assert rows[3].tolist() == [0, 1, 2, 4, 5]
    assert rows[1999].tolist() == [0, 1, 2, 3, 4]


def test_only_some_distances_and_sizes_are_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "bfloat16_is_fast", lambda: True)
    z = torch.zeros(5000, 64)
    assert screening.pays(z, z, 5, Euclidean())
    assert not screening.pays(z, z, 65, Euclidean())
    assert not screening.pays(z.double(), z.double(), 5, Euclidean())
    assert not screening.pays(z, z[:1000], 5, Euclidean())
    assert not screening.pays(z, z, 5, Mahalanobis(torch.eye(64)))
    assert not screening.pays(z, z.clone().requires_grad_(), 5, Euclidean())
    assert screening.plan_screen(5000, 5000, 64, 5, 2**20) is None


def test_depth_bounds_what_is_known() -> None:
    z, y, gallery, gallery_y, own = problem(4, "mixed")
    scores = top_scores(z, y, gallery, gallery_y, Euclidean(), own, depth=3)
    for k in (0, 4):
        with pytest.raises(InvalidArgument, match="1 to 3"):
            scores.recall(k)
    with pytest.raises(InvalidArgument, match="depth"):
        top_scores(z, y, gallery, gallery_y, Euclidean(), own, depth=0)
    few = top_scores(z[:2], y[:2], gallery[:4], gallery_y[:4], Euclidean(), depth=50)
    assert not bool(few.recall(50)[1])  # no row of its label, and a list shorter than the depth


def test_evaluation_without_the_whole_list() -> None:
    encoder = SmallCNN().build((1, 8, 8), seed=0)
    g = stream(0, "images")
    task = retrieval_task(encoder, torch.rand(30, 1, 8, 8, generator=g), torch.arange(30) % 4)
    whole = evaluate_retrieval(task, cuts=(1, 12))
    some = evaluate_retrieval(task, cuts=(1, 12), ap=False, memory=2**24)
    assert set(whole) - set(some) == {"map"}
    for name, value in some.items():
        assert value.value == pytest.approx(whole[name].value, abs=1e-6), name
    with pytest.raises(InvalidArgument, match="memory"):
        evaluate_retrieval(task, memory=100)


# distances


def old(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix counts as large."""
    monkeypatch.setattr("holdfast.functional.distance.FEW", 0)


@pytest.mark.parametrize("m", [7, 5000])
@pytest.mark.usefixtures("large")
def test_values_and_gradients_are_those_of_cdist(m: int) -> None:
    g = stream(0, "cdist")
    a, b = (torch.randn(k, 6, generator=g, dtype=torch.float64) for k in (5, m))
    weight = torch.randn(5, m, generator=g, dtype=torch.float64)
    ours, theirs = ((a.clone().requires_grad_(), b.clone().requires_grad_()) for _ in range(2))
    d, e = Euclidean().matrix(*ours), old(*theirs)
    torch.testing.assert_close(d, e, atol=1e-12, rtol=0)
    mine = torch.autograd.grad((d * weight).sum(), ours)
    other = torch.autograd.grad((e * weight).sum(), theirs)
    for x, y in zip(mine, other, strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("large")
def test_only_what_is_asked_for_is_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(3, 4).requires_grad_(), torch.randn(9, 4)
    calls: list[tuple[int, ...]] = []
    plain = torch.addmm

    def counted(x: Tensor, *rest: Tensor, **how: float) -> Tensor:
        calls.append(tuple(x.shape))
        return plain(x, *rest, **how)

    monkeypatch.setattr(torch, "addmm", counted)
    Euclidean().matrix(a, b).sum().backward()
    assert calls == [(3, 4)]  # the gradient of a alone
    assert a.grad is not None
    assert b.grad is None


@pytest.mark.parametrize("name", ["euclidean", "squared", "cosine", "mahalanobis"])
@pytest.mark.usefixtures("large")
def test_distances_can_be_differentiated_twice(name: str) -> None:
    g = stream(1, "twice")
    a, b = (torch.randn(k, 5, generator=g, dtype=torch.float64).requires_grad_() for k in (3, 4))
    distance = {**DISTANCES, "mahalanobis": Mahalanobis(torch.eye(5) + 0.1)}[name]
    assert torch.autograd.gradgradcheck(distance.matrix, (a, b))
    assert torch.autograd.gradgradcheck(lambda x: distance.matrix(x, b.detach()), (a,))


@pytest.mark.usefixtures("large")
def test_second_gradients_are_zero_at_distance_zero() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).requires_grad_()
    b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).requires_grad_()
    d = Euclidean().matrix(a, b)
    assert d[0, 0].item() == 0
    first = torch.autograd.grad(d[0, 0], (a, b), create_graph=True)
    assert all(x.abs().sum().item() == 0 for x in first)
    grads = torch.autograd.grad(Euclidean().matrix(a, b).sum(), (a, b), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in grads), (a, b))
    assert all(bool(torch.isfinite(x).all()) for x in second)


@pytest.mark.usefixtures("large")
def test_autocast_does_not_round_distances() -> None:
    a, b = torch.randn(4, 64), torch.randn(6, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = a.clone().requires_grad_()
        inside = Euclidean().matrix(x, b)
        (grad,) = torch.autograd.grad(inside.sum(), x)
    y = a.clone().requires_grad_()
    outside = Euclidean().matrix(y, b)
    assert torch.equal(inside, outside)
    assert torch.equal(grad, torch.autograd.grad(outside.sum(), y)[0])


def test_squared_lengths_in_steps_are_those_of_one_pass() -> None:
    a, b = torch.randn(3, 8), torch.randn(9000, 8)
    whole = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2.0) + a.square().sum(1)[:, None]
    assert torch.equal(SquaredEuclidean().matrix(a, b), whole.clamp_min(0))


@pytest.mark.usefixtures("large")
def test_a_small_matrix_does_not_keep_the_padding_of_its_product() -> None:
    d = Euclidean().matrix(torch.randn(2, 8), torch.randn(50, 8))
    assert d.untyped_storage().nbytes() == 2 * 50 * d.element_size()
