"""Image encoders of Hugging Face's transformers from a local folder; needs ``holdfast[huggingface]``."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CorruptFile, InvalidArgument, MissingExtra, RunError, told
from ..files import loads, read_json
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width
from .resnet import BatchNorm, check_batch_norm
from .timm import TimmTrunk

Pooling = Literal["auto", "cls", "mean", "pooler"]
POOLINGS = ("auto", "cls", "mean", "pooler")

TYPES = (
    "beit", "bit", "clip", "clip_vision_model", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit",
    "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "efficientnet", "focalnet", "hiera",
    "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt",
    "pvt_v2", "regnet", "resnet", "siglip", "siglip_vision_model", "swiftformer", "swin", "swinv2",
    "vit", "vit_msn",
)  # fmt: skip
"""Values of ``model_type`` that are accepted: networks from images to features, of transformers itself."""

TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}
"""Classes of the image half of two-sided models; all others are what ``AutoModel`` takes."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_CLASS_TOKENS = ("cls_token", "class_embedding")
_DROPPED = (
    "transformers_version", "attn_implementation", "dtype", "torch_dtype", "id2label", "label2id",
    "num_labels",
)  # fmt: skip
_REPEATS = re.compile("layer|depth|block|stage")
DEEPEST, WIDEST = 512, 1 << 24
"""Most layers, and most of anything else, that a configuration may ask for [D]."""
UNSTORED = 1 << 24
"""Most numbers in tensors that a model computes and does not store [D]."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """A vision model of transformers from a local folder, with a linear head of ours.

    Parameters
    ----------
    path
        A folder that ``save_pretrained`` wrote: ``config.json``, ``model.safetensors`` (or its parts and
        their index) and ``preprocessor_config.json``. Names of hubs are never looked up, pickled weights and
        code in the folder are not read. ``None`` takes ``config``, with fresh weights.
    pooling
        How features become one vector. ``"cls"``: the class token. ``"mean"``: the mean over patches,
        without class and register tokens. ``"pooler"``: what the model's own pooler gives. ``"auto"``: the
        projected image embedding of CLIP, where there is none the pooler, but the class token where the
        pooler is a dense layer from pre-training (ViT, DeiT) or was not stored.
    embedding_dim
        Width of the embeddings; ``None`` takes the model's own features: the head starts as the identity.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel; ``None`` takes those of
        ``preprocessor_config.json``. Resizing and cropping are not part of the encoder.
    interpolate
        Interpolate positional embeddings, for images of another size than the model was made for.
    batch_norm
        See :class:`ResNet18`.
    config
        The model's configuration as JSON text. Built encoders carry it in their ``spec``, so that saved ones
        are loaded without the folder.

    Examples
    --------
    >>> HuggingFace(path="weights/dinov2-small", pooling="cls").pooling
    'cls'
    """

    path: str | None = None
    pooling: Pooling = "auto"
    embedding_dim: int | None = None
    normalize: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolate: bool = False
    batch_norm: BatchNorm = "frozen"
    config: str | None = None
    name: ClassVar[str] = "huggingface"

    def __post_init__(self) -> None:
        plain = self.path is None or (isinstance(self.path, str) and self.path and ":/" not in self.path)
        if not plain or str(self.path).startswith("hf-hub:"):
            raise InvalidArgument("path", "a local folder", self.path)
        if self.pooling not in POOLINGS:
            raise InvalidArgument("pooling", " or ".join(map(repr, POOLINGS)), self.pooling)
        if self.embedding_dim is not None:
            check_width("embedding_dim", self.embedding_dim)
        if (self.mean is None) != (self.std is None):
            raise InvalidArgument("mean, std", "both or none", (self.mean, self.std))
        if self.config is not None and not isinstance(self.config, str):
            raise InvalidArgument("config", "JSON text or None", self.config)
        check_batch_norm(self.batch_norm)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return an encoder for inputs (c, h, w) with the folder's weights; the head depends on ``seed``.

        Raises
        ------
        MissingExtra
            If transformers is not installed.
        RunError
            If the folder is missing or lacks a file, or weights and configuration do not fit.
        CorruptFile
            If a file of the folder is damaged.
        InvalidArgument
            If the kind of model is not in :data:`TYPES`, wants other channels or another size, or does not
            have what ``pooling`` asks for.
        """
        check_shape(shape)
        transformers = _transformers()
        if self.path is not None and torch.empty(0).is_meta:  # load(): a file must not open others
            raise InvalidArgument("path", "none in a saved encoder", self.path)
        absent: set[str] = set()
        with seeded(seed, "encoder"):
            if self.path is not None:
                net, absent = _stored(transformers, Path(self.path).expanduser())
            elif self.config is not None:
                net = _fresh(transformers, self.config)
            else:
                raise InvalidArgument("path", "a local folder (or config, for fresh weights)", None)
            trunk, features = self._trunk(net, absent, shape)
            if torch.empty(0).is_meta:
                trunk.complete_with(partial(_fresh, transformers, cast(str, self.config)))
            head = nn.Linear(features, self.embedding_dim or features)
            if self.embedding_dim is None:
                nn.init.eye_(head.weight)
                nn.init.zeros_(head.bias)
        mean, std = self.mean, self.std
        if mean is None or std is None:
            mean, std = (
                ((0.0,), (1.0,)) if self.path is None else _standardisation(Path(self.path).expanduser())
            )
        spec = replace(
            self, path=None, pooling=trunk.pooling, mean=mean, std=std, config=_described(net)
        )  # fmt: skip
        frozen = TimmTrunk(trunk, frozen=self.batch_norm == "frozen")
        return Encoder(frozen, head, shape=shape, spec=spec, mean=mean, std=std, normalize=self.normalize)

    def _trunk(self, net: nn.Module, absent: set[str], shape: Shape) -> tuple[Pooled, int]:
        """Return the network with its pooling, and the number of its features."""
        config: Any = net.config
        channels = getattr(config, "num_channels", 3)
        if shape[0] != channels:
            need = f"images of {channels} channels for this {config.model_type}"
            raise InvalidArgument("shape", need, tuple(shape))
        if absent and self.pooling == "pooler":
            raise RunError(f"{self.path}: stores no pooler; choose another pooling")
        takes = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        trunk = Pooled(net, self.pooling, trained_pooler=not absent, interpolate=self.interpolate and takes)
        try:
            with torch.no_grad():
                trunk.eval()
                features = int(trunk(torch.zeros(1, *shape)).shape[1])
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, InvalidArgument):
                raise
            size = getattr(config, "image_size", None)
            hint = "; set interpolate=True for other sizes" if takes and not self.interpolate else ""
            need = f"images that this {config.model_type} takes (made for size {size}{hint}): {told(error)}"
            raise InvalidArgument("shape", need, tuple(shape)) from error
        trunk.train()
        return trunk, features


