"""The state of a run in one safetensors file: no pickle, complete or absent, exact to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CorruptFile, RunError
from ..files import replacing
from ..functional.digest import digest

SCHEMA = 2
"""Files of schema 1, which hold no hash, are read too."""
_HEALTHY = "healthy."
_START = "remove it, and --resume trains from the start"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimiser state, signal and position of a run.

    Random streams are named by seed and step, so nothing of them has to be stored.

    Attributes
    ----------
    tensors
        ``modules.*`` and ``optimizer.INDEX.*``.
    step
        Batches done.
    signal
        The defense's memory.
    settings
        Hash of the run's settings; a checkpoint of other settings is refused.
    seconds
        Training time so far.
    healthy
        Tensors of the last state that a collapse guard found healthy; usually empty.
    """

    tensors: dict[str, Tensor]
    step: int
    signal: dict[str, float]
    settings: str
    seconds: float
    healthy: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        signal: dict[str, float],
        settings: str,
        seconds: float,
        healthy: dict[str, Tensor] | None = None,
    ) -> Checkpoint:
        """Copy the present state."""
        return cls(copy_state(modules, optimizer), step, dict(signal), settings, seconds, dict(healthy or {}))

    def restore(self, modules: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the state back into modules and optimiser of the same settings."""
        restore_state(self.tensors, modules, optimizer)

    def save(self, path: Path) -> None:
        """Write the file at once, with a hash of all that it holds."""
        meta = {"schema": SCHEMA, "step": self.step, "signal": self.signal, "settings": self.settings}
        meta["seconds"] = self.seconds
        tensors = {**self.tensors, **{f"{_HEALTHY}{name}": value for name, value in self.healthy.items()}}
        meta["sha256"] = digest(meta, tensors)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"holdfast": json.dumps(meta)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file.

        Raises
        ------
        CorruptFile
            If it is no safetensors file of ours, or not what was written: a byte that changed is seen.
        RunError
            If it was written by another schema.
        """
        try:
            with safe_open(path, framework="pt") as file:
                meta: Any = json.loads((file.metadata() or {}).get("holdfast", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except (SafetensorError, ValueError, RecursionError, OSError) as error:
            raise _corrupt(path, f"need a checkpoint in safetensors form ({error})") from error
        if not isinstance(meta, dict) or "schema" not in meta:
            raise _corrupt(path, "a safetensors file, but not a Holdfast checkpoint")
        if meta["schema"] not in (1, SCHEMA):
            raise RunError(
                f"{path}: checkpoint of schema {meta['schema']}, this version reads schema {SCHEMA}; "
                "train again, or use the version of Holdfast that wrote it"
            )
        told = meta.pop("sha256", None)
        if told != digest(meta, tensors) and not (told is None and meta["schema"] == 1):
            raise _corrupt(path, "its hash does not fit: it is not what was written")
        for name, kind in _KINDS.items():
            if not isinstance(meta.get(name), kind):
                raise _corrupt(path, f"{name}: need {kind}, got {meta.get(name)!r}")
        healthy = {
            name.removeprefix(_HEALTHY): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(_HEALTHY)
        }
        return cls(tensors, meta["step"], meta["signal"], meta["settings"], meta["seconds"], healthy)


_KINDS: Mapping[str, Any] = {"step": int, "signal": dict, "settings": str, "seconds": int | float}


def _corrupt(path: Path, reason: str) -> CorruptFile:
    error = CorruptFile(path, None, reason)
    error.hint = _START
    return error


def copy_state(modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies on the CPU of weights (``modules.*``) and optimiser states (``optimizer.INDEX.*``)."""
    tensors = {f"modules.{name}": value for name, value in modules.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}


def restore_state(tensors: dict[str, Tensor], modules: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state of :func:`copy_state` back."""
    weights, states = {}, dict[int, dict[str, Tensor]]()
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "modules":
            weights[rest] = value
        else:
            index, _, key = rest.partition(".")
            states.setdefault(int(index), {})[key] = value.clone()
    modules.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
