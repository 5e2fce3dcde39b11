"""Several processes that train one encoder: who they are, and what they tell each other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..defenses.processes import mean_of
from ..errors import HoldfastError, InvalidArgument, MissingExtra, RunError
from ..types import Step
from .group import Alone, PeerLost

WAIT = timedelta(minutes=30)
"""How long processes wait for one that neither answers nor ends."""

T = TypeVar("T")


class FabricGroup(Alone):
    """The processes that Lightning Fabric found or was told of.

    Parameters
    ----------
    fabric
        Launched.

    Notes
    -----
    Gradients are averaged where the optimiser steps, in one message, and not by a module wrapped in
    ``DistributedDataParallel``. So the attack and the loss see the bare encoder, and every defense trains on
    several processes as it does on one: those that run the encoder several times for a loss, differentiate
    with respect to weights (AWP), call members of an ensemble alone, or yield several losses, and batches
    that accumulate. What the wrapper would gain, messages that overlap with the last backward pass, is a
    small share of a step whose search has made many passes without any message.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.rank, self.world = int(fabric.global_rank), int(fabric.world_size)
        self.device = fabric.device

    def first(self, make: Callable[[], T]) -> T:
        """Return what process 0 makes; an error of its is raised in all."""
        told: tuple[T | None, str | None] = (None, None)
        if self.rank == 0:
            try:
                told = (make(), None)
            except HoldfastError as error:
                self._send((None, str(error)))
                raise
        value: T
        value, failed = self._send(told)
        if failed is not None:
            raise RunError(failed)
        return value

    def _send(self, value: Any) -> Any:
        with _peers():
            return self.fabric.broadcast(value, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order."""
        found: list[Any] = [None] * self.world
        with _peers():
            torch.distributed.all_gather_object(found, value)
        return found

    def agree(self, step: Step | None, failed: HoldfastError | None) -> Step | None:
        """Return the step with the mean of all logs; raise what went wrong in any process, and name it."""
        said = self.gather((None if failed is None else str(failed), None if step is None else step.logs))
        for rank, (message, _) in enumerate(said):
            if message is not None:
                raise RunError(f"process {rank} of {self.world}: {message}") from failed
        logs = [line for _, line in said if line is not None]
        if step is None and not logs:
            return None
        if step is None or len(logs) < self.world:
            raise InvalidArgument(
                "defense", "one that yields the same number of losses in every process", "others"
            )
        return Step(step.loss, mean_of(logs))

    def average(self, modules: nn.Module) -> None:
        """Make the gradients of all processes their mean; one that is missing counts as zero."""
        trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        if not trained:
            return
        there = trained[0].new_tensor([float(parameter.grad is not None) for parameter in trained])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        there, *means = self._mean([there, *grads])
        for parameter, mean, share in zip(trained, means, there.tolist(), strict=True):
            parameter.grad = mean if share > 0 else None

    def level(self, modules: nn.Module) -> None:
        """Make floating-point buffers, such as statistics of batch normalisation, their mean."""
        buffers = [buffer for buffer in modules.buffers() if buffer.is_floating_point()]
        for buffer, mean in zip(buffers, self._mean(buffers), strict=True):
            buffer.data.copy_(mean)

    def _mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over processes, sent as one message for each dtype."""
        means: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([tensors[i].detach().reshape(-1) for i in chosen])
            with _peers():
                torch.distributed.all_reduce(flat)
            flat /= self.world
            sizes = [tensors[i].numel() for i in chosen]
            for i, part in zip(chosen, torch.split(flat, sizes), strict=True):
                means[i] = part.view_as(tensors[i])
        return [means[i] for i in range(len(tensors))]

    def begin(self, modules: nn.Module) -> None:
        """Give all processes the weights and buffers of process 0."""
        with _peers():
            for value in modules.state_dict().values():
                if isinstance(value, Tensor):
                    torch.distributed.broadcast(value, src=0)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Turn the error of a broken connection into one that says so."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise PeerLost(
            f"lost contact with another process of the run ({str(error).splitlines()[0]})"
        ) from error


@contextlib.contextmanager
def joined(devices: int, nodes: int, device: str) -> Iterator[FabricGroup]:
    """Join the process group that this process was started for, by torchrun, SLURM or ``--devices``.

    Parameters
    ----------
    devices, nodes
        Processes on each node, and nodes.
    device
        ``"auto"``, ``"cpu"`` (gloo) or ``"cuda"`` (nccl).

    Raises
    ------
    MissingExtra
        If lightning_fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError:
        raise MissingExtra("lightning_fabric", "distributed", "training on several processes") from None
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    wanted = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=wanted, devices=devices, num_nodes=nodes, strategy=DDPStrategy(timeout=WAIT))
    with _peers():
        fabric.launch()
    try:
        yield FabricGroup(fabric)
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()