class Pooled(nn.Module):
    """A vision model of transformers whose output is one vector for each image.

    Parameters
    ----------
    net
        Called with ``pixel_values``.
    pooling
        See :class:`HuggingFace`; ``"auto"`` is decided here, and kept as the attribute ``pooling``.
    trained_pooler
        Whether the pooler, if there is one, has weights worth reading.
    interpolate
        Passed on to the model.
    """

    def __init__(self, net: nn.Module, pooling: Pooling, trained_pooler: bool, interpolate: bool) -> None:
        super().__init__()
        self.net = net
        names = {name.rpartition(".")[2] for name, _ in net.named_parameters()}
        self.has_class = bool(names & set(_CLASS_TOKENS))
        registers = getattr(net.config, "num_register_tokens", 0) or 0
        self.extra = int(self.has_class) + int("distillation_token" in names) + registers
        dense = hasattr(getattr(net, "pooler", None), "dense")
        if pooling == "auto":
            pooling = "cls" if self.has_class and (dense or not trained_pooler) else "pooler"
        if pooling == "cls" and not self.has_class:
            kind = getattr(net.config, "model_type", type(net).__name__)
            raise InvalidArgument("pooling", f"'mean' or 'pooler': {kind} has no class token", pooling)
        self.pooling: Pooling = pooling
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def complete_with(self, make: Callable[[], nn.Module]) -> None:
        """Take the place of a network without storage once its tensors have been loaded.

        The one that ``make`` builds holds what is computed and not stored, which no file brings. It is built
        only then: whoever loads has compared names and shapes with the file before, so no configuration
        takes more memory than its weights do.
        """
        stored = set(self.net.state_dict())
        rest = sum(b.numel() for name, b in self.net.named_buffers() if name not in stored)
        if rest > UNSTORED:
            raise InvalidArgument("config", f"at most {UNSTORED} numbers that are not stored", rest)

        def complete(self: Pooled, _: Any) -> None:
            hook.remove()
            with torch.device("cpu"):
                net = make()
            net.load_state_dict(self.net.state_dict(), strict=True, assign=True)
            for old, new in zip(self.net.modules(), net.modules(), strict=True):
                new.training = old.training
            self.net = net

        hook = self.register_load_state_dict_post_hook(complete)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, f)."""
        output: Any = self.net(pixel_values=x, **self.options)
        if self.pooling == "pooler":
            pooled = getattr(output, "image_embeds", None)
            pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
            if pooled is None:
                raise InvalidArgument("pooling", "'cls' or 'mean', as the model has no pooler", self.pooling)
            return torch.flatten(pooled, 1)
        tokens: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return tokens[:, 0]
        return tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, self.extra :].mean(1)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra("transformers", "huggingface", "an encoder of Hugging Face") from error


def _settings(transformers: Any, data: Any, where: str) -> Any:
    """Return the configuration that plain data describes, of a kind that is allowed."""
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in TYPES:
        raise InvalidArgument(where, f"a model_type out of {', '.join(TYPES)}", kind)
    if "quantization_config" in data:
        raise InvalidArgument(where, "a model that is not quantised", kind)
    check_size(where, data)
    kept = {k: v for k, v in data.items() if not k.startswith("_") and k not in (*_DROPPED, "auto_map")}
    try:
        settings = transformers.AutoConfig.for_model(kept.pop("model_type"), **kept)
    except Exception as error:  # the package has exceptions of its own for fields
        raise InvalidArgument(where, f"settings that {kind} accepts ({told(error)})", kind) from error
    half = getattr(settings, "vision_config", None)
    if half is None:
        return settings
    if isinstance(half, dict):
        raise InvalidArgument(where, f"a vision_config that {kind} accepts", half)
    half.architectures = [TOWERS[kind]]
    if hasattr(settings, "projection_dim"):
        half.projection_dim = settings.projection_dim
    return half


def check_size(where: str, data: Any, name: str = "") -> None:
    """Refuse a configuration that asks for more layers or larger ones than any model has.

    Raises
    ------
    InvalidArgument
        If a number or a list is beyond :data:`DEEPEST` (what the name says is repeated) or :data:`WIDEST`.
    """
    most = DEEPEST if _REPEATS.search(name) else WIDEST
    if isinstance(data, dict):
        for key, value in data.items():
            check_size(where, value, str(key))
    elif isinstance(data, list):
        numbers = [item for item in data if type(item) is int]
        if len(data) > DEEPEST or sum(map(abs, numbers)) > most:
            raise InvalidArgument(where, f"at most {most} in all as {name or 'a list'}", data)
        for item in data:
            check_size(where, item, name)
    elif type(data) is int and abs(data) > most:
        raise InvalidArgument(where, f"at most {most} as {name}", data)


def _class(transformers: Any, settings: Any) -> Any:
    wanted = TOWERS.get(settings.model_type)
    if wanted is None:
        return transformers.AutoModel
    asked = getattr(settings, "architectures", None)
    first = asked[0] if isinstance(asked, list) and asked else None
    return getattr(transformers, str(first) if first in TOWERS.values() else wanted)


class _Linspace(TorchFunctionMode):
    """Keep torch.linspace off the meta device: models read their rates of drop path from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def _fresh(transformers: Any, text: str) -> nn.Module:
    """Return a model of a configuration, with fresh weights, on the device of the context."""
    try:
        data = loads(text)
    except ValueError as error:
        raise InvalidArgument("config", f"JSON ({told(error)})", text) from error
    settings = _settings(transformers, data, "config")
    kind = _class(transformers, settings)
    make = kind.from_config if kind is transformers.AutoModel else kind
    with _Linspace():
        net: nn.Module = make(settings)
    return net


