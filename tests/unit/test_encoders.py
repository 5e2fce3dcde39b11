from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from holdfast.config import allow, from_plain, to_plain
from holdfast.data import Digits, FashionMNIST
from holdfast.encoders import C2F2, ENCODERS, Encoder, LinearEncoder, SmallCNN, Standardize, load, save
from holdfast.errors import CorruptFile, InvalidArgument, RunError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SPECS = [C2F2(embedding_dim=16), SmallCNN(width=8, embedding_dim=6), LinearEncoder(3)]


def batch(shape: tuple[int, int, int], n: int = 5) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 9), (1, 28, 28), (2, 64, 33), (1, 4, 4)])
def test_every_encoder_embeds_every_size(spec: C2F2, shape: tuple[int, int, int]) -> None:
    encoder = spec.build(shape, seed=1)
    z = encoder(batch(shape))
    assert z.shape == (5, spec.embedding_dim)
    assert encoder.embedding_dim == spec.embedding_dim
    assert encoder.shape == shape
    assert encoder.spec == spec
    assert encoder.normalize is spec.normalize
    norms = z.norm(dim=1)
    assert torch.allclose(norms, torch.ones(5)) is spec.normalize
    assert isinstance(encoder.head, nn.Linear)
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_weights_depend_on_the_seed_alone(spec: C2F2) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a = spec.build((1, 8, 8), seed=1).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    b = spec.build((1, 8, 8), seed=1).state_dict()
    c = spec.build((1, 8, 8), seed=2).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_each_image_is_embedded_alone() -> None:
    encoder = SmallCNN().build((1, 8, 8), seed=0).double()
    x = batch((1, 8, 8)).double()
    assert torch.allclose(encoder(x)[2], encoder(x[2:3])[0], atol=1e-12)


