"""Every check of the verdict, in a case that it must pass and in one that it must fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import Outcome
from holdfast.encoders import adapt
from holdfast.errors import InvalidArgument
from holdfast.evaluation import Entry, EntryResult, retrieval_task
from holdfast.evaluation.verdict import (
    CHECKS,
    Certificate,
    Claim,
    Examination,
    Finding,
    GradientKiller,
    InputQuantiser,
    RandomInput,
    Unavailable,
    selftest,
)
from holdfast.evaluation.verdict.leakage import near_duplicates
from holdfast.functional.distance import Euclidean
from holdfast.rng import stream, uniform
from holdfast.search import APGD, PGD, Autograd, Square
from holdfast.threat import L2Threat, LinfThreat, RowBall
from holdfast.types import Gallery, RetrievalTask

BEST = PGD(steps=10, alpha=0.05, keep="best")


class Pixels(nn.Module):
    """Two pixels are the embedding: every best attack is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def task(encoder: Any = None, n: int = 24, depth: float = 0.2) -> RetrievalTask:
    """Queries between one gallery row of each class; all break where the first pixel moves by ``depth``."""
    y = torch.arange(n) % 2
    first = torch.where(y == 0, 0.5 - depth, 0.5 + depth)
    x = torch.stack([first, torch.full((n,), 0.5)], 1)[:, None, :, None]
    gallery = torch.tensor([[0.1, 0.5], [0.9, 0.5]])
    z = x.flatten(1)
    return RetrievalTask(
        encoder=encoder or Pixels(),
        x=x,
        y=y,
        z=z,
        gallery=Gallery(gallery, torch.tensor([0, 1]), torch.tensor([0, 1])),
        self_index=torch.full((n,), -1),
        index=torch.arange(n),
        distance=Euclidean(),
    )


def examination(encoder: Any = None, *, n: int = 24, eps: float = 0.25, **more: Any) -> Examination:
    fields: dict[str, Any] = {"task": task(encoder, n), "search": BEST, "threat": LinfThreat(eps=eps)}
    return Examination(**{**fields, **more})


def check(name: str, e: Examination) -> Finding:
    finding = CHECKS[name].run(e)
    assert finding.id == name
    assert finding.detail
    return finding


def status(name: str, e: Examination) -> str:
    return check(name, e).status


def result(e: RetrievalTask, z: Tensor, label: str = "GTM", x: Tensor | None = None) -> EntryResult:
    """A stored result whose attacked embeddings are given."""
    right = ((z[:, :1] - 0.5).squeeze(1).sign() == torch.where(e.y == 0, -1.0, 1.0)).float()
    entry = Entry(label=label, attack=None, higher_is_robust={"recall@1": True})
    outcome = Outcome(
        x=e.x if x is None else x, z=z, clean={"recall@1": torch.ones(len(z))}, attacked={"recall@1": right}
    )
    return EntryResult(entry, outcome, 0.0)


@dataclass(frozen=True)
class Jump:
    """Move the first pixel straight towards the other class by ``length``, whatever the threat says."""

    length: float
    only_below: float = math.inf

    def __call__(
        self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
    ) -> Tensor:
        objective(encoder(x0))
        if threat.eps > self.only_below or threat.eps == 0:
            return x0.clone()
        x = x0.clone()
        x[:, 0, 0] += (0.5 - x0[:, 0, 0]).sign() * self.length
        return x


@dataclass(frozen=True, kw_only=True)
class Lucky:
    """Break one query in eight, by chance."""

    restarts: int = 1
    random_start: bool = False

    def __call__(
        self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
    ) -> Tensor:
        hit = uniform(x0.flatten(1)[:, :1], generator)[:, 0] < 0.125
        return torch.where(hit[:, None, None, None], threat.project(1 - x0, x0), x0)


def test_r1_determinism() -> None:
    assert status("R1", examination()) == "pass"
    noisy = RandomInput(Pixels(), noise=0.1)
    assert status("R1", examination(noisy)) == "fail"
    assert status("R1", examination(noisy, passes=20)) == "warn"
    assert status("R1", examination(noisy, passes=19)) == "fail"


