"""The adapter to pytorch-metric-learning: with a stand-in for it, without it, and with the real package."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.config import from_plain, to_plain
from holdfast.data import DataSplit, ImageSet
from holdfast.errors import InvalidArgument, MissingExtra, UnknownName
from holdfast.functional.distance import Euclidean
from holdfast.losses import PML, FromPML, LearnedPML, LiftedStructure
from holdfast.recipes import recipe
from holdfast.rng import seeded, stream
from holdfast.training import train

LABELS = torch.tensor([0, 1, 2, 0]).repeat_interleave(2)


class Base(nn.Module):
    """What the package's losses have in common."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight


class Spread(Base):
    """Without parameters."""

    def __init__(self, power: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = power

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.weight * z.pow(self.power).mean()


class Proxies(Base):
    """With parameters; both sizes are required."""

    def __init__(self, num_classes: int, embedding_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.weight * (z - self.proxies[y]).square().mean()


class MoreProxies(Proxies):
    """Hands all sizes on, as some of the package do."""

    def __init__(self, *args: Any, margin: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Unreduced(Base):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return z.sum(1)


class Picky(Base):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        raise ValueError("labels are not supported")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("pytorch_metric_learning"), ModuleType("pytorch_metric_learning.losses")
    module.BaseMetricLossFunction = Base  # type: ignore[attr-defined]
    for cls in (Spread, Proxies, MoreProxies, Unreduced, Picky):
        setattr(module, cls.__name__, cls)
    module.Adam = torch.optim.Adam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", package)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", module)


@pytest.fixture
def z() -> Tensor:
    return F.normalize(torch.randn(8, 4, generator=stream(0)), dim=1)


def test_the_value_of_the_batch_stands_at_every_row(stand_in: None, z: Tensor) -> None:
    loss = PML(loss="Spread", options=(("power", 4), ("weight", 3.0)))
    for form in (loss, loss.setup(4, 3), FromPML(Spread(4, weight=3.0))):
        got = form(z, LABELS, Euclidean())
        assert got.shape == (8,)
        assert torch.equal(got, (3 * z.pow(4).mean()).expand(8))
        assert form.reads == "batch"


def test_gradient_of_the_mean_is_that_of_the_value(stand_in: None, z: Tensor) -> None:
    z.requires_grad_()
    (got,) = torch.autograd.grad(PML(loss="Spread")(z, LABELS, Euclidean()).mean(), z)
    torch.testing.assert_close(got, 2 * z.detach() / z.numel())


@pytest.mark.parametrize("name", ["Proxies", "MoreProxies"])
def test_required_sizes_are_filled_in_and_parameters_learnt(name: str, stand_in: None, z: Tensor) -> None:
    with seeded(0, "proxies"):
        module = PML(loss=name).setup(4, 3)
    with seeded(0, "proxies"):
        again = PML(loss=name).setup(4, 3)
    assert isinstance(module, LearnedPML)
    (proxies,) = module.parameters()
    assert proxies.shape == (3, 4)
    assert torch.equal(proxies, *again.parameters())
    (grad,) = torch.autograd.grad(module(z, LABELS, Euclidean()).mean(), proxies)
    assert bool((grad != 0).any())
    with pytest.raises(InvalidArgument, match="call setup"):
        PML(loss=name)(z, LABELS, Euclidean())
    given = PML(loss=name, options=(("num_classes", 7), ("embedding_size", 4)))
    assert next(given.setup(4, 3).parameters()).shape == (7, 4)  # an option wins
    with pytest.raises(InvalidArgument, match="call setup"):  # or it would start anew at each call
        given(z, LABELS, Euclidean())


def test_an_object_is_learnt_as_it_is() -> None:
    held = Proxies(3, 4)
    assert next(FromPML(held).setup(99, 99).parameters()) is held.proxies


def test_errors_of_the_call(stand_in: None, z: Tensor) -> None:
    with pytest.raises(InvalidArgument, match="one number"):
        PML(loss="Unreduced")(z, LABELS, Euclidean())
    with pytest.raises(InvalidArgument, match="labels are not supported"):
        PML(loss="Picky")(z, LABELS, Euclidean())
    with pytest.raises(InvalidArgument, match="shapes"):
        PML(loss="Spread")(z, LABELS[:3], Euclidean())
    with pytest.raises(InvalidArgument, match="shapes"):
        FromPML(Spread())(z[0], LABELS, Euclidean())


def test_errors_of_building(stand_in: None) -> None:
    with pytest.raises(UnknownName, match="did you mean Spread"):
        PML(loss="Spraed").setup(4, 3)
    for name in ("Adam", "Base", "BaseMetricLossFunction", "os.system", "__name__"):
        with pytest.raises(UnknownName):  # losses only
            PML(loss=name).setup(4, 3)
    with pytest.raises(InvalidArgument, match="options: need what Spread accepts"):
        PML(loss="Spread", options=(("colour", "red"),)).setup(4, 3)


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"loss": Spread()}, "loss"),
        ({"options": {"power": 2}}, "options"),
        ({"options": (("power",),)}, "options"),
        ({"options": ((2, "power"),)}, "options"),
        ({"options": (("power", Spread()),)}, "options"),
        ({"options": (("power", 2), ("power", 3))}, "options"),
    ],
)
def test_settings_are_checked_without_the_package(fields: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        PML(**fields)


def test_settings_are_plain_data_and_objects_are_not() -> None:
    loss = PML(loss="Spread", options=(("power", 4), ("name", None)))
    assert from_plain(to_plain(loss), {"PML": PML}) == loss
    assert hash(loss) == hash(PML(loss="Spread", options=(("power", 4), ("name", None))))
    with pytest.raises(InvalidArgument, match="Spread"):
        to_plain(FromPML(Spread()))
    with pytest.raises(InvalidArgument, match="use PML"):
        from_plain({"type": "FromPML", "loss": "Spread"}, {"FromPML": FromPML})


def test_an_object_trains_where_nothing_is_stored(stand_in: None, tmp_path: Path) -> None:
    plain = recipe("plain")
    run = replace(plain, epochs=1, defense=replace(plain.defense, loss=FromPML(Spread()), miner=None))
    x = torch.rand(40, 1, 8, 8, generator=stream(0))
    images = ImageSet(x, torch.arange(40) % 4, "random")
    result = train(run, DataSplit(images, images, "random", "closed"))
    assert result.steps > 0
    with pytest.raises(InvalidArgument, match="Spread"):  # a folder keeps settings, which an object is not
        train(run, DataSplit(images, images, "random", "closed"), folder=tmp_path / "run")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, z: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    monkeypatch.delitem(sys.modules, "pytorch_metric_learning.losses", raising=False)
    loss = PML()
    with pytest.raises(MissingExtra, match=r"holdfast\[pml\]"):
        loss.setup(4, 3)
    with pytest.raises(MissingExtra, match="pytorch-metric-learning"):
        loss(z, LABELS, Euclidean())


REASON = "needs the extra pml (pytorch-metric-learning)"


def test_losses_of_the_real_package(z: Tensor) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason=REASON)
    expected = losses.SupConLoss(temperature=0.3)(z, LABELS)
    got = PML(loss="SupConLoss", options=(("temperature", 0.3),))(z, LABELS, Euclidean())
    assert torch.equal(got, expected.expand(8))
    margin = losses.TripletMarginLoss(margin=0.3)
    assert torch.equal(FromPML(margin)(z, LABELS, Euclidean()), margin(z, LABELS).expand(8))


