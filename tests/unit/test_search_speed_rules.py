"""What the search loop saves must not show: results to the bit, no trace, a choice that does not waver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.encoders import C2F2, SmallCNN
from holdfast.errors import HoldfastWarning, InvalidArgument
from holdfast.patch import PatchThreat
from holdfast.rng import RowStreams, seeded, stream
from holdfast.search import (
    APGD,
    PGD,
    Autograd,
    Compiled,
    Counted,
    Graphed,
    LowPrecision,
    choose_precision,
    full_float32,
    in_precision,
    speeds,
)
from holdfast.search import precision as precision_module
from holdfast.search.moving import peaks
from holdfast.search.precision import native_bfloat16
from holdfast.search.region import Around, Interval, around
from holdfast.threat import L2Threat, LinfThreat, RowBall

CPU = torch.device("cpu")
PLACES = PatchThreat(height=3, width=2).for_rows(range(6), 0, (1, 8, 8))
THREATS: dict[str, Any] = {
    "linf": LinfThreat(eps=0.1),
    "linf without box": LinfThreat(eps=0.1, bounds=None),
    "l2": L2Threat(eps=0.8),
    "rows of linf": RowBall(threat=LinfThreat(eps=1.0), radii=torch.linspace(0.0, 0.3, 6)),
    "rows of l2": RowBall(threat=L2Threat(eps=1.0), radii=torch.linspace(0.0, 1.5, 6)),
    "placed patch": PLACES,
    "patch": PatchThreat(height=2, width=5, place=(1, 2)),
}
ALL = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)


def images(n: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.rand(n, 1, 8, 8, generator=stream(seed, "images"), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1).to(dtype)  # many pixels at the ends of the box


def net() -> nn.Module:
    return SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=0).eval()


def slow_pgd(encoder: nn.Module, x0: Tensor, gain: Any, threat: Any, steps: int, alpha: float) -> Tensor:
    """Every row in every pass, everything from scratch at every step."""
    x = x0
    for _ in range(steps):
        v = x.detach().clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(gain(encoder(v)).sum(), v)
        x = threat.project(x + alpha * threat.direction(grad), x0)
    return x


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pgd_is_the_plain_loop_to_the_bit(threat: Any, dtype: torch.dtype) -> None:
    encoder, x0 = net().to(dtype), images(dtype=dtype)
    clean = encoder(x0).detach()

    def away(z: Tensor) -> Tensor:
        return (z - clean + 1e-6).square().sum(1)

    plain = slow_pgd(encoder, x0, away, threat, 7, 0.037)
    assert torch.equal(PGD(steps=7, alpha=0.037)(encoder, x0, away, threat), plain)
    assert not torch.equal(plain, x0)


def until(levels: Tensor) -> Any:
    """A gain that is flat once a row is far enough; rows of one embedding coordinate, no sum to round."""
    return lambda z: -torch.relu(levels - z[:, 0])


class Total(nn.Module):
    """One number for a row, computed from the row alone: batches of any size give the same bits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row.sum() for row in x])[:, None]


class Untiring(Autograd):
    """The same gradient, without the promise that a zero stays zero: no group is ever left out."""

    exact = False


@ALL
@pytest.mark.parametrize("keep", ["last", "best"])
def test_rows_that_leave_change_no_bit(threat: Any, keep: Any) -> None:
    x0 = images()
    gain = until(x0.flatten(1).sum(1) + torch.tensor([0.0, 0.01, 0.1, 0.2, 0.3, 9.0]))
    counted, search = Counted(Total()), PGD(steps=9, alpha=1 / 1024, keep=keep)
    found = search(counted, x0, gain, threat)
    assert torch.equal(found, replace(search, gradient=Untiring())(Total(), x0, gain, threat))
    if keep == "last":
        assert torch.equal(found, slow_pgd(Total(), x0, gain, threat, 9, 1 / 1024))
    assert counted.calls[0] == 6
    assert counted.calls[1] < 6  # the first has arrived before it begins


