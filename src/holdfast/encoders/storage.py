"""Encoders in files: weights as safetensors, and in the header what is needed to build them again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CorruptFile, InvalidArgument, MissingExtra, RunError, UnknownName
from ..files import replacing
from ..functional.digest import digest
from .encoder import Encoder
from .table import ENCODERS
from .weights import check_header, check_names, check_tensor

SCHEMA = 1
_COUNTS = ("depth", "hidden", "count")
"""Fields that say how many layers there are, each with tensors of its own."""
_LONGEST = 4096
_MEMBERS = 256


def save(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder to a file, which appears whole or not at all.

    The header holds ``{"schema": 1, "spec": {"name": ..., fields}, "shape": [c, h, w]}`` as JSON under the
    key ``holdfast``; specs inside a spec, as of an ensemble's members, are written in the same way. A field
    ``weights`` of a spec, the file that training started from, is not written: the tensors themselves are
    here.

    Raises
    ------
    InvalidArgument
        If the encoder was built by a spec that is not in :data:`ENCODERS`, so that it could not be loaded.
    """
    spec = _described(encoder.spec)
    header = {"schema": SCHEMA, "spec": spec, "shape": list(encoder.shape)}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in encoder.state_dict().items()}
    header["sha256"] = digest(header, tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"holdfast": json.dumps(header, allow_nan=False)})


def _described(spec: Any) -> dict[str, Any]:
    """Return a spec as plain data, with those inside it."""
    if ENCODERS.get(spec.name) is not type(spec):
        raise InvalidArgument("encoder", f"a spec of {sorted(ENCODERS)}", type(spec).__name__)
    values = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "weights"}
    return {"name": spec.name, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return _described(value) if hasattr(value, "build") else value


def load(path: str | Path) -> Encoder:
    """Read an encoder from a file, onto the CPU; nothing in the file is executed.

    Raises
    ------
    RunError
        If the file does not exist, holds no encoder of Holdfast, was written by another schema, asks for an
        unknown spec or field, or its tensors do not fit the spec.
    MissingExtra
        If the encoder is one of timm's and timm is not installed.
    CorruptFile
        If the file is not safetensors or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such file; expected the weights of an encoder")
    check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            encoder = _empty(path, metadata.get("holdfast"), len(file.keys()))
            check_names(path, file.keys(), encoder.state_dict())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptFile(path, None, f"not safetensors: {error}") from error
    header = json.loads(metadata["holdfast"])
    if "sha256" in header and header.pop("sha256") != digest(header, tensors):
        raise CorruptFile(path, None, "its hash does not fit: it is not what was written")
    for name, expected in encoder.state_dict().items():
        check_tensor(path, name, tensors[name], expected)
    encoder.load_state_dict(tensors, strict=True, assign=True)
    encoder.lay_out()
    return encoder


def _empty(path: Path, text: str | None, tensors: int) -> Encoder:
    """Build the encoder that a header describes, without storage for its weights.

    A header that asks for more layers than the file has ``tensors`` is refused before anything is built.
    """
    if text is None:
        raise RunError(f"{path}: safetensors without a 'holdfast' header; only files of save() can be loaded")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also thousands of digits
        raise CorruptFile(path, None, f"header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        schema = header.get("schema") if isinstance(header, dict) else header
        raise RunError(f"{path}: written with encoder schema {schema!r}, this version reads {SCHEMA}")
    spec, shape = header.get("spec"), header.get("shape")
    if not isinstance(spec, dict) or not isinstance(shape, list):
        raise RunError(f"{path}: header lacks 'spec' or 'shape'")
    try:
        _check_counts(path, spec, tensors)
        with torch.device("meta"):
            built: Encoder = _spec(path, spec).build(tuple(shape), seed=0)
    except RecursionError as error:
        raise CorruptFile(path, None, "specs inside specs without end") from error
    except (RunError, MissingExtra):
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        name = spec.get("name")
        raise RunError(f"{path}: encoder {name!r} cannot be built from its header: {error}") from error
    return built


def _check_counts(path: Path, value: Any, tensors: int) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _COUNTS and type(item) is int and item > tensors:
                raise RunError(f"{path}: header asks for {name}={item} with {tensors} tensors")
            _check_counts(path, item, tensors)
    elif isinstance(value, list):
        most = min(tensors, _MEMBERS) if any(isinstance(item, dict) for item in value) else _LONGEST
        if len(value) > most:
            raise RunError(f"{path}: header lists {len(value)} parts with {tensors} tensors")
        for item in value:
            _check_counts(path, item, tensors)
    elif isinstance(value, int) and abs(value) > 2**53:
        raise RunError(f"{path}: encoder cannot be built from its header: it holds a number beyond 2^53")


def _spec(path: Path, header: dict[str, Any]) -> Any:
    """Make the spec that a header describes."""
    name = header.get("name")
    if not isinstance(name, str) or name not in ENCODERS:
        raise RunError(f"{path}: {UnknownName('encoder', str(name), ENCODERS)}")
    if "weights" in header:  # never written by save(); building must not open other files
        raise RunError(f"{path}: header names a file of weights, {header['weights']!r}")
    return ENCODERS[name](**{key: _value(path, v) for key, v in header.items() if key != "name"})


def _value(path: Path, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(path, one) for one in value)
    return _spec(path, value) if isinstance(value, dict) else value
