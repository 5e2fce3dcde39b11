"""``holdfast``: the commands put together, and errors turned into one line and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._version import __version__
from ..errors import HoldfastError
from . import (
    bench,
    certify,
    compare,
    doctor,
    embed,
    evaluate,
    listing,
    plan,
    quickstart,
    report,
    train,
)
from .output import say_error

app = typer.Typer(
    name="holdfast",
    help="Adversarially robust metric learning: train, attack, score and report on embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart_command)
app.command("train")(train.train_command)
app.command("plan")(plan.plan_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("embed")(embed.embed_command)
app.command("certify")(certify.certify_command)
app.command("compare")(compare.compare_command)
app.command("report")(report.report_command)
app.command("bench")(bench.bench_command)
app.command("list")(listing.list_command)
app.command("doctor")(doctor.doctor_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Adversarially robust metric learning: train, attack, score and report on embedding models."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (HoldfastError, OSError) as error:
        say_error(error, as_json="--json" in sys.argv)
        sys.exit(2)
    except KeyboardInterrupt:
        say_error("stopped; go on with --resume", as_json=False)
        sys.exit(130)
