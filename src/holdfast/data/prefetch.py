"""Training images made ready in the background: while a batch trains, the next ones are decoded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument, RunError
from .lazy import LazyImages

AHEAD = 2
"""Batches that are made ready beyond the one that trains."""
AHEAD_BYTES = 2**30
"""Most bytes that these take; a larger batch is made when it is asked for."""
POLL = 0.2
"""Seconds after which an idle thread looks whether the interpreter is about to end."""


class Batch(NamedTuple):
    """What one training step is made on: its number, rows of the data set (k,), images (k, c, h, w)."""

    step: int
    rows: Tensor
    x: Tensor


class Prefetch:
    """An iterator over batches, made one after the other by a background thread.

    Order, values and errors are those of ``(Batch(step, rows, finish(load(step, rows))) for step, rows in
    plan)``: an error of ``plan`` or ``load`` is raised, as it is, where the batch that met it is asked for.
    To be used in a ``with`` statement, at the end of which the thread has ended.

    Parameters
    ----------
    plan
        Step and rows of every batch, in order; iterated in the thread.
    load
        ``(step, rows) -> tensor``, called in the thread.
    finish
        Called with that tensor where the batch is asked for; nothing by default.
    image_bytes
        What one image of a loaded tensor takes.
    ahead, memory
        Most batches, and most bytes, that are loaded before they are asked for; at least 1 each. A batch of
        more bytes than ``memory`` is loaded when it is asked for.

    Examples
    --------
    >>> plan = [(0, torch.tensor([1, 2])), (1, torch.tensor([3]))]
    >>> with Prefetch(plan, lambda step, rows: rows * 10.0, image_bytes=4) as batches:
    ...     [(batch.step, batch.x.tolist()) for batch in batches]
    [(0, [10.0, 20.0]), (1, [30.0])]
    """

    def __init__(
        self,
        plan: Iterable[tuple[int, Tensor]],
        load: Callable[[int, Tensor], Tensor],
        finish: Callable[[Tensor], Tensor] | None = None,
        *,
        image_bytes: int,
        ahead: int = AHEAD,
        memory: int = AHEAD_BYTES,
    ) -> None:
        for name, value in (("image_bytes", image_bytes), ("ahead", ahead), ("memory", memory)):
            if value < 1:
                raise InvalidArgument(name, "an integer >= 1", value)
        self._plan, self._load, self._finish = plan, load, finish
        self._image_bytes, self._ahead, self._memory = image_bytes, ahead, memory
        self._change = threading.Condition()
        self._ready = deque[tuple[int, Batch | BaseException]]()  # with its bytes
        self._bytes = 0
        self._asked = self._closed = False
        self._thread = threading.Thread(target=self._work, name="holdfast-prefetch")

    def __enter__(self) -> Prefetch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the batch that is being loaded, if there is one, and forget all that are."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        self._thread.join()

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Batch:
        with self._change:
            if self._closed:
                raise StopIteration
            self._asked = not self._ready
            self._change.notify_all()
            while not self._ready:
                if not self._thread.is_alive():
                    raise RunError("the thread that reads images has ended without a word")
                self._change.wait(POLL)
            size, item = self._ready[0]
            if isinstance(item, SystemExit):  # what the thread called wanted to end the process
                raise RunError("reading images asked the program to end") from item
            if isinstance(item, BaseException):  # stays: whoever asks again is told again
                raise item
            self._ready.popleft()
            self._bytes -= size
            self._change.notify_all()
        return item if self._finish is None else item._replace(x=self._finish(item.x))

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            for step, rows in self._plan:
                size = self._image_bytes * len(rows)
                if not self._room(size):
                    return
                self._put(size, Batch(step, rows, self._load(step, rows)))
        except BaseException as error:  # noqa: BLE001, whatever it is, the loop must not wait for ever
            end = error
        self._put(0, end)

    def _room(self, size: int) -> bool:
        """Wait until another batch may be loaded; say whether it still shall be."""
        with self._change:
            while not self._closed and threading.main_thread().is_alive():
                within = len(self._ready) < self._ahead and self._bytes + size <= self._memory
                if within or self._asked:
                    return True
                self._change.wait(POLL)
            return False

    def _put(self, size: int, item: Batch | BaseException) -> None:
        with self._change:
            self._asked = False
            self._ready.append((size, item))
            self._bytes += size
            self._change.notify_all()


def prefetch_files(
    images: LazyImages,
    plan: Iterable[tuple[int, Tensor]],
    draws: Callable[[int], torch.Generator],
    *,
    ahead: int = AHEAD,
) -> Prefetch:
    """Return the batches of :meth:`~holdfast.data.LazyImages.augmented`, decoded ahead.

    Images for a CUDA device wait as bytes in pinned memory, and are copied while the step before still
    computes; all others wait as they are used.

    Parameters
    ----------
    images
        The files, and where their images go.
    plan
        Step and rows of every batch.
    draws
        The stream of a step's crops.
    ahead
        As for :class:`Prefetch`.
    """
    pixels = 3 * images.crop * images.crop
    if images.device.type != "cuda":

        def load(step: int, rows: Tensor) -> Tensor:
            return images.augmented(rows, draws(step))

        return Prefetch(plan, load, image_bytes=4 * pixels, ahead=ahead)

    def pinned(step: int, rows: Tensor) -> Tensor:
        return images.augmented_bytes(rows, draws(step)).pin_memory()

    return Prefetch(plan, pinned, images.from_bytes, image_bytes=pixels, ahead=ahead)
