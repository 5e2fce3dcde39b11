"""What the terminal shows: progress, hints, colours, completion, and nothing of these where programs read."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from holdfast.cli import complete, listing, main, output
from holdfast.cli.compare import LOOKS, comparison_table, settings_lines
from holdfast.cli.options import radius
from holdfast.comparison import Change, Row, RunComparison
from holdfast.data import FashionMNIST
from holdfast.errors import DataError, HoldfastError, InvalidArgument, MissingExtra, UnknownName, near_runs
from holdfast.evaluation import SUITES, compare
from holdfast.recipes import RECIPES

Call = Callable[..., Any]
TERMINAL = {"TERM": "xterm-256color"}
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|38;5)")


def screen(monkeypatch: pytest.MonkeyPatch, terminal: bool, **env: str) -> io.StringIO:
    """Stand in for standard error."""
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color", **env}
    )
    monkeypatch.setattr(output, "err", console)
    return text


def steps(progress: output.Live) -> None:
    """Report every kind of progress."""
    for done in (0, 5, 10):
        progress.attacking("hm", "ES", done, 10)
        progress.step("certify", "radii", done, 10)
        line = {"kind": "step", "step": done, "steps": 11, "seconds": 1.0, "loss": 0.5}
        progress.training("hm", line)
    progress.step("hm", "checks of everything", 0, 0)


def test_a_pipe_gets_nothing_of_a_short_command(monkeypatch: pytest.MonkeyPatch) -> None:
    text = screen(monkeypatch, terminal=False)
    with output.live() as progress:
        steps(progress)
    assert text.getvalue() == ""


def test_a_pipe_gets_a_rare_line_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = screen(monkeypatch, terminal=False)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with output.live() as progress:
        for done in range(8):
            progress.attacking("hm", "ES", done, 10)
            now[0] += 5
    assert text.getvalue().splitlines() == ["holdfast: attack hm ES: 40 %  4 of 10 queries  30 s left"]


@pytest.mark.parametrize("terminal", [True, False])
def test_json_is_never_disturbed(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    text = screen(monkeypatch, terminal)
    monkeypatch.setattr(output, "QUIET_EVERY", -1.0)
    with output.live(quiet=True) as progress:
        steps(progress)
    assert text.getvalue() == ""


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    text = screen(monkeypatch, terminal=True)
    with output.live() as progress:
        steps(progress)
        assert progress.progress is not None
        progress.progress.refresh()
    shown = text.getvalue()
    assert "attack hm ES" in shown
    assert "10 of 10 queries" in shown
    assert "100 %" in shown


def test_the_pulse_stands_in_while_no_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch, terminal=True)
    with output.live() as progress:
        bars = progress.progress
        assert bars is not None
        assert not progress.waiting()  # only just begun
        progress.attacking("hm", "ES", 1, 10)
        progress._heard -= 60
        assert not progress.waiting()  # a bar is there, though slow
        progress.attacking("hm", "ES", 10, 10)
        assert not progress.waiting()
        progress._heard -= 60
        assert progress.waiting()
        progress.step("hm", "checks", 3, 10)
        assert not progress.waiting()
        progress.step("hm", "checks", 10, 10)
        progress.step("hm", "scores", 0, 0)
        assert progress.waiting()
        bars.refresh()
        assert bars.tasks[output.PULSE].visible
        assert bars.tasks[output.PULSE].description == "hm: scores"


def test_a_bar_begins_anew_for_another_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch, terminal=True)
    with output.live() as progress:
        progress.attacking("hm", "ES", 10, 10)
        progress.attacking("hm", "ES", 2, 10)
        assert progress.progress is not None
        task = progress.progress.tasks[-1]
        assert (task.completed, task.finished) == (2, False)


def test_bars_are_full_at_the_end_and_not_where_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch, terminal=True)
    with output.live() as progress:
        progress.step("certify", "the last of three", 2, 3)
    assert progress.progress is not None
    assert progress.progress.tasks[-1].finished
    block = output.live()
    progress = block.__enter__()
    progress.step("certify", "the last of three", 2, 3)
    torn = DataError("torn")
    assert not block.__exit__(DataError, torn, None)
    assert progress.progress is not None
    assert not progress.progress.tasks[-1].finished


def test_a_known_time_runs_down(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch, terminal=True)
    with output.live() as progress, progress.timed("measuring", "words", 0.2):
        time.sleep(0.6)
        assert progress.progress is not None
        assert 0 < progress.progress.tasks[-1].completed < 0.2
    assert progress.progress.tasks[-1].finished


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("train", "hm-isc"), "recipe: there is no 'hm-isc'", "hm-ics"),
        (("train", "zzzz"), "there is no 'zzzz'", "holdfast list recipes"),
        (("train", "hm", "--set", "defense.serch.steps=3"), "serch", "defense.search.steps"),
        (("train", "hm", "--set", "search.steps=3"), "search", "defense.search.steps"),
        (("train", "hm", "--eps", "8"), "from 0 to 1", "8/255"),
        (("train", "plain", "--data", "fashion-mnist"), "fashion-mnist", "--data-dir"),
        (("trian", "hm"), "No such command 'trian'.", "train"),
        (("train", "hm", "--stepz", "3"), "--stepz", "--steps"),
        (("train",), "RECIPE", "holdfast train --help"),
        (("compare", "nowhere", "nowhere"), "nowhere: no such run folder", "holdfast train RECIPE"),
        (("list", "suite"), "there is no 'suite'", "suites"),
    ],
)
def test_errors_are_a_line_and_a_hint(
    holdfast: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    error: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = holdfast(*words)
    assert said.code == 2
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith("holdfast: error: ")
    assert error in first
    assert second.startswith("holdfast: hint: ")
    assert hint in second
    told = json.loads(holdfast(*words, "--json").out)["error"]
    assert error in told["message"]
    assert hint in told["hint"]


def test_an_error_without_a_hint_is_one_line(holdfast: Call) -> None:
    said = holdfast("train", "hm", "--epochs", "0")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert json.loads(holdfast("train", "hm", "--epochs", "0", "--json").out)["error"]["hint"] is None


def test_errors_have_colour_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, env, coloured in ((True, {}, True), (True, {"NO_COLOR": "1"}, False), (False, {}, False)):
        text = screen(monkeypatch, terminal, **env)
        output.say_error(HoldfastError("wrong " * 40, hint="do it"), as_json=False)
        assert bool(COLOUR.search(text.getvalue())) == coloured
        assert text.getvalue().count("\n") == 2  # long lines are not broken


@pytest.mark.parametrize(
    ("error", "brief", "hint"),
    [
        (UnknownName("recipe", "hmm", ["hm", "act"]), "recipe: there is no 'hmm'", "did you mean hm?"),
        (UnknownName("recipe", "zz", ["hm", "act"]), "recipe: there is no 'zz'", "known: act, hm"),
        (MissingExtra("faiss", "faiss", "An index"), "An index needs faiss, which is not installed",
         "pip install 'holdfast[faiss]'"),
        (InvalidArgument("eps", "a number", "x", hint="such as 0.1"), "eps: need a number, got 'x'",
         "such as 0.1"),
        (DataError("torn"), "torn", None),
    ],
)  # fmt: skip
def test_every_error_can_carry_a_hint(error: HoldfastError, brief: str, hint: str | None) -> None:
    assert (error.brief, error.hint) == (brief, hint)


def test_a_traceback_shows_the_hint_once() -> None:
    assert DataError("torn", hint="mend it").__notes__ == ["hint: mend it"]
    assert not hasattr(DataError("torn"), "__notes__")
    assert "did you mean hm?" in str(UnknownName("recipe", "hmm", ["hm"]))
    assert not hasattr(UnknownName("recipe", "hmm", ["hm"]), "__notes__")


def test_hints_of_many_names_are_short() -> None:
    hint = UnknownName("recipe", "zzzz", RECIPES).hint
    assert hint is not None
    assert len(hint) < 300
    assert f"and {len(RECIPES) - 12} more" in hint


def folders(base: Path, *names: str) -> None:
    for name in names:
        (base / name).mkdir(parents=True)
        (base / name / "run.json").write_text("{}")


def test_near_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near_runs("hm") == "holdfast train RECIPE makes a run folder"
    folders(tmp_path, "runs/hm-ics", "runs/quick/plain")
    assert near_runs("hm-isc") == "did you mean runs/hm-ics?"
    assert near_runs("runs/hm-isc") == "did you mean runs/hm-ics?"
    assert near_runs("runs/quick") == "there are runs in it: runs/quick/plain"
    assert near_runs("zzzzzz") == "runs here: runs/hm-ics, runs/quick/plain"


def test_a_radius_of_grey_levels_is_refused() -> None:
    assert radius("8/255") == 8 / 255
    assert radius("1") == 1
    assert radius("3", "l2") == 3
    for text, hint in (("8", "8/255"), ("16", "16/255"), ("300", "8/255"), ("255/8", "8/255")):
        with pytest.raises(InvalidArgument) as refused:
            radius(text)
        assert refused.value.hint == f"did you mean {hint}?"


def test_missing_data_tells_how_to_get_it() -> None:
    from holdfast.cli.options import found_by

    with pytest.raises(DataError) as missing, found_by(FashionMNIST()):
        FashionMNIST().load()
    assert missing.value.hint is not None
    assert FashionMNIST.files[0] in missing.value.hint


def test_every_command_has_json_and_help() -> None:
    for command in main.app.registered_commands:
        function = command.callback
        assert function is not None
        assert "as_json" in function.__annotations__, command.name
        assert function.__doc__


@pytest.mark.parametrize(
    "words",
    [("list", "recipes"), ("list", "suites"), ("doctor",), ("train", "hm", "--show")],
    ids=lambda words: " ".join(words),
)
def test_json_is_pure(holdfast: Call, words: tuple[str, ...]) -> None:
    said = holdfast(*words, "--json")
    assert json.loads(said.out)
    assert said.err == ""
    assert "\x1b" not in said.out


def made() -> RunComparison:
    better, worse = compare([0] * 40, [1] * 40), compare([1] * 40, [0] * 40)
    same = compare([0, 1] * 20, [0, 1] * 20)
    rows = tuple(
        Row(attack=n, state="attacked", metric="recall@1", higher_is_robust=True, a=0, b=1, comparison=c)
        for n, c in (("up", better), ("down", worse), ("level", same))
    )
    return RunComparison(
        a="plain", b="hm", settings={"suite": "core", "threat": {"eps": 0.1}}, differing=("version",),
        fingerprints=("x", "y"), rows=rows, changes=(Change("epochs", 8, 16), Change("extra", None, "ICS")),
    )  # fmt: skip


@pytest.mark.parametrize(("terminal", "env"), [(True, {}), (True, {"NO_COLOR": "1"}), (False, {})])
def test_a_comparison_says_in_words_what_it_says_in_colour(terminal: bool, env: dict[str, str]) -> None:
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, width=120, _environ={"TERM": "xterm-256color", **env}
    )
    found = made()
    console.print(comparison_table(found))
    for line in settings_lines(found):
        console.print(line, soft_wrap=True)
    shown = text.getvalue()
    assert bool(COLOUR.search(shown)) == (terminal and not env)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    rows = {row.split("│")[1].strip(): row.split("│")[-2].strip() for row in plain.splitlines() if "│" in row}
    assert rows == {"up": "B better", "down": "A better", "level": "within noise"}
    assert plain.splitlines()[-4:] == [
        "settings that differ: - A = plain, + B = hm", "- epochs = 8", "+ epochs = 16", "+ extra = ICS",
    ]  # fmt: skip


def test_runs_of_the_same_settings_print_no_difference() -> None:
    same = made().__class__(**{**vars(made()), "changes": ()})
    assert settings_lines(same) == []
    assert set(LOOKS) == {"A better", "B better", "within noise"}


def test_recipes_are_described_and_suites_short(holdfast: Call) -> None:
    rows = {row["name"]: row["what"] for row in json.loads(holdfast("list", "recipes", "--json").out)}
    assert set(rows) == set(RECIPES)
    assert not [what for what in rows.values() if "partial(" in what or not what]
    assert rows["hm-s-m"].startswith("HM[S, M]: softhard triplets moved to the hardness of semihard ones")
    assert "no adversary" in rows["hm-r-r"]
    suites = holdfast("list", "suites").out
    assert len(suites) < 6000
    assert "CA+  CA-  ES" in suites
    assert set(listing.SUITE_WORDS) == set(SUITES)


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, "runs/hm-ics", "runs/quick/plain", "one", ".hidden/run")
    (tmp_path / "runs" / "own").mkdir()
    (tmp_path / "runs" / "own" / "records.jsonl").write_text("")
    assert complete.runs("") == ["one", "runs/hm-ics", "runs/own", "runs/quick/plain"]
    assert complete.runs("runs/h") == ["runs/hm-ics"]
    assert complete.runs("./runs/h") == ["runs/hm-ics"]
    assert complete.runs(f"{tmp_path}/o") == [f"{tmp_path}/one"]
    assert complete.runs("nowhere/") == []
    assert complete.recipes("hm-i") == ["hm-ics"]
    assert complete.recipes("fashion-hm-i") == ["fashion-hm-ics"]
    assert complete.suites("ers") == ["ers", "ers-robrank"]
    assert "digits" in complete.datasets("d")
    assert complete.encoders("c2") == ["c2f2"]
    assert "wine" in complete.tables("w")


@pytest.mark.parametrize(
    ("words", "found"),
    [("train hm-i", "hm-ics"), ("list su", "suites"), ("plan hm --suite ben", "benign"), ("cert", "certify")],
)
def test_the_shell_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, found: str
) -> None:
    monkeypatch.setenv("_HOLDFAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"holdfast {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().out.split() == [found]


def test_completion_can_be_installed() -> None:
    options = {name for param in typer.main.get_command(main.app).params for name in param.opts}
    assert {"--install-completion", "--show-completion"} <= options


def test_ctrl_c_says_how_to_go_on(holdfast: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.train.train_run", stop)
    said = holdfast("train", "plain", "--out", "never")
    assert said.code == 130
    assert "--resume" in said.err