@pytest.mark.parametrize("search", [PGD(steps=8, alpha=0.05, keep="best"), APGD(steps=12, restarts=2)])
@ALL
def test_rows_that_leave_with_the_best_points_give_the_same_result(threat: Any, search: Any) -> None:
    encoder, x0 = net().double(), images(dtype=torch.float64)
    clean = encoder(x0).detach()
    levels = torch.tensor([0.0, 1e-4, 1e-3, 1e-2, 0.1, 10.0], dtype=torch.float64)

    def gain(z: Tensor) -> Tensor:
        return -torch.relu(levels - (z - clean + 1e-3).square().sum(1))

    counts, found = [], []
    for gradient in (Autograd(), Untiring()):
        counted = Counted(encoder)
        streams = RowStreams(0, "rest", index=range(6))
        found.append(replace(search, gradient=gradient)(counted, x0, gain, threat, streams))
        counts.append(counted.queries)
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)
    assert counts[0] < counts[1]


class Levels:
    """A gain that can be cut to some of its groups, and says for how many it was asked."""

    def __init__(self, levels: Tensor) -> None:
        self.levels, self.asked = levels, [0]

    def __call__(self, z: Tensor) -> Tensor:
        self.asked.append(len(z))
        return until(self.levels)(z)

    def groups(self, which: Tensor) -> Levels:
        part = Levels(self.levels[which])
        part.asked = self.asked
        return part


def test_an_objective_with_groups_is_asked_for_those_that_move() -> None:
    x0 = images()
    levels = x0.flatten(1).sum(1) + torch.tensor([0.0, 0.01, 0.1, 0.2, 0.3, 9.0])
    threat, search = LinfThreat(eps=0.1), PGD(steps=9, alpha=1 / 1024)
    gain = Levels(levels)
    found = search(Total(), x0, gain, threat)
    assert torch.equal(found, search(Total(), x0, until(levels), threat))
    assert gain.asked[1] == 6
    assert gain.asked[-1] == 1


@ALL
@pytest.mark.parametrize("outside", [False, True])
def test_a_region_projects_as_its_threat_does(threat: Any, outside: bool) -> None:
    x0 = images() * 3 - 1 if outside else images()
    far = x0 + torch.randn(x0.shape, generator=stream(0, "far"))
    grad = torch.randn(x0.shape, generator=stream(0, "grad"))
    grad[:, :, 0] = 0
    kept = torch.tensor([5, 1, 2])
    region, part = around(threat, x0), around(threat, x0).rows(kept)
    some = threat.rows(kept) if hasattr(threat, "rows") else threat
    before = x0.clone(), grad.clone()
    assert torch.equal(region.project(far.clone()), threat.project(far, x0))
    assert torch.equal(part.project(far[kept]), some.project(far[kept], x0[kept]))
    step = threat.project(x0 + 0.07 * threat.direction(grad), x0)
    assert torch.equal(region.step(x0, grad, 0.07), step)
    assert torch.equal(part.step(x0[kept], grad[kept], 0.07), step[kept])
    assert torch.equal(x0, before[0])
    assert torch.equal(grad, before[1])


def test_only_the_librarys_own_intervals_are_taken_for_intervals() -> None:
    class Half(LinfThreat):
        def project(self, x: Tensor, x0: Tensor) -> Tensor:
            return super().project(x, x0).clamp_max(0.5)

    x0 = images()
    kinds = {name: type(around(threat, x0)) for name, threat in THREATS.items()}
    slow = {"l2", "rows of l2", "placed patch", "patch"}
    assert kinds == {name: Around if name in slow else Interval for name in THREATS}
    own = Half(eps=0.1)
    assert type(around(own, x0)) is Around
    assert float(PGD(steps=3, alpha=0.1)(nn.Flatten(), x0, lambda z: z.sum(1), own).max()) == 0.5


def test_patches_keep_their_places_when_rows_leave() -> None:
    threat = PatchThreat(height=2, width=2).for_rows(range(4), 3, (1, 8, 8))
    x0 = torch.full((4, 1, 8, 8), 0.25)
    levels = torch.tensor([16.0, 99.0, 17.0, 99.0])
    x = PGD(steps=20, alpha=0.125)(nn.Flatten(), x0, lambda z: -torch.relu(levels - z.sum(1)), threat)
    assert torch.equal(x != x0, threat.mask & torch.tensor([0, 1, 1, 1]).bool().reshape(-1, 1, 1, 1))
    assert x.flatten(1).amax(1).tolist() == [0.25, 1.0, 0.5, 1.0]


