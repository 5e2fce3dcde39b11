"""``holdfast doctor``."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .._version import __version__
from ..data import DATASETS, find
from ..errors import UnknownName
from ..functional.memory import in_words
from ..runs import machine
from .needs import CORE, NEEDS, Finding, examine, resources
from .output import print_json, print_table, print_text


def doctor_command(
    wanted: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="WHAT", help=f"{', '.join(NEEDS)}, or a data set; exits with 1 if not ready."
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder to look for data sets in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell what is missing for what you want to do, and the command that mends it."""
    if wanted is not None:
        found = look_for(wanted, data_dir)
        if as_json:
            print_json({"for": wanted, "ready": found.ready, **asdict(found)})
        else:
            print_text(f"{wanted} ({found.what}): {'ready' if found.ready else 'not ready'}")
            for name, why in found.broken.items():
                print_text(f"  broken   {name}: {why}")
            for name in found.missing:
                print_text(f"  missing  {name}")
            if found.command:
                print_text(f"  mend     {found.command}")
        if not found.ready:
            raise typer.Exit(1)
        return
    seen = look(data_dir)
    if as_json:
        print_json(seen)
        return
    print_table(_machine(seen))
    print_table(_wants(seen))


def look(data_dir: str | None = None) -> dict[str, Any]:
    """Return what the machine offers."""
    found = examine()
    return {
        "holdfast": __version__,
        "versions": {name: importlib.metadata.version(name) for name in CORE},
        "machine": machine() | resources() | {"bf16": _bf16()},
        "extras": {name: "present" if f.ready else f.told for name, f in found.items()},
        "needs": {name: {"ready": f.ready, **asdict(f)} for name, f in found.items()},
        "data sets": find(data_dir),
    }


def look_for(wanted: str, data_dir: str | None = None) -> Finding:
    """Return how one thing stands: a name of ``NEEDS``, or a data set.

    Raises
    ------
    UnknownName
        For anything else.
    """
    if wanted in NEEDS:
        return examine([wanted])[wanted]
    if wanted not in DATASETS:
        raise UnknownName("--for", wanted, [*NEEDS, *DATASETS])
    what = f"data set {wanted}"
    if find(data_dir)[wanted] != "not found":
        return Finding(what)
    files = ", ".join(getattr(DATASETS[wanted], "files", ())) or "its files"
    command = f"holdfast doctor --for {wanted} --data-dir DIR, where DIR holds {files}"
    return Finding(what, (f"{files} in {data_dir or 'a folder named by --data-dir'}",), {}, command)


def _machine(seen: dict[str, Any]) -> Table:
    m, versions = seen["machine"], seen["versions"]
    table = Table(
        title=f"holdfast {seen['holdfast']}", title_justify="left", show_header=False, box=box.SIMPLE
    )
    table.add_row("python", m["python"])
    table.add_row("packages", ", ".join(f"{name} {version}" for name, version in versions.items()))
    table.add_row(
        "processor", f"{m['processor']}, {m['cores_usable']} of {m['cores']} cores, {m['threads']} threads"
    )
    table.add_row("device", "cpu" if m["cuda"] == "none" else f"cuda: {m['cuda']}")
    table.add_row("bfloat16", m["bf16"])
    free = m["memory_free"]
    table.add_row("memory", "not told by this system" if free is None else f"{in_words(free)} free")
    table.add_row("disk", f"{in_words(m['disk_free'])} free here")
    there = [
        name if where == "embedded" else f"{name} ({where})"
        for name, where in seen["data sets"].items()
        if where != "not found"
    ]
    table.add_row("data sets", ", ".join(there) + ("" if len(there) > 1 else "; others by --data-dir DIR"))
    return table


def _wants(seen: dict[str, Any]) -> Table:
    table = Table(title_justify="left", box=box.SIMPLE)
    table.add_column("for")
    table.add_column("what")
    table.add_column("state", overflow="fold")
    for name, found in seen["needs"].items():
        ready = found["ready"]
        state = "ready" if ready else seen["extras"][name]
        table.add_row(name, found["what"], Text(state), style=None if ready else "yellow")
    return table


def _bf16() -> str:
    if torch.cuda.is_available():
        return "yes (cuda)" if torch.cuda.is_bf16_supported() else "no (cuda)"
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    fast = bool(probe()) if probe is not None else False
    return "yes (avx512_bf16)" if fast else "works, without hardware support"
