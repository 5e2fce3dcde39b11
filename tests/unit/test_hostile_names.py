"""Names that others chose, on the terminal: no control character but line ends, and no markup, comes out."""

from __future__ import annotations

import importlib
import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast import recipe
from holdfast.cli import output
from holdfast.comparison import Change, Row, RunComparison
from holdfast.config import to_plain
from holdfast.evaluation import compare
from holdfast.leaderboard import markdown
from holdfast.leaderboard.entries import signature
from holdfast.report.words import plain
from holdfast.results import make
from holdfast.results.record import append
from holdfast.results.table import Grid, printable
from holdfast.verify import Check, Verification

Call = Callable[..., Any]
STEERS = "\x1b[2J\x1b]0;owned\x07\x1b[31m\r\x08\x7f\x9b31m\x85\u2028\u202e\u2066\ud800\n"
"""Clears the screen, sets the title, colours, goes back, turns round, breaks the line."""
MARKUP = "[red]evil[bold] :smile: [link=http://x]x"
NAME = f"a{STEERS}{MARKUP}"
CLOSED = f"{NAME} [/] [/blue]"
"""With what makes markup wrong; no file can be called so."""
FILE = NAME.replace("/", "").replace("\ud800", "")
SEEN = "[red]evil[bold] :smile: "


def clean(said: Any) -> None:
    """Look at all that a command said."""
    for text in (said.out, said.err):
        steering = {
            c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        }
        assert not steering, (steering, text)


