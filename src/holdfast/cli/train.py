"""``holdfast train``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import config
from ..recipes import recipe
from ..runs import check_run, open_run, train_run
from ..training import preflight
from ..training.launch import launch, launched, plan_processes, processes, reporting
from . import complete
from .options import changed, found_by, use_threads
from .output import live, print_json, print_text

Out = Annotated[Path | None, typer.Option(help="Run folder; by default runs/RECIPE.")]


def train_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="plain, est, act, hm, hm-ics, package.module:function, or a file recipe.py[:function].",
            autocompletion=complete.recipes,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Data set; see `holdfast list datasets`.", autocompletion=complete.datasets),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder; see `holdfast list encoders`.", autocompletion=complete.encoders),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius in input units, such as 8/255.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the training search.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Names all random streams.")] = None,
    out: Out = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Least time between checkpoints.")] = 30.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes on this machine, each with a part of every batch.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Machines; start the command with torchrun or srun on each.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of a process, 1 where there are several; small images like 1."),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change any setting; repeat.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the settings and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Train an encoder by a recipe into a run folder."""
    base = recipe(name, data, data_dir)
    flags = {"encoder": encoder, "eps": eps, "steps": steps, "epochs": epochs, "batch": batch, "seed": seed}
    run = changed(base, {**flags, "device": device, "precision": precision}, sets or [])
    if show:
        print_json(config.to_plain(run)) if as_json else print_text(config.describe(run))
        return
    folder, words = out or Path("runs") / run.name, sys.argv[1:]
    plan = plan_processes(devices, nodes, run.device)
    if plan.started == "here":
        with found_by(run.data):
            preflight(check_run(run, folder, plan.world, resume), run.data.load())
        launch(words, plan.devices, folder)
        opened = open_run(folder)
    else:
        use_threads(1 if threads is None and plan.world > 1 else threads)
        with (
            reporting(),
            processes(plan, run.device) as group,
            live(quiet=as_json or group.rank > 0) as progress,
            found_by(run.data),
        ):
            opened = train_run(
                run,
                folder,
                resume=resume,
                defaults=base,
                command=shlex.join(["holdfast", *words]),
                on_line=lambda line: progress.training(run.name, line),
                checkpoint_seconds=checkpoint_seconds,
                group=group,
            )
        if group.rank or launched():
            return
    if as_json:
        print_json({"run": str(opened.path), "encoder": str(opened.path / "encoder.safetensors")})
    else:
        print_text(f"trained {run.name} into {opened.path}; next: holdfast evaluate {opened.path}")