def test_c2f2_is_the_published_network() -> None:
    encoder = C2F2().build((1, 28, 28), seed=0)
    shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    assert shapes == {
        "trunk.0.weight": (32, 1, 5, 5),
        "trunk.0.bias": (32,),
        "trunk.3.weight": (64, 32, 5, 5),
        "trunk.3.bias": (64,),
        "trunk.7.weight": (1024, 3136),
        "trunk.7.bias": (1024,),
        "head.weight": (512, 1024),
        "head.bias": (512,),
    }
    x = batch((1, 28, 28))
    first, second, linear = (encoder.trunk[i] for i in (0, 3, 7))
    published = nn.Sequential(
        first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear, nn.ReLU()
    )
    seen = []
    for trunk in (encoder.trunk, published):
        moved = x.clone().requires_grad_(True)
        z = trunk(moved)
        seen.append((z, torch.autograd.grad(z.square().sum(), moved)[0]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(encoder.standardize(x), x)
    bound = 1 / math.sqrt(25)  # PyTorch's default for a convolution with 25 inputs
    assert 0.9 * bound < encoder.trunk[0].weight.abs().max().item() <= bound


def test_small_cnn_is_small() -> None:
    count = sum(p.numel() for p in SmallCNN().build((1, 8, 8), seed=0).parameters())
    assert 90_000 < count < 130_000
    assert sum(p.numel() for p in SmallCNN().build((1, 64, 64), seed=0).parameters()) < 300_000


def test_linear_is_a_matrix() -> None:
    encoder = LinearEncoder(2).build((1, 1, 3), seed=0)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]))
    z = encoder(torch.tensor([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3))
    assert z.tolist() == [[2.0, -0.5]]
    unit = LinearEncoder(2, normalize=True).build((1, 1, 3), seed=0)
    assert unit.head.bias is None
    unit.load_state_dict(encoder.state_dict())
    expected = torch.tensor([[2.0, -0.5]]) / math.sqrt(4.25)
    assert torch.allclose(unit(torch.tensor([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3)), expected)


def test_standardize_by_channel() -> None:
    layer = Standardize((0.5, 0.25), (0.5, 2.0), channels=2)
    x = torch.tensor([1.0, 0.75]).reshape(1, 2, 1, 1)
    assert layer(x).flatten().tolist() == [1.0, 0.25]
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "std"}
    assert Standardize((0.5,), (0.5,), channels=3)(torch.ones(1, 3, 1, 1)).flatten().tolist() == [1.0] * 3


def test_standardisation_is_inside_the_encoder_and_in_the_gradient() -> None:
    fields = {"embedding_dim": 4, "normalize": False}
    plain = C2F2(**fields).build((1, 8, 8), seed=0)  # type: ignore[arg-type]
    scaled = C2F2(mean=(0.5,), std=(0.25,), **fields).build((1, 8, 8), seed=0)  # type: ignore[arg-type]
    x = batch((1, 8, 8)).requires_grad_()
    assert torch.allclose(scaled(x), plain((x - 0.5) / 0.25))
    (a,) = torch.autograd.grad(scaled(x).sum(), x)
    inner = ((x - 0.5) / 0.25).detach().requires_grad_()
    (b,) = torch.autograd.grad(plain(inner).sum(), inner)
    assert torch.allclose(a, 4 * b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 3, 8, 8), r"\(n, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 9), r"got \(2, 1, 8, 9\)"),
        (torch.zeros(1, 8, 8), r"got \(1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating-point"),
    ],
)
def test_wrong_inputs_are_told(x: torch.Tensor, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        SmallCNN().build((1, 8, 8), seed=0)(x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: C2F2(embedding_dim=0), "embedding_dim"),
        (lambda: SmallCNN(width=0), "width"),
        (lambda: SmallCNN(embedding_dim=True), "embedding_dim"),
        (lambda: LinearEncoder(2.0), "embedding_dim"),  # type: ignore[arg-type]
        (lambda: C2F2().build((1, 3, 28), seed=0), "shape"),
        (lambda: SmallCNN().build((0, 8, 8), seed=0), "shape"),
        (lambda: LinearEncoder(2).build((1, 8), seed=0), "shape"),  # type: ignore[arg-type]
        (lambda: C2F2(std=(0.0,)).build((1, 8, 8), seed=0), "std: need 1 or 1 finite numbers above 0"),
        (lambda: C2F2(mean=(float("nan"),)).build((1, 8, 8), seed=0), "mean"),
        (lambda: C2F2(mean=(0.1, 0.2)).build((3, 8, 8), seed=0), "mean: need 1 or 3"),
        (lambda: C2F2().build((1, 8, 8), seed=-1), "seed"),
    ],
)
def test_bad_settings_are_told(make: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make()  # type: ignore[operator]


def test_low_precision_is_normalised_in_float32() -> None:
    encoder = SmallCNN().build((1, 8, 8), seed=0)
    x = batch((1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = encoder(x)
    assert z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-6)  # bfloat16 would be off by 1e-3
    assert (z - encoder(x)).abs().max() < 0.05
    assert encoder.double()(x.double()).dtype == torch.float64


def test_a_zero_embedding_has_a_finite_gradient() -> None:
    encoder = LinearEncoder(2, normalize=True).build((1, 1, 3), seed=0)
    x = torch.zeros(1, 1, 1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x).sum(), x)
    assert encoder(x).tolist() == [[0.0, 0.0]]
    assert gradient.isfinite().all()


def test_no_images_give_no_embeddings() -> None:
    assert SmallCNN().build((1, 8, 8), seed=0)(torch.zeros(0, 1, 8, 8)).shape == (0, 128)


# storage


@pytest.mark.parametrize(
    "spec", [*SPECS, C2F2(embedding_dim=4, mean=(0.1, 0.2), std=(0.5,), normalize=False)], ids=repr
)
def test_round_trip(spec: C2F2, tmp_path: Path) -> None:
    encoder = spec.build((2, 9, 8), seed=5)
    with torch.no_grad():
        encoder.head.weight.mul_(1.5)
    path = tmp_path / "new" / "encoder.safetensors"
    save(encoder, path)
    assert [p.name for p in path.parent.iterdir()] == ["encoder.safetensors"]
    before = torch.random.get_rng_state()
    found = load(path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (found.spec, found.shape, type(found)) == (spec, (2, 9, 8), Encoder)
    x = batch((2, 9, 8))
    assert torch.equal(found(x), encoder(x))
    assert all(p.requires_grad and not p.is_meta for p in found.parameters())
    assert not any(b.requires_grad or b.is_meta for b in found.buffers())


def test_saving_replaces_and_keeps_dtype(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save(LinearEncoder(2).build((1, 2, 2), seed=0), path)
    save(LinearEncoder(3).build((1, 2, 2), seed=0).double(), path)
    found = load(path)
    assert found.embedding_dim == 3
    assert found.head.weight.dtype == torch.float64


def test_a_spec_outside_the_table_cannot_be_saved(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(LinearEncoder):
        pass

    encoder = Mine(2).build((1, 2, 2), seed=0)
    with pytest.raises(InvalidArgument, match="'Mine'"):
        save(encoder, tmp_path / "e")
    assert not list(tmp_path.iterdir())


GOOD = {"schema": 1, "spec": {"name": "linear", "embedding_dim": 2, "normalize": False}, "shape": [1, 2, 2]}
TENSORS = LinearEncoder(2).build((1, 2, 2), seed=0).state_dict()


def write(path: Path, header: object = GOOD, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(TENSORS if tensors is None else tensors, path, metadata={"holdfast": text})
    return path


def test_the_header_is_as_documented(tmp_path: Path) -> None:
    from safetensors import safe_open

    save(load(write(tmp_path / "a")), tmp_path / "b")
    with safe_open(tmp_path / "b", framework="pt") as file:
        header = json.loads(file.metadata()["holdfast"])
    assert len(header.pop("sha256")) == 64
    assert header == GOOD
    assert set(load_file(tmp_path / "b")) == {"standardize.mean", "standardize.std", "head.weight"}


def spec_with(**fields: object) -> dict[str, object]:
    return GOOD | {"spec": {**GOOD["spec"], **fields}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (GOOD | {"schema": 2}, "schema 2, this version reads 1"),
        ({"spec": {}}, "schema None"),
        ([1], r"schema \[1\]"),
        (GOOD | {"spec": "linear"}, "lacks 'spec' or 'shape'"),
        ({"schema": 1, "spec": GOOD["spec"]}, "lacks 'spec' or 'shape'"),
        (spec_with(name="os.system"), "known name"),
        (spec_with(name="linaer"), "did you mean linear"),
        (spec_with(name=["linear"]), "known name"),
        (spec_with(colour="red"), "cannot be built.*colour"),
        (spec_with(embedding_dim="2"), "cannot be built.*embedding_dim"),
        (spec_with(embedding_dim=10**40), "cannot be built"),
        (spec_with(embedding_dim=10**12), "head.weight' needs"),
        (GOOD | {"shape": [1, 2]}, "cannot be built.*shape"),
        (GOOD | {"shape": [1, 2, None]}, "cannot be built.*shape"),
        (GOOD | {"shape": [1, 2, 3]}, r"'head.weight' needs floating point of shape \(2, 6\)"),
        ({**GOOD, "spec": {"name": "c2f2", "mean": 3}, "shape": [1, 8, 8]}, "cannot be built"),
        ({**GOOD, "spec": {"name": "c2f2", "mean": ["a"]}, "shape": [1, 8, 8]}, "cannot be built"),
        ({**GOOD, "spec": {"name": "c2f2"}, "shape": [1, 8, 8]}, "missing .*'trunk.0.bias'"),
    ],
)
def test_bad_headers_are_told(tmp_path: Path, header: object, says: str) -> None:
    path = write(tmp_path / "e", header)
    with pytest.raises(RunError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_bad_tensors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "e"
    few = {k: v for k, v in TENSORS.items() if k != "head.weight"}
    for tensors, says in [
        (few, r"missing \['head.weight'\], surplus \[\]"),
        (TENSORS | {"extra": torch.zeros(1)}, r"missing \[\], surplus \['extra'\]"),
        (TENSORS | {"head.weight": torch.zeros(2, 5)}, r"\(2, 4\), got torch.float32 of \(2, 5\)"),
        (TENSORS | {"head.weight": torch.zeros(2, 4).int()}, "got torch.int32"),
    ]:
        with pytest.raises(RunError, match=says):
            load(write(path, tensors=tensors))


def test_bad_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with pytest.raises(RunError, match="no such file"):
        load(path)
    with pytest.raises(RunError, match="no such file"):
        load(tmp_path)
    save_file(TENSORS, path)
    with pytest.raises(RunError, match="without a 'holdfast' header"):
        load(path)
    with pytest.raises(CorruptFile, match="header is not JSON"):
        load(write(path, "{"))
    whole = write(path).read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile, match="not safetensors"):
            load(path)
    torch.save(TENSORS, path)  # a pickle is never opened
    with pytest.raises(CorruptFile, match="not safetensors"):
        load(path)


def test_the_table_builds_by_name() -> None:
    assert {name: spec.name for name, spec in ENCODERS.items()} == {name: name for name in ENCODERS}
    for name in ("c2f2", "small-cnn", "linear"):  # the others: test_backbones.py
        value = ENCODERS[name](embedding_dim=7)
        assert dataclasses.replace(value) == value
        assert value.build((1, 8, 8), seed=0).spec.name == name


def test_specs_survive_plain_data() -> None:
    for spec in (*SPECS, C2F2(mean=(0.1, 0.2), std=(0.5,), normalize=False)):
        plain = json.loads(json.dumps(to_plain(spec)))
        assert from_plain(plain, allow(*ENCODERS.values())) == spec


# against the published code, and on data


@pytest.mark.golden
@pytest.mark.skipif(
    not ((SHARED / "golden" / "weights").exists() and (SHARED / "data" / "fashion-mnist").exists()),
    reason="published weights or Fashion-MNIST are not here",
)
@pytest.mark.parametrize("run", ["plain_seed1", "hm_ics_seed2"])
def test_published_weights_give_the_published_recall(run: str) -> None:
    encoder = C2F2().build((1, 28, 28), seed=0)
    place = {"0": "trunk.0", "3": "trunk.3", "7": "trunk.7", "9": "head"}
    state = encoder.state_dict()
    with np.load(SHARED / "golden" / "weights" / f"{run}.npz", allow_pickle=False) as file:
        for key in file.files:
            layer, kind = key.split(".")
            state[f"{place[layer]}.{kind}"] = torch.from_numpy(file[key])
    encoder.load_state_dict(state, strict=True)
    test = FashionMNIST(str(SHARED / "data"), train_per_class=1, test_images=500).load().test
    with torch.no_grad():
        z = torch.cat([encoder(part) for part in test.x.split(128)])
    d = torch.cdist(z.double(), z.double()).fill_diagonal_(torch.inf)
    hit = (test.y[d.argmin(1)] == test.y).double()
    found = float(torch.stack([part.mean() for part in hit.split(128)]).mean())
    reference = json.loads((SHARED / "golden" / "weights" / "reference.json").read_text())
    assert found == pytest.approx(reference[run]["benign"]["r@1"], abs=1e-3)


def test_small_cnn_can_learn_digits() -> None:
    """A plain classifier on the embeddings learns in a few steps, so gradients reach every layer."""
    data = Digits().load().train.first(256)
    encoder = SmallCNN(embedding_dim=10, normalize=False).build(data.shape, seed=0)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(encoder(data.x), data.y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in encoder.parameters())
    assert float((encoder(data.x).argmax(1) == data.y).float().mean()) > 0.9