@ALL
@pytest.mark.parametrize("broken", [False, True])
def test_no_trace_is_left_not_even_by_errors(threat: Any, broken: bool) -> None:
    encoder, x0 = net(), images()
    encoder.train()
    first = next(encoder.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in encoder.parameters()]
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    begin, before, calls = x0.clone(), x0.clone(), 0

    def gain(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z.sum(1) * (torch.nan if broken and calls == 3 else 1.0)

    if broken:
        with pytest.raises(InvalidArgument, match="step 2"):
            PGD(steps=4, alpha=0.01)(encoder, x0, gain, threat, start=begin)
    else:
        PGD(steps=4, alpha=0.01)(encoder, x0, gain, threat, start=begin)
    assert torch.equal(x0, before)
    assert torch.equal(begin, before)
    assert [p.requires_grad for p in encoder.parameters()] == wanted
    assert first.grad is None
    assert all(p.grad is None for p in encoder.parameters())
    assert all(m.training for m in encoder.modules())
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


def test_a_gradient_that_is_a_view_or_shared_is_not_written_to() -> None:
    """The gradient of a sum is one number, expanded."""
    x0, kept = torch.full((3, 4), 0.5), torch.ones(3, 4)

    class Shared(Autograd):
        def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return super().__call__(*args, **kwargs)[0], kept

    threat = LinfThreat(eps=0.25)
    for gradient in (Autograd(), Shared()):
        x = PGD(steps=3, alpha=0.0625, gradient=gradient)(lambda x: x, x0, lambda z: z.sum(1), threat)
        assert torch.equal(x, torch.full((3, 4), 0.6875))
    assert torch.equal(kept, torch.ones(3, 4))
    assert torch.equal(x0, torch.full((3, 4), 0.5))


def test_peaks_by_hand() -> None:
    grad = torch.tensor([[[1.0, -3.0]], [[0.0, 0.0]], [[torch.nan, 5.0]], [[-torch.inf, 1.0]]])
    assert torch.allclose(peaks(grad), torch.tensor([3.0, 0.0, torch.nan, torch.inf]), equal_nan=True)
    assert peaks(torch.zeros(2, 0)).tolist() == [0.0, 0.0]


def test_the_format_of_images_is_kept_and_changes_nothing_but_rounding() -> None:
    encoder = SmallCNN(width=4, embedding_dim=8).build((3, 16, 16), seed=0).eval()
    assert next(p for p in encoder.parameters() if p.ndim == 4).is_contiguous(
        memory_format=torch.channels_last
    )
    x0 = torch.rand(4, 3, 16, 16, generator=stream(0))
    search, threat = PGD(steps=2, alpha=0.01), LinfThreat(eps=0.1)
    found = [
        search(encoder, x, lambda z: z[:, 0], threat) for x in (x0, x0.to(memory_format=torch.channels_last))
    ]
    assert found[0].is_contiguous()
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*found)


# Precision


def test_the_choice_is_made_by_kind_and_check_and_never_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = net(), [0]

    def check(answer: bool) -> Any:
        def agrees() -> bool:
            asked[0] += 1
            return answer

        return agrees

    monkeypatch.setattr(precision_module, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: pytest.fail("a clock was read"))
    assert {choose_precision(encoder, CPU, agrees=check(True)).precision for _ in range(5)} == {"bf16"}
    assert choose_precision(encoder, CPU, agrees=check(False)).precision == "fp32"
    assert asked == [6]
    assert choose_precision(encoder, CPU, agrees=None).precision == "fp32"
    assert choose_precision(encoder.double(), CPU, agrees=check(True)).precision == "fp32"
    assert choose_precision(torch.neg, CPU, agrees=check(True)).precision == "fp32"
    assert asked == [6]  # where it cannot be bfloat16 nobody is asked
    for word in ("fp32", "bf16"):
        assert choose_precision(encoder, CPU, word, agrees=check(False)) == (word, "as asked")  # type: ignore[arg-type]
    monkeypatch.setattr(precision_module, "native_bfloat16", lambda device: False)
    chosen = choose_precision(net(), CPU, agrees=check(True))
    assert chosen.precision == "fp32"
    assert "cpu" in chosen.reason
    with pytest.raises(InvalidArgument, match="precision"):
        choose_precision(encoder, CPU, "fp16", agrees=None)  # type: ignore[arg-type]


