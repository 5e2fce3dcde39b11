"""Device and optimiser of one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from .group import Alone


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with coupled weight decay, as in the published settings (1e-3 and 1e-7 for 28-pixel networks).

    Attributes
    ----------
    lr
        Learning rate, > 0.
    weight_decay
        >= 0.
    learnable
        Factor > 0 on the rate of what a defense learns beside the encoder, such as proxies; the code of
        the proxy-anchor loss has 100.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-7
    learnable: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InvalidArgument("lr", "a number > 0", self.lr)
        if not self.weight_decay >= 0:
            raise InvalidArgument("weight_decay", "a number >= 0", self.weight_decay)
        if not self.learnable > 0:
            raise InvalidArgument("learnable", "a number > 0", self.learnable)

    def build(self, modules: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of all trainable parameters; ``modules.learnable`` has its factor."""
        own, rest = list[nn.Parameter](), list[nn.Parameter]()
        for name, parameter in modules.named_parameters():
            if parameter.requires_grad:
                (own if name.startswith("learnable.") else rest).append(parameter)
        groups: list[dict[str, Any]] = [{"params": rest}]
        if own:
            groups.append({"params": own, "lr": self.lr * self.learnable})
        return torch.optim.Adam(groups, lr=self.lr, weight_decay=self.weight_decay)


def pick_device(name: str = "auto") -> torch.device:
    """Return a device that can be used.

    Raises
    ------
    InvalidArgument
        If the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise InvalidArgument("device", f"a device of this machine ({there})", name) from error
    return device


class Engine:
    """One process that steps an optimiser.

    Parameters
    ----------
    modules
        Whose parameters are trained.
    optimizer
        Settings.
    device
        Modules are moved there.
    group
        The processes that step together; gradients are averaged over them.
    """

    def __init__(
        self,
        modules: nn.Module,
        optimizer: Adam,
        device: torch.device,
        group: Alone | None = None,
    ) -> None:
        self.device, self.group = device, group or Alone()
        self.modules = modules.to(device)
        self.optimizer = optimizer.build(self.modules)

    def step(self, loss: Tensor, place: int = 0, of: int = 1) -> bool:
        """Back-propagate the loss of batch ``place`` of a window of ``of``; update after its last batch.

        Returns
        -------
        bool
            Whether the weights were updated, with the mean of the window's gradients.
        """
        if place == 0:
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.group.level(self.modules)
        if place + 1 < of:
            return False
        if of > 1:
            for parameter in self.modules.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(of)
        self.group.average(self.modules)
        self.optimizer.step()
        return True