def _stored(transformers: Any, folder: Path) -> tuple[nn.Module, set[str]]:
    """Return the model of a folder, and the names of tensors of its pooler that are not stored."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; hubs are not asked: save the model to a folder first")
    for names in (("config.json",), WEIGHTS):
        if not any((folder / name).is_file() for name in names):
            raise RunError(f"{folder}: lacks {' or '.join(names)}; need what save_pretrained writes")
    settings = _settings(transformers, read_json(folder / "config.json"), f"{folder / 'config.json'}")
    try:
        with _quiet(transformers):
            net, report = _class(transformers, settings).from_pretrained(
                str(folder),
                config=settings,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors has an exception of its own for damage
        if type(error).__name__ == "SafetensorError":
            raise CorruptFile(folder, None, f"weights are not whole safetensors: {error}") from error
        if isinstance(error, OSError | RuntimeError | ValueError | KeyError):
            raise RunError(f"{folder}: weights do not fit: {told(error)}") from error
        raise
    missing = {str(name) for name in report.get("missing_keys", ())}
    if report.get("mismatched_keys") or any("pooler." not in name for name in missing):
        wrong = sorted(map(str, [*missing, *(report.get("mismatched_keys") or ())]))
        raise RunError(f"{folder}: weights do not fit the configuration: {', '.join(wrong[:6])}")
    return net, missing


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the package's bar and its table of tensors off the terminal: what matters is raised."""
    logs: Any = getattr(getattr(transformers, "utils", None), "logging", None)
    if logs is None:
        yield
        return
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()


