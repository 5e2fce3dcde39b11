"""``holdfast embed``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from .. import queues
from ..data import images_in
from ..encoders import adapt
from ..errors import InvalidArgument, RunError
from ..evaluation.embed_parts import ToEmbed
from ..runs import open_run
from ..training import pick_device
from . import complete
from .evaluate import _made
from .options import use_threads
from .output import live, print_json, print_text


def embed_command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODULE:FACTORY",
            help="Run folder, or a function that makes an encoder.",
            autocompletion=complete.runs,
        ),
    ],
    images: Annotated[Path, typer.Option(help="Folder of images; its folders are the classes.")],
    out: Annotated[Path, typer.Option(help="New folder for the vectors.")],
    size: Annotated[int, typer.Option(help="Side in pixels of the images.")] = 224,
    batch: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    jobs: Annotated[int, typer.Option(help="Processes, -1 for all cores.")] = 1,
    backend: Annotated[str, typer.Option(help="What runs them: loky, dask or ray.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask or ray cluster.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each process; by default 1, of a single one all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Embed a folder of images into memory-mapped vectors, which `--gallery` of `evaluate` takes."""
    use_threads(threads)
    if threads is None:
        alone = queues.check(jobs, backend, scheduler) == 1 and scheduler is None
        threads = torch.get_num_threads() if alone else 1
    if out.exists():
        raise RunError(f"{out}: exists already; choose another --out")
    place = str(images.resolve())
    own = ":" in what and not Path(what).exists()
    source = what if own else str(Path(what).resolve())
    found = images_in(place, size)
    key = f"{source} {place} {size} {device} {found.fingerprint()} {_version(source)}"
    with live(quiet=as_json) as progress:
        folder = queues.embed_in_parallel(
            to_embed, source, place, size, device, out=out, key=hashlib.sha256(key.encode()).hexdigest()[:16],
            batch_size=batch, jobs=jobs, backend=backend, scheduler=scheduler, threads=threads,
            on_done=lambda done, all_: progress.step("embed", f"{done} of {all_} parts", done, all_),
        )  # fmt: skip
    if as_json:
        print_json({"out": str(folder), "images": len(found), "classes": list(found.class_names)})
    else:
        print_text(f"{len(found)} vectors: {folder}; next: holdfast evaluate ... --gallery {out}")


def to_embed(what: str, images: str, size: int, device: str) -> ToEmbed:
    """Make the encoder and list the images, in any process."""
    place, found = pick_device(device), images_in(images, size)
    made = _made(what) if ":" in what and not Path(what).exists() else open_run(what).encoder()
    encoder = made if isinstance(made, nn.Module) else adapt(made)
    try:
        encoder.to(place)(found.x[:1].to(place))
    except (RuntimeError, ValueError) as error:  # of the user's encoder
        raise InvalidArgument("size", f"images that the encoder takes ({error})", size) from error
    y = found.y if found.class_names else torch.full_like(found.y, -1)
    return ToEmbed(encoder, found.x.to(place), y)


def _version(source: str) -> str:
    """Return what tells a run from a later one in the same folder."""
    return "" if ":" in source and not Path(source).exists() else open_run(source).weights()