def test_r2_no_op() -> None:
    assert status("R2", examination()) == "pass"
    shifted = task()
    other = replace(shifted, x=1 - shifted.x)  # the attacked pipeline flips what the clean one does not
    assert check("R2", examination(task=other)).value == 1.0
    assert status("R2", examination(task=other)) == "fail"
    assert status("R2", examination(search=Jump(1e-3, math.inf))) == "pass"

    def moves(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
        return x0 + 1e-3

    assert status("R2", examination(search=moves)) == "fail"


def test_r2_of_an_encoder_without_gradient_is_for_r4() -> None:
    assert status("R2", examination(GradientKiller(Pixels(), detach=True))) == "pass"


@pytest.mark.parametrize(("length", "expected"), [(0.25, "pass"), (0.2501, "fail"), (math.nan, "fail")])
def test_r3_constraint(length: float, expected: str) -> None:
    e = examination()
    x = e.task.x.clone()
    x[3, 0, 0] += length * (0.5 - x[3, 0, 0]).sign()
    stored = result(e.task, e.task.z, x=x)
    assert status("R3", examination(results=[stored])) == expected


def test_r3_looks_at_the_primary_attack_and_at_the_l2_norm() -> None:
    assert status("R3", examination(search=Jump(0.3))) == "fail"
    assert status("R3", examination(threat=L2Threat(eps=0.3), search=Jump(0.3))) == "pass"
    assert status("R3", examination(threat=L2Threat(eps=0.29), search=Jump(0.3))) == "fail"


@pytest.mark.parametrize(("n", "expected"), [(10, "fail"), (40, "warn"), (100, "pass")])
def test_r3_rounding_to_8_bits(n: int, expected: str) -> None:
    """The border lies at 127.2 of 255; one of ``n`` queries comes to 127.3, which 8 bits cannot show."""
    made = task(n=n)
    border = 127.2 / 255
    gallery = torch.tensor([[0.1, 0.5], [2 * border - 0.1, 0.5]])
    made = replace(made, gallery=Gallery(gallery, made.gallery.y, made.gallery.ids))

    def push(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
        x = threat.project(1 - x0, x0)
        x[0, 0, 0] = 127.3 / 255
        return x

    found = check("R3", examination(task=made, search=push))
    assert (found.status, found.value) == (expected, pytest.approx(1 / n))


def test_r4_gradient_exists() -> None:
    assert status("R4", examination()) == "pass"
    assert check("R4", examination(GradientKiller(Pixels()))).value == 1.0
    assert status("R4", examination(GradientKiller(Pixels()))) == "fail"
    assert status("R4", examination(GradientKiller(Pixels(), detach=True))) == "fail"
    assert status("R4", examination(search=Square(queries=3))) == "warn"


def test_r4_counts_single_queries() -> None:
    class Partly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return torch.where(z[:, :1] == z[0, 0], z.detach(), z)

    assert check("R4", examination(Partly())).value == pytest.approx(0.5)


def test_r5_of_a_function_around_a_network_stays_in_its_precision() -> None:
    net = nn.Linear(2, 2, bias=False).requires_grad_(False)
    nn.init.eye_(net.weight)
    assert status("R5", examination(adapt(lambda x: net(x.flatten(1))))) == "pass"


def test_r5_gradient_correct() -> None:
    assert status("R5", examination()) == "pass"

    class Straight(nn.Module):  # forward steps, backward a slope
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return z + ((z * 7).round() / 7 - z).detach()

    class Half(nn.Module):  # a slope that is off by 5 %
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return 1.05 * z - (0.05 * z).detach()

    assert status("R5", examination(Straight())) == "fail"
    assert status("R5", examination(Half())) == "warn"
    with pytest.raises(Unavailable, match="no gradient"):
        check("R5", examination(GradientKiller(Pixels(), detach=True)))


def test_r5_steps_off_kinks_that_images_sit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kinked(nn.Module):  # the second pixel of every query is 0.5 exactly
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return torch.stack([z[:, 0], 3 * torch.relu(z[:, 1] - 0.5)], 1)

    assert status("R5", examination(Kinked())) == "pass"
    monkeypatch.setattr("holdfast.evaluation.verdict.gradients.JITTER", 0.0)
    assert status("R5", examination(Kinked())) != "pass"


def test_r6_landscape() -> None:
    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + 3 * torch.sin(1000 * x.flatten(1))

    assert status("R6", examination(eps=0.01)) == "pass"
    assert status("R6", examination(eps=0.15)) == "warn"
    assert status("R6", examination(Waves(), eps=0.15)) == "fail"


def test_r7_inner_loop() -> None:
    class Purifies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                inner = x.detach().requires_grad_(True)
                (grad,) = torch.autograd.grad(inner.square().sum(), inner)
            return (x - 0.01 * grad).flatten(1)

    assert status("R7", examination()) == "pass"
    found = check("R7", examination(Purifies()))
    assert found.status == "fail"
    assert "grad" in found.detail


def test_r8_single_step() -> None:
    assert status("R8", examination()) == "pass"
    weak = PGD(steps=2, alpha=0.01)
    assert status("R8", examination(search=weak)) == "fail"
    assert status("R8", examination(search=weak, n=4)) == "pass"  # four queries prove nothing


def test_r9_steps() -> None:
    assert status("R9", examination(search=PGD(steps=25, alpha=0.01))) == "pass"
    short = check("R9", examination(search=PGD(steps=15, alpha=0.01)))
    assert (short.status, short.value) == ("fail", 1.0)
    creeping = examination(eps=0.15, search=PGD(steps=10, alpha=0.01))
    assert (check("R9", creeping).status, check("R9", creeping).value) == ("warn", 0.0)
    assert status("R9", examination(eps=0.15, search=PGD(steps=20, alpha=0.01))) == "pass"


def test_r10_last_steps() -> None:
    assert status("R10", examination(eps=0.15, search=PGD(steps=30, alpha=0.01))) == "pass"
    found = check("R10", examination(eps=0.15, search=PGD(steps=14, alpha=0.01)))
    assert (found.status, found.value) == ("fail", 0.0)
    assert status("R10", examination(search=PGD(steps=30, alpha=0.01))) == "pass"  # nothing held


def test_r11_restarts() -> None:
    assert status("R11", examination(eps=0.15)) == "pass"
    found = check("R11", examination(n=64, search=Lucky(), eps=0.25))
    assert found.status == "fail"
    assert 0.1 < found.value < 0.5  # of the 0.51 that five leave, another half


def test_r12_step_size() -> None:
    assert status("R12", examination()) == "pass"
    assert status("R12", examination(search=PGD(steps=10, alpha=0.001))) == "fail"
    assert status("R12", examination(search=APGD(steps=10))) == "pass"


def test_r13_monotone() -> None:
    found = check("R13", examination())
    assert found.status == "pass"
    assert "100 %" in found.detail
    assert status("R13", examination(search=Jump(0.2, only_below=0.2))) == "fail"
    assert status("R13", examination(search=Jump(0.2, only_below=0.2), n=2)) == "warn"  # not significant


def test_r14_large_budget() -> None:
    assert status("R14", examination(eps=0.1)) == "pass"
    assert status("R14", examination(eps=0.1, threat=L2Threat(eps=0.1))) == "pass"
    assert status("R14", examination(GradientKiller(Pixels()), eps=0.1)) == "fail"


def test_r15_oracle_swap() -> None:
    assert status("R15", examination()) == "pass"
    x = torch.rand(12, 1, 2, 1, generator=stream(0, "x"))
    y = torch.arange(12) % 3
    swapped = retrieval_task(Pixels(), x, y)
    right = replace(
        swapped, y=torch.zeros_like(y), gallery=replace_labels(swapped.gallery, torch.zeros_like(y))
    )
    with pytest.raises(Unavailable, match="more than one class"):
        check("R15", examination(task=right))
    # An evaluation whose gallery is not what the encoder makes of its images.
    two = torch.arange(12) % 2
    far = torch.stack([two.float(), torch.zeros(12)], 1)
    wrong = replace(swapped, y=two, z=far, gallery=Gallery(far, two, torch.arange(12)), encoder=Constant())
    assert status("R15", examination(task=wrong)) == "fail"


def replace_labels(gallery: Gallery, y: Tensor) -> Gallery:
    return Gallery(gallery.z, y, gallery.ids)


class Constant(nn.Module):
    """Everything is an image of class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2)


def test_r16_random_noise() -> None:
    assert status("R16", examination(eps=0.15)) == "pass"
    found = check("R16", examination(GradientKiller(Pixels())))
    assert found.status == "fail"
    assert found.value == 1.0


def test_r17_black_box() -> None:
    assert status("R17", examination(n=4, eps=0.15)) == "pass"
    assert status("R17", examination(GradientKiller(Pixels()))) == "fail"


def test_r18_list_only() -> None:
    assert status("R18", examination(n=4, eps=0.15)) == "pass"
    assert status("R18", examination(GradientKiller(Pixels()))) == "fail"


def test_r19_transfer_and_r21_control() -> None:
    gallery_x = torch.tensor([[0.1, 0.5], [0.9, 0.5]])[:, None, :, None]
    twin = {"twin": Pixels(), "gallery_x": gallery_x}
    assert status("R19", examination(**twin)) == "pass"
    masked = examination(GradientKiller(Pixels()), **twin)
    assert status("R19", masked) == "fail"
    assert masked.found["transfer twin"].all()
    assert status("R21", examination(**twin)) == "pass"
    assert status("R21", examination(eps=0.15, **twin)) == "fail"
    assert status("R19", examination()) == status("R21", examination()) == "skipped"
    with pytest.raises(Unavailable, match="gallery_x"):
        check("R21", examination(twin=Pixels()))


def test_r20_objectives_and_r35_targets() -> None:
    made = task()
    over = made.z.clone()
    over[:12, 0] = 1 - over[:12, 0]  # another attack breaks twelve of 24
    strong, none = [result(made, over)], [result(made, made.z)]
    assert check("R20", examination(eps=0.15, results=strong)).status == "pass"  # it is the best one itself
    rest = made.z.clone()
    rest[12:, 0] = 1 - rest[12:, 0]
    two = [*strong, result(made, rest, "TARGET1")]
    found = check("R20", examination(eps=0.15, results=two))
    assert (found.status, found.value) == ("fail", 0.5)
    assert status("R20", examination(eps=0.15, results=two, union=True)) == "pass"
    assert status("R20", examination()) == "skipped"
    assert status("R35", examination(eps=0.15, results=strong)) == "fail"
    assert status("R35", examination(eps=0.15, results=none)) == "pass"
    assert status("R35", examination()) == "skipped"


def test_r20_and_r35_run_what_is_missing_at_full() -> None:
    e = examination(level="full")
    assert status("R20", e) == "pass"
    assert {"objective TARGET1", "objective ES"} <= set(e.found)
    assert status("R35", e) == "pass"


def test_r22_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = stream(0, "controls")
    centres = torch.rand(8, 1, 4, 4, generator=generator).round()
    y = torch.arange(96) % 8
    x = (centres[y] + 0.1 * torch.rand(96, 1, 4, 4, generator=generator)).clamp(0, 1)
    made = retrieval_task(Centred(), x, y)
    e = examination(task=made, threat=LinfThreat(eps=0.05))
    assert check("R22", e).value == 6
    assert status("R22", e) == "pass"
    monkeypatch.setattr(selftest, "CONTROLS", {"not broken": lambda encoder: encoder})
    assert status("R22", e) == "fail"
    collapsed = examination(task=retrieval_task(Constant(), x, y))
    assert status("R22", collapsed) == "skipped"


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x.flatten(1) - 0.5, dim=1)


def test_r23_silent_success() -> None:
    @dataclass(frozen=True)
    class Forgets:
        gradient: Any = field(default_factory=Autograd)

        def __call__(
            self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
        ) -> Tensor:
            objective(encoder(threat.project(1 - x0, x0)))
            objective(encoder(x0))
            return x0.clone()

    assert status("R23", examination()) == "pass"
    found = check("R23", examination(search=Forgets()))
    assert (found.status, found.value) == ("fail", 1.0)
    assert status("R23", examination(search=Square(queries=3))) == "skipped"


def embedded(z: Tensor, y: Tensor) -> RetrievalTask:
    """A task of given embeddings, its own gallery."""
    n = len(z)
    return RetrievalTask(
        encoder=Pixels(), x=torch.zeros(n, 1, 2, 1), y=y, z=z, gallery=Gallery(z, y, torch.arange(n)),
        self_index=torch.arange(n), index=torch.arange(n), distance=Euclidean(),
    )  # fmt: skip


def test_r24_collapse() -> None:
    y = torch.arange(60) % 6
    noise = torch.randn(60, 16, generator=stream(0, "z"))
    apart = nn.functional.one_hot(y, 16) * 4 + 0.5 * noise
    assert status("R24", examination(task=embedded(apart, y))) == "pass"
    near = nn.functional.one_hot(torch.zeros_like(y), 16) * 100 + apart
    assert check("R24", examination(task=embedded(near, y))).value > 0.97
    assert status("R24", examination(task=embedded(near, y))) == "fail"
    line = torch.cat([y[:, None].float() - 2.5, torch.zeros(60, 15)], 1)  # effective rank 1, ties
    assert status("R24", examination(task=embedded(line, y))) == "fail"
    assert status("R24", examination(task=embedded(noise, y))) == "fail"  # no better than chance
    few = torch.cat([apart[:, :3], torch.zeros(60, 13)], 1)[y < 3]  # three directions
    assert status("R24", examination(task=embedded(few, y[y < 3]))) == "warn"


def test_r25_robust_at_most_clean() -> None:
    e = examination()
    good = result(e.task, e.task.z)
    assert status("R25", examination(results=[good])) == "pass"
    low = {"recall@1": torch.zeros(24)}
    better = good._replace(outcome=replace(good.outcome, clean=low))
    assert status("R25", examination(results=[better])) == "fail"
    lower = Entry(label="CA-", attack=None, higher_is_robust={"recall@1": False})
    assert status("R25", examination(results=[better._replace(entry=lower)])) == "pass"
    assert status("R25", examination()) == "skipped"


def certified(radius: Tensor, correct: Tensor, norm: float = 2.0) -> Certificate:
    return Certificate(radius=radius, correct=correct, norm=norm)


def test_r26_certificates_against_attacks() -> None:
    right = torch.ones(24, dtype=torch.bool)
    sound = certified(torch.full((24,), 0.1999), right)
    assert status("R26", examination(certificate=sound)) == "pass"
    bold = certified(torch.full((24,), 0.21), right)
    found = check("R26", examination(certificate=bold, search=PGD(steps=10, alpha=0.1)))
    assert (found.status, found.value) == ("fail", 24.0)
    one = certified(torch.where(torch.arange(24) == 0, 0.21, 0.0), right)
    assert status("R26", examination(certificate=one)) == "fail"
    assert status("R26", examination(certificate=replace(one, alpha=0.5))) == "pass"  # chance allows it
    nobody = certified(torch.full((24,), 0.21), ~right)
    assert status("R26", examination(certificate=nobody)) == "pass"
    assert status("R26", examination()) == "skipped"


def test_r27_certified_at_most_empirical() -> None:
    right = torch.ones(24, dtype=torch.bool)
    assert status("R27", examination(certificate=certified(torch.full((24,), 0.19), right))) == "pass"
    assert status("R27", examination(certificate=certified(torch.full((24,), 9.0), right))) == "fail"
    with pytest.raises(InvalidArgument, match="radius"):
        certified(torch.full((24,), math.nan), right)
    e = examination(eps=0.15, certificate=certified(torch.full((24,), 0.19), right))
    assert status("R27", e) == "pass"  # nothing breaks, nothing is promised beyond
    with pytest.raises(InvalidArgument, match="l2 radii"):
        examination(certificate=certified(torch.zeros(24), right, norm=math.inf))
    with pytest.raises(InvalidArgument, match="24 queries"):
        examination(certificate=certified(torch.zeros(3), right[:3]))


def test_r28_ensemble() -> None:
    gallery_x = torch.tensor([[0.1, 0.5], [0.9, 0.5]])[:, None, :, None]
    both = {"members": (Pixels(), Pixels()), "gallery_x": gallery_x}
    assert status("R28", examination(**both)) == "pass"
    found = check("R28", examination(GradientKiller(Pixels()), **both))
    assert (found.status, found.value) == ("fail", 1.0)
    assert status("R28", examination()) == "skipped"


def test_r28_sums_gradients_over_batches() -> None:
    gallery_x = torch.tensor([[0.1, 0.5], [0.9, 0.5]])[:, None, :, None]
    e = examination(n=150, members=(Pixels(), Pixels()), gallery_x=gallery_x)
    assert status("R28", e) == "pass"
    assert e.found["ensemble sum"].shape == (150,)
    assert e.found["ensemble sum"].all()


def test_r29_index() -> None:
    made = task()

    def exact(z: Tensor, k: int) -> Tensor:
        return torch.cdist(z, made.gallery.z).topk(k, largest=False).indices

    def stale(z: Tensor, k: int) -> Tensor:  # returns what it returned for the clean queries
        return exact(made.z, k)

    assert status("R29", examination(index=exact)) == "pass"
    found = check("R29", examination(index=stale))
    assert (found.status, found.value) == ("fail", 1.0)
    assert status("R29", examination()) == "skipped"


def test_r30_mode() -> None:
    class Mode(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if not self.training else 1 - x.flatten(1)

    def trains(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
        encoder.train()
        objective(encoder(x0))
        encoder.eval()
        return x0.clone()

    def leaves(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
        encoder.train()
        return x0.clone()

    assert status("R30", examination(Mode())) == "pass"
    assert status("R30", examination(Mode().eval(), search=trains)) == "fail"
    assert status("R30", examination(Pixels().eval(), search=trains)) == "pass"  # its mode changes nothing
    assert status("R30", examination(Pixels().eval(), search=leaves)) == "fail"
    assert status("R30", examination(lambda x: x.flatten(1))) == "pass"


def test_r31_precision() -> None:
    class Masked(nn.Module):  # low precision breaks the gradient and nothing else
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return GradientKiller(nn.Identity())(z) if torch.is_autocast_enabled("cpu") else z

    assert status("R31", examination()) == "skipped"
    assert status("R31", examination(level="full")) == "pass"
    assert status("R31", examination(Masked(), level="full")) == "fail"
    assert status("R31", examination(Masked(), precision="bf16")) == "fail"
    assert status("R31", examination(precision="bf16")) == "pass"


@pytest.mark.parametrize(("n", "expected"), [(24, "fail"), (800, "warn"), (2500, "pass")])
def test_r32_power(n: int, expected: str) -> None:
    made = task(n=n)
    half = made.z.clone()
    half[: n // 2, 0] = 1 - half[: n // 2, 0]
    found = check("R32", examination(task=made, results=[result(made, half)]))
    assert found.status == expected
    assert found.value == pytest.approx(0.98 / math.sqrt(n + 3.84), rel=0.01)


def test_r32_takes_the_worst_attack_and_some_queries() -> None:
    made = task(n=100)
    part = made.rows(torch.arange(0, 100, 2))
    some = result(part, part.z)._replace(rows=torch.arange(0, 100, 2))
    all_wrong = result(part, 1 - part.z, "TARGET1")._replace(rows=torch.arange(0, 100, 2))
    found = check("R32", examination(task=made, results=[some, all_wrong]))
    assert "0 % of 50 queries" in found.detail
    assert status("R32", examination(n=24)) == "fail"  # without results: the primary attack


def test_r33_seeds() -> None:
    assert status("R33", examination(claim=Claim((0.50, 0.51, 0.52), (0.40, 0.42, 0.41)))) == "pass"
    assert status("R33", examination(claim=Claim((0.5, 0.51), (0.4, 0.41)))) == "fail"
    assert status("R33", examination(claim=Claim((0.5, 0.4, 0.6), (0.49, 0.41, 0.58)))) == "fail"
    far = Claim((0.50, 0.51, 0.52), (0.40, 0.42, 0.41), p_value=0.2)
    assert status("R33", examination(claim=far)) == "fail"
    assert status("R33", examination(claim=far._replace(p_value=0.01))) == "pass"
    assert status("R33", examination(claim=far._replace(p_value=0.01, draws=1))) == "fail"
    assert status("R33", examination(claim=Claim((0.5, 0.51, 0.52), (0.3, 0.31, 0.32, 0.33)))) == "pass"
    assert status("R33", examination()) == "skipped"


def test_r34_planted_points() -> None:
    assert status("R34", examination(eps=0.1)) == "pass"
    assert status("R34", examination(GradientKiller(Pixels()), eps=0.1)) == "fail"
    with pytest.raises(Unavailable, match="linear readout"):
        check("R34", examination(task=replace(task(), encoder=Constant())))


def test_r36_leakage() -> None:
    generator = stream(0, "images")
    x, y = torch.rand(30, 1, 8, 8, generator=generator), torch.arange(30) % 2
    made = retrieval_task(Pixels(), x, y)
    assert status("R36", examination(task=made)) == "pass"
    twice = x.clone()
    twice[7] = twice[4] + 1 / 255
    assert status("R36", examination(task=retrieval_task(Pixels(), twice, y))) == "fail"
    assert status("R36", examination(task=made, train_x=1 - x)) == "pass"
    assert status("R36", examination(task=made, train_x=x)) == "fail"
    assert status("R36", examination(task=made, train_y=torch.tensor([2, 3]))) == "pass"
    assert status("R36", examination(task=made, train_y=torch.tensor([1, 3]))) == "fail"
    assert status("R36", examination()) == "skipped"  # the gallery's images are not known


def test_near_duplicates_leave_the_query_itself_out() -> None:
    x = torch.rand(5, 1, 9, 9, generator=stream(1, "images"))
    none = near_duplicates(x, x, torch.arange(5))
    assert not none.any()
    assert near_duplicates(x, x, torch.full((5,), -1)).all()
    far = x.clone()
    far[2, 0, 0, 0] += 3 / 255
    assert near_duplicates(x, far, torch.full((5,), -1)).tolist() == [True, True, False, True, True]


def test_a_quantised_input_has_no_gradient() -> None:
    assert status("R4", examination(InputQuantiser(Pixels(), levels=3))) == "fail"


def test_threats_of_their_own_for_every_row() -> None:
    """Rows 0 to 11 may move far enough and the others not, whatever part of the task is looked at."""
    radii = torch.where(torch.arange(24) < 12, 0.25, 0.15)
    ball = RowBall(threat=LinfThreat(eps=0.0), radii=radii)
    e = examination(threat=ball, search=PGD(steps=10, alpha=0.2), queries=9)
    assert torch.equal(e.primary.success, e.rows < 12)
    for name in ("R3", "R4", "R8", "R9", "R16"):
        assert status(name, e) == "pass"
    masked = examination(GradientKiller(Pixels()), threat=ball)
    assert check("R16", masked).value == 0.5
    for name in ("R2", "R13"):
        with pytest.raises(Unavailable, match="no single radius"):
            check(name, e)
    assert status("R14", e) == "skipped"


def test_every_check_of_the_page_is_there() -> None:
    assert list(CHECKS) == [f"R{number}" for number in range(1, 37)]
    assert {c.id for c in CHECKS.values() if c.level == "full"} == {
        "R11", "R12", "R17", "R18", "R19", "R28", "R34"
    }  # fmt: skip
