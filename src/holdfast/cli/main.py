"""``holdfast``: the commands put together, and errors turned into a line, a hint and exit code 2."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from .._version import __version__
from ..errors import HoldfastError, HoldfastWarning, near
from . import (
    audit,
    bench,
    certify,
    compare,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    init,
    leaderboard,
    listing,
    plan,
    quickstart,
    report,
    train,
    verify,
)
from .output import say, say_error

app = typer.Typer(
    name="holdfast",
    help="Adversarially robust metric learning: train, attack, score and report on embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart_command)
app.command("demo")(demo.demo_command)
app.command("init")(init.init_command)
app.command("train")(train.train_command)
app.command("plan")(plan.plan_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("embed")(embed.embed_command)
app.command("certify")(certify.certify_command)
app.command("compare")(compare.compare_command)
app.command("report")(report.report_command)
app.command("verify")(verify.verify_command)
app.command("export")(export.export_command)
app.command("audit")(audit.audit_command)
app.command("bench")(bench.bench_command)
app.add_typer(leaderboard.app, name="leaderboard")
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
    as_json = "--json" in sys.argv
    told, raw = set[str](), warnings.showwarning

    def warn(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, HoldfastWarning):
            raw(message, category, *where)
        elif str(message) not in told:
            told.add(str(message))
            say(f"warning: {message}")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", HoldfastWarning)
            warnings.showwarning = warn  # type: ignore[assignment]
            code = app(prog_name="holdfast", standalone_mode=False)
    except _CAUGHT as error:
        say_error(error if str(error) else "out of memory", as_json, _usage_hint(error))
        sys.exit(2)
    except KeyboardInterrupt:
        code = STOPPED
    if code == STOPPED:
        again = "with --resume goes on" if "train" in sys.argv[1:2] else "goes on where it was stopped"
        say_error("stopped", as_json, f"the same command {again}")
    sys.exit(code if isinstance(code, int) else 0)


_USAGE: tuple[type[Exception], ...] = tuple(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ in ("UsageError", "ClickException")
)
"""What typer raises for words that it does not understand; it may bring a copy of click of its own."""
_CAUGHT: tuple[type[Exception], ...] = (HoldfastError, OSError, MemoryError, *_USAGE)
STOPPED = 130
"""Exit code after Ctrl-C."""


def _usage_hint(error: Exception) -> str | None:
    """Return what to do about words that the command line does not understand."""
    if not isinstance(error, _USAGE):
        return None
    context = getattr(error, "ctx", None)
    path = "holdfast" if context is None else context.command_path
    command = str(error).partition("No such command '")[2].partition("'")[0]
    option = getattr(error, "option_name", "")
    close: list[str] = []
    if command:
        close = near(command, [c.name for c in app.registered_commands if c.name is not None])
    elif option and context is not None:
        close = near(option, [o for p in context.command.params for o in p.opts if o.startswith("--")])
    advice = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{advice}{path} --help tells what there is"
