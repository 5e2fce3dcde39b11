from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast import config, recipe
from holdfast.data import Digits, PairSampler
from holdfast.encoders import ENCODERS, Encoder, LeNet, ResNet18, ResNet34, ResNet50, Timm, load, save
from holdfast.encoders.weights import read_weights
from holdfast.errors import CorruptFile, InvalidArgument, MissingExtra, RunError
from holdfast.search import PGD, frozen
from holdfast.threat import LinfThreat
from holdfast.training import train

STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
RESNETS = [ResNet18, ResNet34, ResNet50]
PUBLISHED_COUNT = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}  # with 1000 classes
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def batch(shape: tuple[int, int, int], n: int = 2) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def expected_names(name: str) -> list[str]:
    """The names of torchvision's ResNet in their order, without fc, from the known structure."""
    convs = 3 if name == "resnet50" else 2
    names = ["conv1.weight", *(f"bn1.{part}" for part in BN)]
    for stage, depth in enumerate(STAGES[name], start=1):
        for place in range(depth):
            block = f"layer{stage}.{place}"
            for i in range(1, convs + 1):
                names += [f"{block}.conv{i}.weight", *(f"{block}.bn{i}.{part}" for part in BN)]
            if place == 0 and (stage > 1 or name == "resnet50"):
                names += [f"{block}.downsample.0.weight", *(f"{block}.downsample.1.{part}" for part in BN)]
    return names


