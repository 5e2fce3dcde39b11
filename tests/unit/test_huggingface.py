"""Encoders of Hugging Face from local folders: with a stand-in for transformers, and with the real one."""

from __future__ import annotations

import json
import socket
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.config import from_plain, to_plain
from holdfast.encoders import ENCODERS, HuggingFace, load, save
from holdfast.encoders.huggingface import TYPES, Pooled
from holdfast.encoders.timm import _classifier
from holdfast.errors import CorruptFile, InvalidArgument, MissingExtra, RunError
from holdfast.search import PGD
from holdfast.threat import LinfThreat

PLAIN = {"hidden_size": 8, "num_channels": 3, "num_register_tokens": 1, "pooler": True, "image_size": 8}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
Make = Callable[..., Path]


class Settings(types.SimpleNamespace):
    """A configuration: attributes, and plain data."""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "transformers_version": "5", "_name_or_path": "somewhere"}


class Tiny(nn.Module):
    """A vision transformer without the transformer: class token, register, one row for each patch of 4x4."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patches = nn.Conv2d(config.num_channels, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.register_tokens = nn.Parameter(torch.randn(1, config.num_register_tokens, width))
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("positions", torch.arange(float(width)), persistent=False)
        if config.pooler:
            self.pooler = nn.Module()
            self.pooler.dense = nn.Linear(width, width)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Any:
        if pixel_values.shape[2] != self.config.image_size and not interpolate_pos_encoding:
            raise ValueError(f"Input image size ({pixel_values.shape[2]}) doesn't match")
        rows = self.patches(pixel_values).flatten(2).transpose(1, 2)
        first = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(rows), -1, -1)
        tokens = torch.cat([first + 0 * rows.mean(1, keepdim=True), rows], 1) + 1e-3 * self.positions
        tokens = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        pooled = self.pooler.dense(rows.mean(1)).tanh() if self.config.pooler else None
        return types.SimpleNamespace(last_hidden_state=tokens, pooler_output=pooled)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a stand-in for transformers in place; what from_pretrained was asked is kept."""
    asked: dict[str, Any] = {}

    def for_model(kind: str, **options: Any) -> Settings:
        if "colour" in options:
            raise TypeError("colour")
        return Settings(**{**PLAIN, **options, "model_type": kind})

    def from_pretrained(folder: str, *, config: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        asked.update(options, folder=folder)
        net = Tiny(config)
        found = load_file(Path(folder) / "model.safetensors")
        missing = set(net.state_dict()) - set(found)
        net.load_state_dict(found, strict=False)
        return net, {"missing_keys": missing, "mismatched_keys": set()}

    module: Any = types.ModuleType("transformers")
    module.AutoConfig = types.SimpleNamespace(for_model=for_model)
    module.AutoModel = types.SimpleNamespace(from_config=Tiny, from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Make a folder of a model."""

    def make(left_out: str = "", **config: Any) -> Path:
        data = {"model_type": "vit", **config}
        torch.manual_seed(1)
        net = Tiny(Settings(**{**PLAIN, **data}))
        weights = {k: v for k, v in net.state_dict().items() if not (left_out and k.startswith(left_out))}
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({**data, "_attn_implementation": "hub/kernel"}))
        standard = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(standard))
        return tmp_path

    return make


def test_folder_to_encoder_and_back(fake: dict[str, Any], folder: Make, tmp_path: Path) -> None:
    place = folder()
    encoder = HuggingFace(path=str(place), normalize=False).build((3, 8, 8), seed=0).eval()
    assert fake == {
        "folder": str(place), "dtype": torch.float32, "local_files_only": True, "use_safetensors": True,
        "trust_remote_code": False, "output_loading_info": True,
    }  # fmt: skip
    x = torch.rand(2, 3, 8, 8)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    net: Any = encoder.trunk.net.net
    with torch.no_grad():
        wanted = net.eval()((x - shift) / scale).last_hidden_state[:, 0]
    assert torch.allclose(encoder(x), wanted, atol=1e-6)  # the head starts as the identity
    spec: Any = encoder.spec
    assert (spec.path, spec.pooling, spec.mean, spec.std) == (None, "cls", tuple(MEAN), tuple(STD))
    assert "attn" not in spec.config
    assert "somewhere" not in spec.config
    save(encoder, tmp_path / "encoder.safetensors")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (place / file).unlink()
    again = load(tmp_path / "encoder.safetensors").eval()
    assert torch.equal(again(x), encoder(x))
    assert again.spec == spec
    assert from_plain(to_plain(spec), {"HuggingFace": HuggingFace}) == spec
    assert ENCODERS["huggingface"] is HuggingFace


def test_poolings(fake: dict[str, Any], folder: Make) -> None:
    place = folder()
    x = torch.rand(2, 3, 8, 8)
    for pooling in ("cls", "mean", "pooler"):
        encoder = (
            HuggingFace(path=str(place), pooling=pooling, normalize=False).build((3, 8, 8), seed=0).eval()
        )
        out = encoder.trunk.net.net(encoder.standardize(x))
        wanted = {
            "cls": out.last_hidden_state[:, 0],
            "mean": out.last_hidden_state[:, 2:].mean(1),  # without class token and register
            "pooler": out.pooler_output,
        }[pooling]
        assert torch.allclose(encoder(x), wanted, atol=1e-6)
    small = HuggingFace(path=str(place), embedding_dim=3).build((3, 8, 8), seed=0).eval()
    assert small(x).shape == (2, 3)
    assert torch.allclose(small(x).norm(dim=1), torch.ones(2))


def test_a_pooler_that_was_not_stored(fake: dict[str, Any], folder: Make) -> None:
    place = folder(left_out="pooler.")
    assert HuggingFace(path=str(place)).build((3, 8, 8), seed=0).spec.pooling == "cls"  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="stores no pooler"):
        HuggingFace(path=str(place), pooling="pooler").build((3, 8, 8), seed=0)
    bare = folder(pooler=False)
    with pytest.raises(InvalidArgument, match="no pooler"):
        HuggingFace(path=str(bare), pooling="pooler").build((3, 8, 8), seed=0)


def test_frozen_batch_norm_and_gradients_to_the_pixels(fake: dict[str, Any], folder: Make) -> None:
    place = folder()
    for choice, trains in (("frozen", False), ("trainable", True)):
        encoder = HuggingFace(path=str(place), batch_norm=choice, pooling="mean").build((3, 8, 8), seed=0)
        assert encoder.train().trunk.net.net.norm.training is trains  # type: ignore[union-attr]
    x = torch.rand(2, 3, 8, 8)
    moved = PGD(steps=2, alpha=0.1)(encoder, x, lambda z: z[:, 0], LinfThreat(eps=0.1))
    assert 0 < float((moved - x).abs().max()) <= 0.1 + 1e-6


def test_sizes_and_channels(fake: dict[str, Any], folder: Make) -> None:
    place = str(folder())
    with pytest.raises(InvalidArgument, match=r"made for size 8; set interpolate=True.*doesn't match"):
        HuggingFace(path=place).build((3, 12, 12), seed=0)
    assert HuggingFace(path=place, interpolate=True).build((3, 12, 12), seed=0).shape == (3, 12, 12)
    with pytest.raises(InvalidArgument, match="images of 3 channels"):
        HuggingFace(path=place).build((1, 8, 8), seed=0)
    with pytest.raises(InvalidArgument, match="images that this vit takes"):
        HuggingFace(path=place, interpolate=True).build((3, 2, 2), seed=0)  # smaller than a patch


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: HuggingFace(path="https://somewhere/model"), "local folder"),
        (lambda: HuggingFace(path="hf-hub:google/vit"), "local folder"),
        (lambda: HuggingFace(path=""), "local folder"),
        (lambda: HuggingFace(path="a", pooling="max"), "pooling"),
        (lambda: HuggingFace(path="a", embedding_dim=0), "embedding_dim"),
        (lambda: HuggingFace(path="a", mean=(0.5,)), "mean, std"),
        (lambda: HuggingFace(path="a", config={}), "config"),
        (lambda: HuggingFace(path="a", batch_norm="no"), "batch_norm"),
    ],
)
def test_what_a_spec_refuses(spec: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        spec()


def test_what_building_refuses(fake: dict[str, Any], folder: Make, tmp_path: Path) -> None:
    def build(**more: Any) -> Any:
        return HuggingFace(path=str(tmp_path), **more).build((3, 8, 8), seed=0)

    with pytest.raises(RunError, match="hubs are not asked"):
        HuggingFace(path="google/vit-base-patch16-224").build((3, 8, 8), seed=0)
    with pytest.raises(InvalidArgument, match="local folder"):
        HuggingFace().build((3, 8, 8), seed=0)
    with pytest.raises(RunError, match=r"lacks config\.json"):
        build()
    for config, message in (
        ({"model_type": "bert"}, "model_type out of"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:x/y"}, "model_type out of"),
        ({"model_type": "own", "auto_map": {"AutoModel": "code.Own"}}, "model_type out of"),
        ({"quantization_config": {}}, "not quantised"),
        ({"colour": 1}, "settings that vit accepts"),
    ):
        folder(**config)
        with pytest.raises(InvalidArgument, match=message):
            build()
    place = folder(left_out="patches.")
    with pytest.raises(RunError, match=r"do not fit the configuration: patches\.bias"):
        build()
    folder()
    described = place / "preprocessor_config.json"
    described.write_text(json.dumps({"image_mean": MEAN, "rescale_factor": 1 / 255}))
    with pytest.raises(CorruptFile, match="image_std"):
        build()
    (place / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": 1 / 127.5}))
    with pytest.raises(InvalidArgument, match="by hand"):
        build()
    (place / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert build().spec.mean == (0.0,)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(RunError, match="give mean and std"):
        build()
    inside = {"image_processor": {"image_mean": MEAN, "image_std": STD}}
    (place / "processor_config.json").write_text(json.dumps(inside))
    assert build().spec.std == tuple(STD)
    assert build(mean=(0.5,), std=(0.5,)).spec.std == (0.5,)
    (place / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CorruptFile, match="weights"):
        build()
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"lacks model\.safetensors"):
        build()


def test_a_saved_encoder_opens_no_other_folder(fake: dict[str, Any], folder: Make, tmp_path: Path) -> None:
    place = folder()
    encoder = HuggingFace(path=str(place)).build((3, 8, 8), seed=0)
    encoder.spec = replace(encoder.spec, path=str(place))  # type: ignore[type-var]
    save(encoder, tmp_path / "e.safetensors")
    with pytest.raises(RunError, match="none in a saved encoder"):
        load(tmp_path / "e.safetensors")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"holdfast\[huggingface\]"):
        HuggingFace(path=str(tmp_path)).build((3, 8, 8), seed=0)


def real(kind: str) -> tuple[Any, str]:
    """Return a small model of the real package and what its automatic pooling should be."""
    t: Any = pytest.importorskip("transformers")
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    patches = {**small, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "vit":
        return t.ViTModel(t.ViTConfig(**patches)), "cls"
    if kind == "clip":
        halves = {"text_config": {**small, "vocab_size": 50}, "vision_config": patches, "projection_dim": 8}
        return t.CLIPModel(t.CLIPConfig(**halves)), "pooler"
    if kind == "clip-vision":
        return t.CLIPVisionModel(t.CLIPVisionConfig(**patches)), "pooler"
    if kind == "dinov2":
        return t.Dinov2Model(t.Dinov2Config(**small, image_size=56, patch_size=8)), "pooler"
    deep = {"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]}
    if kind == "resnet":
        return t.ResNetModel(t.ResNetConfig(**deep, embedding_size=8, layer_type="basic")), "pooler"
    return t.ConvNextModel(t.ConvNextConfig(**deep)), "pooler"


@pytest.mark.parametrize("kind", ["vit", "clip", "clip-vision", "dinov2", "resnet", "convnext"])
def test_real_models(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pooling = real(kind)

    def network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", network)
    monkeypatch.setattr(socket, "getaddrinfo", network)
    model.eval().save_pretrained(tmp_path)
    standard = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(standard))
    encoder = HuggingFace(path=str(tmp_path), normalize=False).build((3, 32, 32), seed=0).eval()
    assert encoder.spec.pooling == pooling  # type: ignore[attr-defined]
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        seen = encoder.standardize(x)
        out = model.get_image_features(pixel_values=seen) if kind == "clip" else model(pixel_values=seen)
        out = out.pooler_output if pooling == "pooler" and not isinstance(out, Tensor) else out
        wanted = out if isinstance(out, Tensor) else out.last_hidden_state[:, 0]
    assert torch.allclose(encoder(x), wanted.flatten(1), atol=1e-5)
    save(encoder, tmp_path / "encoder.safetensors")
    again = load(tmp_path / "encoder.safetensors").eval()
    assert torch.equal(again(x), encoder(x))
    encoder.train()(x).sum().backward()
    assert any(p.grad is not None for p in encoder.trunk.parameters())


def test_every_type_is_known_to_the_real_package() -> None:
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert set(TYPES) <= set(CONFIG_MAPPING_NAMES)
    assert issubclass(Pooled, nn.Module)


def test_the_whole_head_of_a_timm_model_may_be_left_out() -> None:
    """LeViT keeps a batch norm beside its linear layers: both go, while needed names are never ignored."""
    assert _classifier({"classifier": ("head.linear", "head_dist.linear")}) == ("head.", "head_dist.")
    assert _classifier({"classifier": "fc"}) == ("fc.",)
    assert _classifier({}) == ()