def test_native_bfloat16_reads_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert not native_bfloat16(CPU)
    flags["avx512_bf16"] = True
    assert native_bfloat16(CPU)
    assert not native_bfloat16(torch.device("meta"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not native_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert native_bfloat16(torch.device("cuda"))


def test_auto_has_to_be_resolved_before_a_search() -> None:
    with pytest.raises(InvalidArgument, match="whole evaluations"):
        in_precision(net(), "auto")


def test_speeds_leave_no_trace() -> None:
    encoder = net().train()
    found = speeds(encoder, images(), rounds=1)
    assert found.fp32 > 0
    assert found.gain == found.bf16 / found.fp32
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    with pytest.raises(InvalidArgument, match="rounds"):
        speeds(encoder, images(), rounds=0)


def test_the_search_in_bfloat16_moves_in_float32() -> None:
    encoder, x0 = C2F2(width=0.1, embedding_dim=8).build((1, 8, 8), seed=0).eval(), images()
    x = PGD(steps=3, alpha=1 / 255)(LowPrecision(encoder), x0, lambda z: z[:, 0], LinfThreat(eps=2 / 255))
    assert x.dtype == torch.float32
    assert float((x - x0).abs().max()) == pytest.approx(2 / 255, abs=1e-7)  # bfloat16 knows 0.5 +- 1/512
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def settings() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_full_float32_and_back() -> None:
    before = settings()
    a = torch.rand(64, 64, generator=stream(0))
    plain = a @ a
    try:
        torch.set_float32_matmul_precision("medium")
        with full_float32():
            assert torch.equal(a @ a, plain)
            kinds = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends.cudnn.conv]
            if hasattr(kinds[0], "fp32_precision"):
                assert [kind.fp32_precision for kind in kinds] == ["ieee"] * 3
        with pytest.raises(ZeroDivisionError), full_float32():
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert settings() == before


# Wrappers that are asked for


def test_a_compiler_that_fails_is_named_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    Broken.__module__ = "torch._inductor.exc"

    def failing(code: Any) -> Any:
        def call(x: Tensor) -> Tensor:
            raise Broken("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    encoder, x = net(), images()
    compiled = Compiled(encoder)
    with pytest.warns(HoldfastWarning, match="no C\\+\\+ compiler"):
        assert torch.equal(compiled(x), encoder(x))
    assert torch.equal(compiled(x), encoder(x))  # and says so once
    assert [name for name, _ in compiled.named_children()] == ["encoder"]


def test_an_error_of_the_encoder_is_not_taken_for_one_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda code: code)
    with pytest.raises(InvalidArgument, match="images of shape"):
        Compiled(net())(torch.zeros(1, 2, 8, 8))


def test_graphs_are_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_: pytest.fail("captured"))
    encoder, x0 = net(), images()
    search, threat = PGD(steps=3, alpha=0.01), LinfThreat(eps=0.1)
    found = [search(model, x0, lambda z: z[:, 0], threat) for model in (encoder, Graphed(encoder))]
    assert torch.equal(*found)


@pytest.mark.gpu
def test_graphed_searches_find_the_same() -> None:
    with seeded(0, "graph"):
        encoder = C2F2(embedding_dim=32).build((1, 28, 28), seed=0).eval().cuda()
    x0 = torch.rand(16, 1, 28, 28, generator=stream(0)).cuda()
    with torch.no_grad():
        clean = encoder(x0)

    def gain(z: Tensor) -> Tensor:
        return -torch.relu(0.3 - (z - clean + 1e-3).norm(dim=1))

    for search in (PGD(steps=10, alpha=0.01), APGD(steps=10)):
        with full_float32():
            found = [search(model, x0, gain, LinfThreat(eps=0.1)) for model in (encoder, Graphed(encoder))]
        torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


@pytest.mark.gpu
def test_full_float32_on_a_gpu() -> None:
    a = torch.rand(512, 512, generator=stream(0)).cuda() - 0.5
    exact = (a.double() @ a.double()).float()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        rough = float((a @ a - exact).abs().max())
        with full_float32():
            fine = float((a @ a - exact).abs().max())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert fine < rough / 10