def reference(name: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network once more, from its tensors alone."""

    def conv(z: Tensor, key: str, stride: int) -> Tensor:
        kernel = w[f"{key}.weight"]
        return F.conv2d(z, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(z: Tensor, key: str) -> Tensor:
        mean, var, scale, shift = (
            w[f"{key}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (z - mean) / (var + 1e-5).sqrt() * scale + shift

    strided, last = (
        (2, 3) if name == "resnet50" else (1, 2)
    )  # which convolution has the stride, which is last
    z = F.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage, depth in enumerate(STAGES[name], start=1):
        for place in range(depth):
            block, stride = f"layer{stage}.{place}", 2 if stage > 1 and place == 0 else 1
            out = z
            for i in range(1, last + 1):
                out = norm(conv(out, f"{block}.conv{i}", stride if i == strided else 1), f"{block}.bn{i}")
                out = out.relu() if i < last else out
            if f"{block}.downsample.0.weight" in w:
                z = norm(conv(z, f"{block}.downsample.0", stride), f"{block}.downsample.1")
            z = (z + out).relu()
    return z.mean((2, 3))


def stirred(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The state with other statistics and affine parts, as trained weights would have."""
    g = torch.Generator().manual_seed(seed)
    out = {k: v.clone() for k, v in state.items()}
    for k, v in out.items():
        if k.endswith(("running_mean", "bias")):
            v.copy_(0.1 * torch.randn(v.shape, generator=g))
        elif v.dim() == 1:
            v.copy_(0.5 + torch.rand(v.shape, generator=g))
    return out


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """What a file of ResNet-18 weights holds: the trunk, and a classifier of 1000 classes."""
    trunk = stirred(ResNet18().build((3, 32, 32), seed=9).trunk.state_dict())
    return {**trunk, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in state.items()}


def stored(state: Any, path: Path) -> str:
    if path.suffix == ".safetensors":  # wants plain memory order, ours is channels last
        save_file(packed(state), path)
    else:
        torch.save(state, path)
    return str(path)


# architecture


@pytest.mark.parametrize("spec", RESNETS, ids=lambda s: s.name)
def test_names_counts_and_values(spec: type[ResNet18]) -> None:
    encoder = spec(embedding_dim=5, normalize=False).build((3, 40, 36), seed=1).eval()
    trunk = encoder.trunk
    assert list(trunk.state_dict()) == expected_names(spec.name)
    width = 2048 if spec is ResNet50 else 512
    count = sum(p.numel() for p in trunk.parameters())
    assert count + 1000 * width + 1000 == PUBLISHED_COUNT[spec.name]
    assert tuple(encoder.head.weight.shape) == (5, width)
    trunk.load_state_dict(stirred(trunk.state_dict()))
    x = batch((3, 40, 36))
    with torch.no_grad():
        found = encoder(x)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
        features = reference(spec.name, trunk.state_dict(), (x - mean) / std)
        assert torch.allclose(found, encoder.head(features), rtol=1e-3, atol=1e-3 * found.abs().max().item())


def test_the_names_of_resnet18_written_out() -> None:
    names = expected_names("resnet18")
    assert len(names) == 120  # 122 with fc
    assert "layer2.0.downsample.1.running_var" in names
    assert not any(n.startswith(("layer1.0.downsample", "layer2.1.downsample", "fc")) for n in names)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not here")
@pytest.mark.parametrize("spec", RESNETS, ids=lambda s: s.name)
def test_equals_torchvision(spec: type[ResNet18], tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, spec.name)(weights=None).eval()
    theirs.load_state_dict(stirred(theirs.state_dict()))
    path = stored(theirs.state_dict(), tmp_path / "w.pth")
    ours = spec(weights=path).build((3, 64, 64), seed=0).trunk
    theirs.fc = nn.Identity()
    assert torch.allclose(ours(batch((3, 64, 64))), theirs(batch((3, 64, 64))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", RESNETS, ids=lambda s: s.name)
@pytest.mark.parametrize("side", [64, 224])
def test_images_of_many_sizes(spec: type[ResNet18], side: int) -> None:
    encoder = spec(embedding_dim=6).build((3, side, side), seed=0)
    n = 1 if side == 224 else 3
    with torch.no_grad():
        z = encoder(batch((3, side, side), n))
    assert z.shape == (n, 6)
    assert torch.allclose(z.norm(dim=1), torch.ones(n))


def test_small_and_grey_images() -> None:
    encoder = ResNet18(embedding_dim=4, mean=(0.4,), std=(0.2,)).build((1, 8, 8), seed=0)
    assert encoder(batch((1, 8, 8))).shape == (2, 4)
    with pytest.raises(InvalidArgument, match="mean: need 1 or 1 finite numbers"):
        ResNet18().build((1, 8, 8), seed=0)


def test_initialisation() -> None:
    state = ResNet18().build((3, 32, 32), seed=0).trunk.state_dict()
    for name, t in state.items():
        if t.dim() == 4 and t.numel() > 30_000:
            outputs = t.shape[0] * t.shape[2] * t.shape[3]
            assert float(t.std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.02), name
        elif name.endswith((".weight", "running_var")) and t.dim() == 1:
            assert bool((t == 1).all()), name
        elif t.dim() < 2:
            assert bool((t == 0).all()), name


def test_lenet_is_the_published_network() -> None:
    encoder = LeNet(embedding_dim=10).build((1, 28, 28), seed=0)
    assert sum(p.numel() for p in encoder.parameters()) == 431_080  # as known of this network with 10 outputs
    kinds = " ".join(type(layer).__name__ for layer in encoder.trunk)
    assert kinds == "Conv2d MaxPool2d Conv2d MaxPool2d Flatten Linear ReLU"
    assert (encoder.trunk[5].in_features, encoder.trunk[5].out_features) == (800, 500)
    assert LeNet().embedding_dim == 128
    for shape in [(1, 16, 16), (3, 31, 40), (1, 28, 28)]:
        z = LeNet().build(shape, seed=0)(batch(shape))
        assert torch.allclose(z.norm(dim=1), torch.ones(2))
    with pytest.raises(InvalidArgument, match="sides >= 16"):
        LeNet().build((1, 15, 28), seed=0)


@pytest.mark.parametrize("spec", [LeNet(embedding_dim=3), ResNet18(embedding_dim=3)], ids=lambda s: s.name)
def test_weights_depend_on_the_seed_alone(spec: LeNet) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a = spec.build((3, 32, 32), seed=1).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    b = spec.build((3, 32, 32), seed=1).state_dict()
    c = spec.build((3, 32, 32), seed=2).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])
    first = next(k for k in a if k.startswith("trunk"))
    assert not torch.equal(a[first], c[first])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ResNet18(embedding_dim=0), "embedding_dim"),
        (lambda: ResNet50(batch_norm="off"), "batch_norm: need 'frozen' or 'trainable'"),  # type: ignore[arg-type]
        (lambda: ResNet34(weights="weights.onnx"), "weights: need none or a path that ends in"),
        (lambda: ResNet34(weights=3), "weights: need"),  # type: ignore[arg-type]
        (lambda: ResNet18().build((3, 0, 8), seed=0), "shape"),
        (lambda: LeNet(embedding_dim=0), "embedding_dim"),
        (lambda: Timm(embedding_dim=0), "embedding_dim"),
        (lambda: Timm(model="hf-hub:timm/resnet18"), "plain name of a timm model"),
        (lambda: Timm(model="local-dir:/tmp"), "plain name of a timm model"),
        (lambda: Timm(model=""), "plain name of a timm model"),
        (lambda: Timm(batch_norm="on"), "batch_norm"),  # type: ignore[arg-type]
        (lambda: Timm(weights="w"), "weights"),
    ],
)
def test_bad_settings_are_told(make: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make()


# weights from files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_weights_are_loaded_strictly(imagenet: dict[str, Tensor], suffix: str, tmp_path: Path) -> None:
    spec = ResNet18(weights=stored(imagenet, tmp_path / f"resnet18{suffix}"))
    before = torch.random.get_rng_state()
    encoder = spec.build((3, 32, 32), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    state = encoder.trunk.state_dict()
    assert all(torch.equal(state[k], v) for k, v in imagenet.items() if not k.startswith("fc."))
    assert torch.equal(encoder.head.weight, ResNet18().build((3, 32, 32), seed=1).head.weight)
    assert all(p.requires_grad for p in encoder.parameters())
    assert encoder.spec == spec


def test_weights_of_many_origins(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    """Old files have no counters (before PyTorch 0.4.1), others have half precision or no classifier."""
    old = {k: v for k, v in imagenet.items() if not k.endswith("num_batches_tracked")}
    assert len(old) == 102
    half = {k: v.half() for k, v in old.items() if not k.startswith("fc.")}
    for name, state in [("old.pth", old), ("half.safetensors", half)]:
        encoder = ResNet18(weights=stored(state, tmp_path / name)).build((3, 32, 32), seed=0)
        assert torch.equal(encoder.trunk.bn1.running_mean, state["bn1.running_mean"].float())
        assert encoder.trunk.conv1.weight.dtype == torch.float32
        assert int(encoder.trunk.bn1.num_batches_tracked) == 0
    torch.save(imagenet, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    ResNet18(weights=str(tmp_path / "legacy.pth")).build((3, 32, 32), seed=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_do_not_fit_are_told(imagenet: dict[str, Tensor], suffix: str, tmp_path: Path) -> None:
    less = {k: v for k, v in imagenet.items() if k != "layer3.0.downsample.0.weight"}
    for state, says in [
        (less, r"missing \['layer3.0.downsample.0.weight'\], surplus \[\]"),
        (imagenet | {"layer5.w": torch.zeros(1)}, r"missing \[\], surplus \['layer5.w'\]"),
        (imagenet | {"fcx": torch.zeros(1)}, r"surplus \['fcx'\]"),
        ({f"module.{k}": v for k, v in imagenet.items()}, r"missing \['bn1.bias', .* and \d+ more, surplus"),
        (imagenet | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"\(64, 3, 7, 7\), got .* \(64, 1, 7, 7\)"),
        (imagenet | {"bn1.weight": torch.ones(1)}, r"'bn1.weight' needs .* \(64,\), got .* of \(1,\)"),
        (imagenet | {"bn1.bias": torch.zeros(64).int()}, "needs floating point .*, got torch.int32"),
        (imagenet | {"bn1.num_batches_tracked": torch.zeros(())}, "needs torch.int64"),
    ]:
        path = stored(state, tmp_path / f"w{suffix}")
        with pytest.raises(RunError, match=says) as caught:
            ResNet18(weights=path).build((3, 32, 32), seed=0)
        assert path in str(caught.value)
    with pytest.raises(RunError, match="missing"):  # weights of another depth
        ResNet34(weights=stored(imagenet, tmp_path / f"w{suffix}")).build((3, 32, 32), seed=0)


def test_files_that_are_no_weights_are_told(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    def build(path: Path) -> Encoder:
        return ResNet18(weights=str(path)).build((3, 32, 32), seed=0)

    with pytest.raises(RunError, match="no such file"):
        build(tmp_path / "nowhere.pth")
    path = tmp_path / "w.pth"
    for value, says in [
        ([torch.zeros(1)], "need a mapping of names to tensors, got list"),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, r"no tensors at \['state_dict', 'epoch'\]"),
        ({0: torch.zeros(1)}, r"no tensors at \[0\]"),
        (imagenet | {"bn1.bias": torch.zeros(64).to_sparse()}, "not a dense tensor"),
    ]:
        with pytest.raises(RunError, match=says):
            build(Path(stored(value, path)))
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    whole = {"w.safetensors": (tmp_path / "a.safetensors").read_bytes()}
    torch.save({"a": torch.zeros(3)}, path)
    whole["w.pth"] = path.read_bytes()
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole["w.pt"] = path.read_bytes()
    for name, data in whole.items():
        for length in range(0, len(data) - 1, 23):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(CorruptFile, match=name):
                read_weights(tmp_path / name)
    (tmp_path / "x.safetensors").write_bytes(whole["w.pth"])
    with pytest.raises(CorruptFile, match="not safetensors"):
        build(tmp_path / "x.safetensors")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_never_run(how: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    state = {"conv1.weight": Evil(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state, 2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CorruptFile, match="asks for code, which is never run") as caught:
        ResNet18(weights=str(path)).build((3, 32, 32), seed=0)
    assert not trace.exists()
    assert "weights_only=False" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# batch normalisation


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if "running" in k or "tracked" in k}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def learn_and_search(encoder: Encoder, x: Tensor) -> None:
    """One step of training, and one of search, the way the trainer does it."""
    encoder.train()
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    (encoder(x)[:, 0]).sum().backward()
    optimiser.step()
    clean = encoder(x).detach()
    PGD(steps=2, alpha=0.01)(encoder, x, lambda z: (z - clean).norm(dim=1), LinfThreat(eps=0.02))


def test_frozen_batch_norm_stays_frozen(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    spec = ResNet18(embedding_dim=8, weights=stored(imagenet, tmp_path / "w.safetensors"))
    encoder = spec.build((3, 32, 32), seed=0)
    assert len(norms(encoder)) == 20
    assert not any(m.training for m in norms(encoder))  # from the start
    before, scale = statistics(encoder), encoder.trunk.bn1.weight.detach().clone()
    x = batch((3, 32, 32), 4)
    assert torch.equal(encoder.train()(x), encoder.eval()(x))
    learn_and_search(encoder, x)
    assert encoder.training
    assert encoder.trunk.layer1.training
    assert not any(m.training for m in norms(encoder))
    with frozen(encoder):
        assert not any(m.training for m in encoder.modules())
    assert encoder.training
    for module in encoder.modules():
        module.train()
    for twin in (encoder, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)).train()):
        assert not any(m.training for m in norms(twin))
    assert same(statistics(encoder), before)
    assert not torch.equal(encoder.trunk.bn1.weight, scale)  # scale and shift are trained


def test_trainable_batch_norm_follows_batches_but_not_searches() -> None:
    encoder = ResNet18(embedding_dim=8, batch_norm="trainable").build((3, 32, 32), seed=0)
    x = batch((3, 32, 32), 4)
    assert all(type(m) is nn.BatchNorm2d and m.training for m in norms(encoder))
    learn_and_search(encoder, x)
    assert {int(m.num_batches_tracked) for m in norms(encoder)} == {2}  # the two forward passes of training
    assert all(m.training for m in norms(encoder))
    assert not torch.equal(encoder.train()(x), encoder.eval()(x))


def test_a_training_run_keeps_statistics() -> None:
    data = Digits().load()
    data = dataclasses.replace(data, train=data.train.first(24))
    run = dataclasses.replace(recipe("act"), epochs=1, sampler=PairSampler(batch_pairs=8))
    run = config.replace(run, "defense.search.steps", 1)
    for kind in ("frozen", "trainable"):
        spec = ResNet18(embedding_dim=8, mean=(0.5,), std=(0.5,), batch_norm=kind)  # type: ignore[arg-type]
        fresh = spec.build(data.train.shape, run.seed)
        trained = train(dataclasses.replace(run, encoder=spec), data).encoder
        assert same(statistics(trained), statistics(fresh)) is (kind == "frozen")
        assert not torch.equal(trained.trunk.bn1.bias, fresh.trunk.bn1.bias)


# storage and settings


@pytest.mark.parametrize(
    "spec",
    [
        LeNet(embedding_dim=3),
        ResNet18(embedding_dim=3),
        ResNet18(embedding_dim=3, batch_norm="trainable", normalize=False, mean=(0.5,), std=(0.5,)),
        ResNet34(embedding_dim=3),
        ResNet50(embedding_dim=3),
    ],
    ids=lambda s: f"{s.name}-{getattr(s, 'batch_norm', '')}",
)
def test_round_trip(spec: ResNet18, tmp_path: Path) -> None:
    encoder = spec.build((3, 32, 32), seed=3)
    encoder.load_state_dict(stirred(encoder.state_dict()))
    save(encoder, tmp_path / "e.safetensors")
    before = torch.random.get_rng_state()
    found = load(tmp_path / "e.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())
    assert (found.spec, found.shape) == (spec, (3, 32, 32))
    state = encoder.state_dict()
    assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in found.state_dict().items())
    assert not any(t.is_meta for t in found.state_dict().values())
    x = batch((3, 32, 32))
    assert torch.equal(found.eval()(x), encoder.eval()(x))
    frozen_ones = getattr(spec, "batch_norm", "frozen") == "frozen"
    assert all(m.training is not frozen_ones for m in norms(found.train()))


def test_a_saved_encoder_needs_no_other_file(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    encoder = ResNet18(embedding_dim=2, weights=stored(imagenet, weights)).build((3, 32, 32), seed=0)
    path = tmp_path / "e.safetensors"
    save(encoder, path)
    weights.unlink()
    found = load(path)
    assert found.spec == dataclasses.replace(encoder.spec, weights=None)  # type: ignore[type-var]
    assert torch.equal(found(batch((3, 32, 32))), encoder(batch((3, 32, 32))))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["holdfast"])
    assert "weights" not in header["spec"]
    header["spec"]["weights"] = str(tmp_path / "other.pth")
    save_file(packed(encoder.state_dict()), path, metadata={"holdfast": json.dumps(header)})
    with pytest.raises(RunError, match=r"header names a file of weights, .*other\.pth"):
        load(path)


def test_counters_have_to_be_counters(tmp_path: Path) -> None:
    encoder = ResNet18(embedding_dim=2).build((3, 32, 32), seed=0)
    path = tmp_path / "e.safetensors"
    save(encoder, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["holdfast"])
    del header["sha256"]  # as files of earlier versions
    state = packed(encoder.state_dict()) | {"trunk.bn1.num_batches_tracked": torch.tensor(0.0)}
    save_file(state, path, metadata={"holdfast": json.dumps(header)})
    with pytest.raises(RunError, match=r"needs torch\.int64"):
        load(path)


def test_names_and_plain_data() -> None:
    names = {"lenet": LeNet, "resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50, "timm": Timm}
    for name, cls in names.items():
        assert ENCODERS[name] is cls
        assert cls.name == name
        value = cls(embedding_dim=7)
        plain = json.loads(json.dumps(config.to_plain(value)))
        assert config.from_plain(plain, config.allow(*ENCODERS.values())) == value
    spec = config.replace(ResNet18(), "batch_norm", "trainable")
    spec = config.replace(spec, "weights", "w.pth")
    assert spec == ResNet18(batch_norm="trainable", weights="w.pth")
    assert config.replace(spec, "weights", "none").weights is None
    assert ResNet18() != ResNet34()


# timm


class FakeNet(nn.Module):
    def __init__(self, channels: int, size: int | None, classifier: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("table", torch.linspace(0.5, 1.5, 4), persistent=False)
        self.num_features, self.head_hidden_size = 99, 4
        size = size or 8
        self.default_cfg = {
            "mean": (0.5, 0.25, 0.5),
            "std": (0.5, 0.5, 0.25),
            "classifier": classifier,
            "input_size": (3, size, size),
            "fixed_input_size": size != 8,
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) * self.table


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    fake = types.ModuleType("timm")
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        size = 16 if name == "fixed" else None
        return FakeNet(options["in_chans"], size, ("head", "head_dist") if name == "two" else "head")

    fake.create_model = create_model  # type: ignore[attr-defined]
    fake.is_model = lambda name: name.split(".")[0] in ("small", "two", "fixed")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    yield types.SimpleNamespace(calls=calls)
    assert all(o["pretrained"] is False and o["num_classes"] == 0 for _, o in calls)


def test_timm_is_a_trunk(timm: types.SimpleNamespace) -> None:
    before = torch.random.get_rng_state()
    encoder = Timm(model="small.tag-1", embedding_dim=3).build((3, 9, 9), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert timm.calls == [("small.tag-1", {"pretrained": False, "num_classes": 0, "in_chans": 3})]
    assert encoder.standardize.mean.flatten().tolist() == [0.5, 0.25, 0.5]
    assert encoder.standardize.std.flatten().tolist() == [0.5, 0.5, 0.25]
    z = encoder(batch((3, 9, 9)))
    assert z.shape == (2, 3)
    assert torch.allclose(z.norm(dim=1), torch.ones(2))
    assert tuple(encoder.head.weight.shape) == (3, 4)
    again = Timm(model="small.tag-1", embedding_dim=3).build((3, 9, 9), seed=1)
    assert same(dict(encoder.state_dict()), dict(again.state_dict()))
    own = Timm(model="small", mean=(0.1,), std=(0.2,)).build((1, 9, 9), seed=1)
    assert own.embedding_dim == 4
    assert own.standardize.mean.item() == pytest.approx(0.1)


def test_timm_batch_norm(timm: types.SimpleNamespace) -> None:
    x = batch((3, 9, 9))
    held = Timm(model="small").build((3, 9, 9), seed=0)
    free = Timm(model="small", batch_norm="trainable").build((3, 9, 9), seed=0)
    assert not held.trunk.net.norm.training  # from the start
    for encoder in (held, free):
        learn_and_search(encoder, x)
    assert held.trunk.net.conv.training
    assert not held.trunk.net.norm.training
    assert int(held.trunk.net.norm.num_batches_tracked) == 0
    assert free.trunk.net.norm.training
    assert int(free.trunk.net.norm.num_batches_tracked) == 2


@pytest.mark.parametrize("model", ["small", "two"])
def test_timm_weights(timm: types.SimpleNamespace, model: str, tmp_path: Path) -> None:
    state = stirred(FakeNet(3, None, "head").state_dict())
    full = state | {"head.weight": torch.zeros(10, 4), "head.bias": torch.zeros(10)}
    path = stored(full, tmp_path / "w.safetensors")
    encoder = Timm(model=model, weights=path, embedding_dim=2).build((3, 9, 9), seed=0)
    assert same(dict(encoder.trunk.net.state_dict()), state)
    path = stored(full | {"header": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(RunError, match=r"surplus \['header'\]"):
        Timm(model=model, weights=path).build((3, 9, 9), seed=0)
    save(encoder, tmp_path / "e.safetensors")
    (tmp_path / "w.safetensors").unlink()
    found = load(tmp_path / "e.safetensors")
    assert found.spec == Timm(model=model, embedding_dim=2)
    assert not any(t.is_meta for t in [*found.parameters(), *found.buffers()])
    assert torch.equal(found(batch((3, 9, 9))), encoder(batch((3, 9, 9))))
    assert not found.train().trunk.net.norm.training


def test_timm_errors(timm: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="a name that timm knows, got 'smell'"):
        Timm(model="smell").build((3, 9, 9), seed=0)
    with pytest.raises(InvalidArgument, match=r"images of \(16, 16\) for the timm model 'fixed'"):
        Timm(model="fixed").build((3, 9, 9), seed=0)
    Timm(model="fixed").build((3, 16, 16), seed=0)
    save(Timm(model="small").build((3, 9, 9), seed=0), tmp_path / "e")
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (lambda: Timm(model="small").build((3, 9, 9), seed=0), lambda: load(tmp_path / "e")):
        with pytest.raises(MissingExtra, match=r"pip install 'holdfast\[timm\]'"):
            call()