def _standardisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of ``preprocessor_config.json``, for pixels in [0, 1]."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if not (folder / name).is_file():
            continue
        found = read_json(folder / name)
        found = found.get(key, {}) if key is not None and isinstance(found, dict) else found
        if not isinstance(found, dict) or (key is not None and not found):
            continue
        return _read_standardisation(folder / name, found)
    raise RunError(f"{folder}: lacks preprocessor_config.json; give mean and std")


def _read_standardisation(
    path: Path, found: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    factor = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    if type(factor) not in (int, float):
        raise CorruptFile(path, None, "need rescale_factor, a number")
    if abs(factor * 255 - 1) > 1e-6 or found.get("rescale_offset", False):
        need = "mean and std given by hand, for pixels are not divided by 255"
        raise InvalidArgument(str(path), need, factor)
    if not found.get("do_normalize", True):
        return (0.0,), (1.0,)
    mean, std = found.get("image_mean"), found.get("image_std")
    for values in (mean, std):
        plain = isinstance(values, list) and 0 < len(values) <= WIDEST
        if not plain or any(type(v) not in (int, float) for v in cast(list[Any], values)):
            raise CorruptFile(path, None, "need image_mean and image_std, one number for each channel")
    return tuple(map(float, cast(list[Any], mean))), tuple(map(float, cast(list[Any], std)))


def _described(net: Any) -> str:
    """Return the configuration as JSON, with the class that it was built as."""
    data = {k: v for k, v in net.config.to_dict().items() if not k.startswith("_") and k not in _DROPPED}
    return json.dumps({**data, "architectures": [type(net).__name__]}, sort_keys=True)