def replaced(monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: Any) -> None:
    """Let a command find something; its module is not the package's attribute of the same name."""
    module = importlib.import_module(f"holdfast.cli.{command}")
    monkeypatch.setattr(module, name, lambda *_, **__: value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a name to fear, and settings that can be read."""
    path = tmp_path / FILE
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"schema": 1, "run": to_plain(recipe("plain"))}))
    return path


WORDS = {
    "list": ["list", CLOSED],
    "a command": [CLOSED],
    "an option": ["evaluate", f"--{CLOSED}"],
    "train": ["train", CLOSED],
    "train with": ["train", "plain", "--set", f"{CLOSED}=1"],
    "evaluate": ["evaluate", f"nothing {FILE}".replace(":", "")],
    "evaluate a factory": ["evaluate", f"{CLOSED}:make", "--images", FILE],
    "compare": ["compare", f"nothing {FILE}", "b"],
    "certify": ["certify", f"nothing {FILE}"],
    "certify a table": ["certify", "--data", f"csv:{FILE}"],
    "certify by": ["certify", "--data", "digits", "--methods", CLOSED],
    "report": ["report", f"nothing {FILE}"],
    "verify": ["verify", f"nothing {FILE}"],
    "leaderboard": ["leaderboard", f"nothing {FILE}"],
    "doctor": ["doctor", "--for", CLOSED],
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", WORDS)
def test_error_lines(
    name: str, as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    said = holdfast(*WORDS[name], *["--json"] * as_json)
    clean(said)
    assert said.code == 2
    lines = said.err.splitlines()
    assert all(line.startswith(("holdfast: error: ", "holdfast: hint: ")) for line in lines), lines
    assert "[red]evil[bold]" in said.err
    if as_json:
        assert "[red]evil[bold]" in json.loads(said.out)["error"]["message"]


def records(folder: Path) -> list[Any]:
    shared: dict[str, Any] = {
        "run": folder.name,
        "n": 9,
        "dataset": CLOSED.encode("utf-8", "replace").decode(),
    }
    under = {**shared, "attack": "ES" + CLOSED.replace("\ud800", ""), "state": "attacked", "eps": 0.1}
    return [
        make(metric="recall@1", value=0.5, **shared),
        make(metric="recall@1", value=0.4, failed=["R1 " + MARKUP + "\x1b"], verdict="WEAK", **under),
    ]


def test_evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Call) -> None:
    replaced(monkeypatch, "evaluate", "evaluate_run", records(folder))
    said = holdfast("evaluate", folder)
    clean(said)
    assert said.code == 0
    assert said.out.count(SEEN) >= 4  # title, column, attack, verdict, where the records are
    assert "verdict on a" in said.out


def test_compare(folder: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Call) -> None:
    row = Row(
        attack=CLOSED, state="attacked", metric=CLOSED, higher_is_robust=True, a=0, b=1,
        comparison=compare([0, 1] * 20, [1] * 40),
    )  # fmt: skip
    found = RunComparison(
        a=CLOSED, b="hm", settings={"suite": CLOSED, "threat": {"eps": 0.1}}, differing=(CLOSED,),
        fingerprints=("x", "y"), rows=(row,), changes=(Change(CLOSED, 8, CLOSED),),
    )  # fmt: skip
    replaced(monkeypatch, "compare", "compare_runs", found)
    said = holdfast("compare", folder, folder)
    clean(said)
    assert "settings that differ: - A = a" in said.out
    assert said.out.count("[red]evil") >= 4
    clean(holdfast("compare", folder, folder, "--json"))


def test_verify(folder: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Call) -> None:
    check = Check(what=CLOSED, holds=False, detail=CLOSED, queries=1)
    found = Verification(run=CLOSED, checks=(check,), differences=(CLOSED,))
    replaced(monkeypatch, "verify", "verify_run", found)
    said = holdfast("verify", folder)
    clean(said)
    assert (said.code, said.out.count(SEEN)) == (1, 4)


def test_leaderboard(tmp_path: Path, holdfast: Call) -> None:
    found = records(tmp_path / FILE)
    told = CLOSED.replace("\ud800", "")
    content: dict[str, Any] = {
        "schema": 1, "name": told, "recipe": told, "seed": 0, "training_seconds": 1.0,
        "shared": {}, "records": found,
    }  # fmt: skip
    place = tmp_path / FILE / "results"
    place.mkdir(parents=True)
    (place / "e.json").write_text(json.dumps({**content, "sha256": signature(content)}))
    for more in ([], ["--markdown"], ["--json"], ["--html", tmp_path / FILE / "page.html"]):
        said = holdfast("leaderboard", place, *more)
        clean(said)
        assert said.code == 0, said.err
        assert "[red]evil" in said.out


def test_report(folder: Path, holdfast: Call) -> None:
    append(folder / "records.jsonl", records(folder))
    out = folder / f"{FILE}.html"
    said = holdfast("report", folder, "--out", out, "--static")
    clean(said)
    assert SEEN in said.out
    page = out.read_text(encoding="utf-8")
    assert not {c for c in page if c != "\n" and unicodedata.category(c) == "Cc"}
    assert "\u202e" not in page


def test_log_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Call) -> None:
    append(folder / "records.jsonl", records(folder))
    with (folder / "records.jsonl").open("a") as handle:
        handle.write('{"torn')
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    said = holdfast("report", folder, "--out", folder / "r.html", "--static")
    clean(said)
    (line,) = [line for line in said.err.splitlines() if "is torn" in line]
    assert line.startswith("holdfast: ")
    assert SEEN in line


def test_tables_show_text_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(title=CLOSED, caption=f"one\n{CLOSED}")
    table.add_column(CLOSED)
    table.add_row(CLOSED)
    table.add_row(Text(CLOSED, style="bold"))
    table.add_row(Text.assemble(("up", "red"), " ", (CLOSED, "green")))
    output.print_table(table)
    out = capsys.readouterr().out
    assert not {c for c in out if c != "\n" and not c.isprintable()}
    assert out.count("[red]evil[bold] :smile: [link=http://x]x [/] [/blue]") == 6


def test_progress_and_remarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "err", Console(stderr=True, width=300))
    monkeypatch.setattr(output, "QUIET_EVERY", -1.0)
    with output.live() as progress:
        for done in (0, 5, 10):
            progress.attacking(CLOSED, CLOSED, done, 10)
            progress.step(CLOSED, CLOSED, done, 10)
        progress.step(CLOSED, CLOSED, 0, 0)
        assert progress.phase is not None
        assert progress.phase.isprintable()
    output.say(CLOSED)
    output.print_rich(Text(CLOSED))
    found = capsys.readouterr()
    for text in found:
        assert not {c for c in text if c != "\n" and not c.isprintable()}
    assert found.err.count(SEEN) >= 4
    assert found.out.splitlines() == [printable(Text(CLOSED).plain)]


def test_data_for_programs_is_plain_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({NAME: [CLOSED]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == {NAME: [CLOSED]}


def test_one_filter_for_all_that_is_shown_as_text() -> None:
    assert printable(NAME).isprintable()
    assert len(printable(NAME)) == len(NAME)
    assert printable("grün, 日本 – ±½") == "grün, 日本 – ±½"
    assert Grid("run", (CLOSED,), (CLOSED,), ((1.0,),)).to_text().replace("\n", "").isprintable()
    assert markdown([]) == ""
    assert plain(NAME).count("\ufffd") == sum(unicodedata.category(c) in ("Cc", "Cs", "Cf") for c in NAME)