def test_our_lifted_loss_is_that_of_the_real_package(z: Tensor) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason=REASON)
    distances = pytest.importorskip("pytorch_metric_learning.distances", reason=REASON)
    plain = distances.LpDistance(normalize_embeddings=False)
    theirs = losses.GeneralizedLiftedStructureLoss(neg_margin=0.2, pos_margin=0, distance=plain)
    z, y = z.double(), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    ours = LiftedStructure(margin=0.2, weight=0.0)(z, y, Euclidean())
    torch.testing.assert_close(ours.mean(), theirs(z, y))


@pytest.mark.parametrize(
    "name", ["ProxyAnchorLoss", "ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss", "P2SGradLoss"]
)
def test_learnable_losses_of_the_real_package(name: str, z: Tensor) -> None:
    pytest.importorskip("pytorch_metric_learning.losses", reason=REASON)
    with seeded(0, name):
        module = PML(loss=name).setup(4, 3)
    z.requires_grad_()
    value = module(z, LABELS, Euclidean())
    grads = torch.autograd.grad(value.mean(), [z, *module.parameters()])
    assert value.shape == (8,)
    assert len(grads) > 1
    assert all(bool(torch.isfinite(g).all() & (g != 0).any()) for g in grads)
    with pytest.raises(InvalidArgument, match="call setup"):
        PML(loss=name)(z, LABELS, Euclidean())


def test_a_loss_of_the_real_package_that_wants_other_input(z: Tensor) -> None:
    pytest.importorskip("pytorch_metric_learning.losses", reason=REASON)
    with pytest.raises(InvalidArgument, match="VICRegLoss"):
        PML(loss="VICRegLoss")(z, LABELS, Euclidean())
