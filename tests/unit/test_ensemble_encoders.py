"""Joint embeddings: mean of members' distances, one file, one encoder for everything behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.encoders import C2F2, ENCODERS, Ensemble, Heads, LipschitzEncoder, SmallCNN, load, save
from holdfast.errors import HoldfastError, InvalidArgument
from holdfast.search import frozen

SHAPE = (1, 8, 8)
SPECS: dict[str, Any] = {
    "two": Ensemble(members=(SmallCNN(width=4, embedding_dim=6), SmallCNN(width=4, embedding_dim=6))),
    "different": Ensemble(members=(SmallCNN(width=4, embedding_dim=6), C2F2(width=0.1, embedding_dim=10))),
    "one": Ensemble(members=(SmallCNN(width=4, embedding_dim=6),)),
    "raw": Ensemble(members=(SmallCNN(width=4, normalize=False), SmallCNN(width=4, normalize=False))),
    "lipschitz": Ensemble(members=(LipschitzEncoder(width=4, units=8, embedding_dim=8),) * 2),
    "heads": Heads(part=SmallCNN(width=4, embedding_dim=6), count=3),
}


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Any:
    return SPECS[request.param]


def test_distances_are_means_of_the_members(spec: Any, x: Tensor) -> None:
    encoder = spec.build(SHAPE, seed=3).double()
    with torch.no_grad():
        z = encoder(x.double())
        parts = encoder.split(z)
        alone = [encoder.member(m)(x.double()) for m in range(len(encoder))]
    assert encoder.embedding_dim == sum(encoder.widths) == z.shape[1]
    if encoder.normalize:
        torch.testing.assert_close(z.norm(dim=1), torch.ones(7).double(), atol=1e-12, rtol=0)
    for part, own in zip(parts, alone, strict=True):
        torch.testing.assert_close(part, own, atol=1e-12, rtol=0)
    joint = torch.cdist(z, z).square()
    mean = torch.stack([torch.cdist(part, part).square() for part in alone]).mean(0)
    torch.testing.assert_close(joint, mean, atol=1e-10, rtol=0)


def test_one_file_holds_the_ensemble(spec: Any, x: Tensor, tmp_path: Path) -> None:
    encoder = spec.build(SHAPE, seed=0).eval()
    save(encoder, tmp_path / "e.safetensors")
    again = load(tmp_path / "e.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), encoder(x), atol=1e-6, rtol=0)
    assert again.spec == spec


def test_a_member_alone_is_the_encoder_it_would_be_without_the_others(x: Tensor) -> None:
    spec = SPECS["two"]
    encoder = spec.build(SHAPE, seed=5)
    first = spec.members[0].build(SHAPE, seed=5)
    with torch.no_grad():
        assert torch.equal(encoder.member(0)(x), first(x))
        assert not torch.allclose(encoder.member(0)(x), encoder.member(1)(x))


def test_members_share_weights_and_modes() -> None:
    for name in ("two", "heads"):
        encoder = SPECS[name].build(SHAPE, seed=0)
        for m in range(len(encoder)):
            own = {id(p) for p in encoder.member(m).parameters()}
            assert own
            assert own < {id(p) for p in encoder.parameters()}
        encoder.eval()
        assert not encoder.member(1).training
        encoder.train()
        member = encoder.member(1)
        with frozen(member):
            assert not any(module.training for module in member.modules())
        assert all(module.training for module in encoder.modules())
        next(encoder.member(0).trunk.children()).eval()  # a layer that is frozen stays so
        assert not all(module.training for module in encoder.member(0).modules())
        assert encoder.member(0).training
    heads = SPECS["heads"].build(SHAPE, seed=0)
    small = SPECS["heads"].part.build(SHAPE, seed=0)
    extra = 2 * sum(p.numel() for p in small.head.parameters())
    assert sum(p.numel() for p in heads.parameters()) == sum(p.numel() for p in small.parameters()) + extra


def test_without_leaves_one_member_out(x: Tensor) -> None:
    encoder = SPECS["different"].build(SHAPE, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(encoder.without(1)(x), encoder.member(0)(x))
    with pytest.raises(InvalidArgument, match="two members"):
        SPECS["one"].build(SHAPE, seed=0).without(0)


def test_wide_networks_have_about_as_many_parameters_as_an_ensemble() -> None:
    def size(encoder: Any) -> int:
        return sum(p.numel() for p in encoder.build((1, 28, 28), seed=0).parameters())

    assert size(C2F2(width=1.0)) == 3_789_184
    three = size(Ensemble(members=(C2F2(),) * 3))
    assert abs(size(C2F2(width=1.64, embedding_dim=1536)) / three - 1) < 0.01


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Ensemble(members=()), "members"),
        (lambda: Ensemble(members=(SmallCNN(), LipschitzEncoder())), "all normalise"),
        (lambda: Ensemble(members=(Heads(),)), "plain encoders"),
        (lambda: Ensemble(members=("small-cnn",)), "plain encoders"),
        (lambda: Heads(count=0), "count"),
        (lambda: Heads(part=Ensemble()), "part"),
        (lambda: Heads(part=LipschitzEncoder()).build(SHAPE, 0), "trunk"),
        (lambda: C2F2(width=0.0), "width"),
        (lambda: C2F2(width=float("inf")), "width"),
    ],
)
def test_bad_specs_are_refused(make: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        make()


def test_files_cannot_nest_specs_without_end(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    inner = '{"name": "small-cnn"}'
    for _ in range(200):
        inner = f'{{"name": "ensemble", "members": [{inner}]}}'
    for text in (
        f'{{"schema": 1, "shape": [1, 8, 8], "spec": {inner}}}',
        '{"schema": 1, "shape": [1, 8, 8], "spec": {"name": "ensemble", "members": [{"name": "os"}]}}',
        '{"schema": 1, "shape": [1, 8, 8], "spec": {"name": "ensemble", "members": [{"weights": "/x"}]}}',
        '{"schema": 1, "shape": [1, 8, 8], "spec": {"name": "ensemble", "members": [3]}}',
    ):
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"holdfast": text})
        with pytest.raises(HoldfastError, match=r"bad\.safetensors"):
            load(tmp_path / "bad.safetensors")


def test_the_table_names_both() -> None:
    assert ENCODERS["ensemble"] is Ensemble
    assert ENCODERS["heads"] is Heads
