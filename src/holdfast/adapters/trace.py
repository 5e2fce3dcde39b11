"""Call someone else's loss without a trace: what it counts, logs and remembers stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("_parameters", "_modules", "_buffers")


@contextmanager
def untouched(*modules: Any) -> Iterator[None]:
    """Put attributes and buffers of modules back after a block, such as the memory of a cross-batch loss.

    Parameters
    ----------
    *modules
        Losses and miners; what is no module passes through, and so do objects that a module holds and that
        are neither numbers, lists, dictionaries nor tensors.
    """
    parts = {id(part): part for one in modules if isinstance(one, nn.Module) for part in one.modules()}
    kept = [(part, *_state(part)) for part in parts.values()]
    try:
        yield
    finally:
        for part, attributes, copies in kept:
            _put_back(part, attributes, copies)


def _state(part: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes and buffers of a module as they are, and copies of those that can change."""
    attributes = {name: value for name, value in vars(part).items() if name not in _PARTS}
    attributes |= {f"_buffers.{name}": value for name, value in part._buffers.items()}
    copies: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            copies[name] = value.detach().clone()
        elif type(value) in (dict, list):
            copies[name] = value.copy()
    return attributes, copies


@torch.no_grad()
def _put_back(part: nn.Module, attributes: dict[str, Any], copies: dict[str, Any]) -> None:
    for name in [name for name in vars(part) if name not in _PARTS and name not in attributes]:
        del vars(part)[name]
    for name, value in attributes.items():
        if name in copies:
            if isinstance(value, Tensor):
                value.copy_(copies[name])
            elif isinstance(value, dict):
                value.clear()
                value.update(copies[name])
            else:
                value[:] = copies[name]
        holder = part._buffers if name.startswith("_buffers.") else vars(part)
        holder[name.removeprefix("_buffers.")] = value
