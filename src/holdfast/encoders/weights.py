"""Weights that others trained, from a local file into a module: every name and shape is checked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CorruptFile, InvalidArgument, RunError

PICKLED = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
SHOWN = 6
_COUNTER = "num_batches_tracked"
HEADER_LIMIT = 1 << 24
"""Most bytes of a safetensors header; a network of 1000 tensors has one of 1e5."""


def check_header(path: Path) -> None:
    """Refuse a safetensors file by the length of its header, before anything is read into memory.

    Raises
    ------
    CorruptFile
        If the header is longer than the file, or than :data:`HEADER_LIMIT`.
    """
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
    if size < 8 or length > min(HEADER_LIMIT, size - 8):
        raise CorruptFile(path, 0, f"not safetensors: a header of {length} bytes in a file of {size}")


def check_weights(argument: str, value: str | None) -> None:
    """Raise InvalidArgument unless the value is None or names a file of a known kind."""
    if value is not None and not (isinstance(value, str) and value.endswith(SUFFIXES)):
        raise InvalidArgument(argument, f"none or a path that ends in {', '.join(SUFFIXES)}", value)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors`` file or a pickled state dict; nothing in it is executed.

    Pickles go through PyTorch's ``weights_only`` reader, which refuses everything but plain containers and
    tensors.

    Raises
    ------
    RunError
        If there is no such file, or it holds something else than one flat mapping of names to tensors.
    CorruptFile
        If the file cannot be read: damaged, of another kind, or a pickle that asks for code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise RunError(f"{path}: no such file; expected weights ({', '.join(SUFFIXES)})")
    if path.suffix not in PICKLED:
        check_header(path)
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CorruptFile(path, None, f"not safetensors: {error}") from error
    _check_members(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 anything may come of pickles; PyTorch's message advises to allow code
        reason = "need a state dict of tensors alone; damaged, or it asks for code, which is never run"
        raise CorruptFile(path, None, reason) from None
    if not isinstance(found, Mapping):
        raise RunError(f"{path}: need a mapping of names to tensors, got {type(found).__name__}")
    others = [k for k, v in found.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise RunError(f"{path}: need a flat mapping of names to tensors; no tensors at {_few(others)}")
    return dict(found)


def _check_members(path: Path) -> None:
    """Refuse an archive with packed members: PyTorch writes none, and a few bytes may become any number."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CorruptFile(path, None, f"damaged archive of weights: {error}") from error
    packed = any(info.compress_type != zipfile.ZIP_STORED for info in members)
    if packed or sum(info.file_size for info in members) > path.stat().st_size:
        raise CorruptFile(path, None, "an archive of weights that unpacks to more than it is")


def load_weights(module: nn.Module, path: str | Path, ignore: tuple[str, ...] = ()) -> None:
    """Copy weights from a file into a module; all of them have to fit.

    Parameters
    ----------
    module
        Its state dict says which names and shapes are expected; dtypes stay those of the module.
    path
        See :func:`read_weights`.
    ignore
        Beginnings of names that the file may hold and that are left out on purpose: the old classifier.

    Raises
    ------
    RunError
        If a tensor is missing, left over, or of another shape or kind. Only ``num_batches_tracked`` may be
        missing, as it is in files from before PyTorch 0.4.1: it decides nothing here.
    CorruptFile
        If the file cannot be read.
    """
    path, expected = Path(path), module.state_dict()
    found = read_weights(path)
    found = {k: v for k, v in found.items() if k in expected or not k.startswith(ignore)}
    counters = {k: v for k, v in expected.items() if k.split(".")[-1] == _COUNTER}
    found = counters | found
    check_names(path, found, expected)
    for name, tensor in found.items():
        check_tensor(path, name, tensor, expected[name])
    module.load_state_dict(found, strict=True)


def check_names(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise RunError unless both hold the same names."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        raise RunError(
            f"{path}: tensors do not fit the spec: missing {_few(missing)}, surplus {_few(surplus)}"
        )


def check_tensor(path: Path, name: str, tensor: Tensor, expected: Tensor) -> None:
    """Raise RunError unless the tensor is a plain one of the expected shape and kind."""
    floating = expected.is_floating_point()
    same = tensor.is_floating_point() if floating else tensor.dtype == expected.dtype
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if tensor.shape != expected.shape or not same or not plain:
        kind = "floating point" if floating else str(expected.dtype)
        raise RunError(
            f"{path}: tensor {name!r} needs {kind} of shape {tuple(expected.shape)}, "
            f"got {tensor.dtype} of {tuple(tensor.shape)}{'' if plain else ' (not a dense tensor)'}"
        )
    if floating and not bool(torch.isfinite(tensor).all()):
        raise RunError(f"{path}: tensor {name!r} holds numbers that are not finite")


def _few(names: list[Any]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{[_cut(name) for name in names[:SHOWN]]}{more}"


def _cut(name: Any) -> Any:
    text = name if isinstance(name, str) else repr(name)
    return name if len(text) <= 100 else f"{text[:97]}..."
