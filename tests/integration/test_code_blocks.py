"""Every fenced code block of README.md and docs/ runs.

How the blocks of one page are run, in order, in a fresh working directory of that page:

``python``
    One after another in one namespace. A block that begins with ``# NAME.py`` is saved under that name too,
    so that later commands can use it.
``sh``, ``bash``
    Each ``holdfast`` command runs in this process, also behind ``torchrun`` and the like. Others are not run:
    they would install packages, clone, or start this very test again. They have to be of a ``KNOWN`` form,
    and the make target or the script that they name has to exist.
``json``, ``toml``
    Are read. ``text``, ``html``, ``yaml``, ``bibtex`` and ``mermaid`` are not code.

Comments directly above a block say what else is to be known, one thing each:

``<!-- ci: --set epochs=1 -->``
    These words end each ``holdfast train`` of the block; in Python they change what ``train_run`` is given.
``<!-- ci: evaluate --queries 10 -->``
    These words end each ``holdfast evaluate`` (or another command named here). Python: ``--queries`` and
    ``--check`` of ``evaluate_run``.
``<!-- ci: given encoder images -->``
    The page speaks of the reader's own values; ``GIVEN`` makes stand-ins.
``<!-- ci: parse -->``
    Only the command line is parsed (``train``: the settings are made as well), and Python only compiled. For
    what needs a GPU, data that pip does not install, another machine, or minutes.
``<!-- ci: needs PACKAGE -->``
    As ``parse`` where that package is not installed.
``<!-- ci: excerpt PATH -->``
    The block is a part of that file of the repository, white space aside.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

import holdfast as library
from holdfast.cli.main import app
from holdfast.cli.options import changed
from holdfast.data import Digits
from holdfast.encoders import SmallCNN

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DATA = {"text", "html", "yaml", "bibtex", "mermaid"}
KNOWN = (
    r"(python -m )?pip install [\w'\[\],.\- >=]+",
    r"python3? -m venv \S+",
    r"(source|\.) \S+/activate",
    r"git clone \S+( \S+)?",
    r"(mkdir|cd) \S+",
    r"python \w+\.py",
    r"make \w[\w-]*( [A-Z]+=\S+)*",
    r"(\w+=\S+ )?python (benchmarks|tests/\w+)/\w+\.py.*",
    r"ruff .*|mypy|pytest .*|mkdocs \w+",
    r"wait|done|for \w+ in .*",
)
"""Commands that are not ours. They are read against these forms and never executed."""

READERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads}
VARIABLES = re.compile(r"\$\(\([^)]*\)\)|\$\w+")
OPERATORS = set("();<>|&")


class BrokenBlock(AssertionError):
    """A block that does not do what its page says."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where its code starts, its language, its code and the orders above it."""

    page: Path
    line: int
    language: str
    code: str
    orders: tuple[str, ...]

    @property
    def parse_only(self) -> bool:
        lacking = [o.split()[1] for o in self.orders if o.startswith("needs ")]
        return "parse" in self.orders or any(importlib.util.find_spec(name) is None for name in lacking)

    def words(self, command: str) -> list[str]:
        """Return the words that the orders add to a command."""
        found: list[str] = []
        for order in self.orders:
            name, *rest = shlex.split(order)
            if name.startswith("--") and command == "train":
                found += [name, *rest]
            elif name == command:
                found += rest
        return found

    def broken(self, why: str) -> BrokenBlock:
        name = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return BrokenBlock(f"{name}:{self.line}: {why}")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page; a fence inside a list or an admonition may be indented."""
    found: list[Block] = []
    orders: list[str] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if comment := re.fullmatch(r"\s*<!--\s*ci:\s*(.*?)\s*-->\s*", line):
            orders.append(comment[1])
        elif fence := re.fullmatch(r"(\s*)(`{3,}|~{3,})\s*([\w+-]*).*", line):
            indent, marks, language = fence.groups()
            start = at + 1
            at = start
            while at < len(lines) and lines[at].strip() != marks:
                at += 1
            if at == len(lines):
                raise BrokenBlock(f"{page.name}:{start}: the fence is never closed")
            code = "\n".join(text.removeprefix(indent) for text in lines[start:at]) + "\n"
            found.append(Block(page, start, language, code, tuple(orders)))
            orders = []
        elif line.strip() and orders:
            raise BrokenBlock(f"{page.name}:{at + 1}: no block follows 'ci: {orders[-1]}'")
        at += 1
    if orders:
        raise BrokenBlock(f"{page.name}:{at}: no block follows 'ci: {orders[-1]}'")
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a block, split at pipes, ``&&``, ``;`` and ``&``."""
    text = block.code.replace("\\\n", " ")
    for line in text.splitlines():
        reader = shlex.shlex(VARIABLES.sub("0", line), posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        words: list[str] = []
        try:
            tokens = list(reader)
        except ValueError as error:
            raise block.broken(f"{error}: {line}") from None
        for token in [*tokens, ";"]:
            if set(token) <= OPERATORS:
                if words:
                    yield words
                words = []
            elif words or token not in ("do", "then"):
                words.append(token)


class Runner:
    """Runs the blocks of one page."""

    def __init__(self, page: Path, holdfast: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.page, self.holdfast, self.monkeypatch = page, holdfast, monkeypatch
        self.module = types.ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", self.module)  # dataclasses look their module up

    def run(self, block: Block) -> None:
        for order in block.orders:
            name = order.split(maxsplit=1)[0] if order else ""
            ours = {"given", "parse", "needs", "excerpt", *GROUP.commands}
            if name not in ours and not name.startswith("--"):
                raise block.broken(f"no such order: ci: {order}")
            if name == "given":
                vars(self.module).update({n: self.given(block, n) for n in order.split()[1:]})
            if name == "excerpt":
                self.excerpt(block, ROOT / order.split()[1])
                return
        if block.language == "python":
            self.python(block)
        elif block.language in ("sh", "bash"):
            for words in commands(block):
                self.command(block, words)
        elif block.language in READERS:
            try:
                READERS[block.language](block.code)
            except ValueError as error:
                raise block.broken(f"is no {block.language}: {error}") from error
        elif block.language not in DATA:
            raise block.broken(f"a fence has to name its language; got {block.language!r}")

    def given(self, block: Block, name: str) -> Any:
        if name not in GIVEN:
            raise block.broken(f"no stand-in for {name!r}; have {', '.join(GIVEN)}")
        return GIVEN[name]()

    def excerpt(self, block: Block, path: Path) -> None:
        def bare(text: str) -> str:
            return "".join(text.split())

        if not path.is_file() or bare(block.code) not in bare(path.read_text(encoding="utf-8")):
            raise block.broken(f"is no part of {path.relative_to(ROOT)}")

    def python(self, block: Block) -> None:
        try:
            code = compile("\n" * block.line + block.code, str(block.page), "exec", dont_inherit=True)
        except SyntaxError as error:
            raise block.broken(f"{error}") from error
        if name := re.match(r"# (\w+\.py)\n", block.code):
            Path(name[1]).write_text(block.code, encoding="utf-8")
        if block.parse_only:
            return
        with self.monkeypatch.context() as patch:
            shorten(patch, block.words("train"), block.words("evaluate"))
            try:
                exec(code, vars(self.module))
            except Exception as error:
                lines = [
                    f.lineno
                    for f in traceback.extract_tb(error.__traceback__)
                    if f.filename == str(block.page)
                ]
                raise block.broken(f"line {lines[-1]}: {type(error).__name__}: {error}") from error

    def command(self, block: Block, words: Sequence[str]) -> None:
        line = shlex.join(words)
        if "holdfast" not in words or words[0] in ("pip", "cd", "git"):
            self.other(block, words)
            return
        words = [*words[words.index("holdfast") + 1 :]]
        words += block.words(words[0])
        if words[0] == "--install-completion":  # would write into the reader's shell settings
            return
        if block.parse_only:
            self.parse(block, words)
            return
        done = self.holdfast(*words)
        if done.code != 0:
            raise block.broken(f"{line}: exit code {done.code}\n{done.out}{done.err}")

    def parse(self, block: Block, words: Sequence[str]) -> None:
        name, *rest = words
        if name not in GROUP.commands:
            raise block.broken(f"no such command: holdfast {name}")
        try:
            GROUP.commands[name].make_context(name, list(rest), resilient_parsing=False)
        except Exception as error:
            raise block.broken(f"holdfast {shlex.join(words)}: {error}") from error
        if name == "train" and rest[0] in library.RECIPES:
            done = self.holdfast(*words, "--show")
            if done.code:
                raise block.broken(f"holdfast {shlex.join(words)}: {done.err}")

    def other(self, block: Block, words: Sequence[str]) -> None:
        line = " ".join(words)
        if not any(re.fullmatch(form, line) for form in KNOWN):
            raise block.broken(f"no known form of a command: {line}")
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        if words[0] == "make" and not re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE):
            raise block.broken(f"the Makefile has no target {words[1]}")
        for word in words:
            where = (
                ROOT / word if word.startswith(("benchmarks/", "tests/")) else Path(word)
            )  # or saved by the page
            if word.endswith(".py") and not where.is_file():
                raise block.broken(f"there is no {word}")


GROUP: Any = typer.main.get_command(app)


def shorten(patch: pytest.MonkeyPatch, train: Sequence[str], evaluate: Sequence[str]) -> None:
    """Let ``train_run`` and ``evaluate_run`` do less than the page asks for."""
    if train:
        sets = [word for word in train if word != "--set"]
        real_train = library.train_run
        patch.setattr(
            library, "train_run", lambda run, *rest, **more: real_train(changed(run, {}, sets), *rest, **more)
        )
    if evaluate:
        pairs = dict(zip(evaluate[::2], evaluate[1::2], strict=True))
        less = {"queries": int(pairs.pop("--queries", 10)), "verdict": pairs.pop("--check", "quick")}
        assert not pairs, f"evaluate_run is not shortened by {pairs}"
        real_evaluate = library.evaluate_run
        patch.setattr(
            library, "evaluate_run", lambda folder, **more: real_evaluate(folder, **{**more, **less})
        )


def _encoder() -> nn.Module:
    return SmallCNN().build((1, 8, 8), seed=0).eval()


def _digits(start: int, stop: int) -> torch.Tensor:
    return Digits().load().test.x[start:stop]


def _embedded(start: int, stop: int) -> torch.Tensor:
    with torch.no_grad():
        return _encoder()(_digits(start, stop))


GIVEN: dict[str, Callable[[], Any]] = {
    "encoder": _encoder,
    "images": lambda: _digits(0, 60),
    "labels": lambda: Digits().load().test.y[:60],
    "queries": lambda: _digits(0, 60),
    "classes": lambda: Digits().load().test.y[:60],
    "embeddings": lambda: _embedded(0, 200).numpy(),
    "other_embeddings": lambda: _embedded(200, 300).numpy(),
    "clean_queries": lambda: _digits(0, 200),
    "clean_embeddings": lambda: _embedded(0, 200),
    "gallery_embeddings": lambda: _embedded(200, 500),
    "x": lambda: _digits(500, 510),
    "z": lambda: _embedded(500, 510),
}
"""Stand-ins for the reader's own values: an untrained encoder of digits, and digits."""


def _photographs(root: Path) -> None:
    """Draw the reader's ``photos/``: four classes of coloured textures, 16 pictures each, mixed sizes."""
    drawn = np.random.default_rng(0)
    for nth, name in enumerate(("bark", "brick", "cloth", "water")):
        (root / name).mkdir(parents=True)
        for i in range(16):
            h, w = drawn.integers(40, 72, 2)
            rows, columns = np.mgrid[:h, :w]
            angle, pitch = nth * 0.8 + drawn.normal(0, 0.1), 3 + 2 * nth
            wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * 6.3 / pitch)
            tint = np.array([(1, 0.6, 0.3), (0.9, 0.3, 0.2), (0.5, 0.8, 0.4), (0.2, 0.5, 1)][nth])
            grey = 0.55 + 0.3 * wave + drawn.normal(0, 0.08, (h, w))
            pixels = (np.clip(grey[..., None] * tint, 0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")


@pytest.fixture
def runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdfast: Callable[..., Any]
) -> Iterator[Callable[[Path], None]]:
    """Run a page in a folder of its own; afterwards nothing of it is left in this process."""
    threads, modules, home = torch.get_num_threads(), set(sys.modules), tmp_path / "page"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))

    def run(page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        if "photos" in text and "# make_photos.py" not in text:  # that page makes its own
            _photographs(home / "photos")
        one = Runner(page, holdfast, monkeypatch)
        for block in blocks(page):
            one.run(block)

    yield run
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(home)):
            del sys.modules[name]


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_every_block_of_the_page_runs(page: Path, runner: Callable[[Path], None]) -> None:
    runner(page)


BROKEN = {
    "python that raises": ("not two", "```python\nx = 1\n```\n\n```python\nassert x == 2, 'not two'\n```\n"),
    "a name that is not there": ("NameError", "```python\nholdfast.evaluate\n```\n"),
    "python that is none": ("invalid syntax", "<!-- ci: parse -->\n```python\nx = = 1\n```\n"),
    "a wrong option": ("No such option", "<!-- ci: parse -->\n```sh\nholdfast train hm --nope 1\n```\n"),
    "a wrong setting": ("nope", "<!-- ci: parse -->\n```sh\nholdfast train hm --set nope=1\n```\n"),
    "a wrong command": ("no such command", "<!-- ci: parse -->\n```sh\nholdfast fly\n```\n"),
    "a wrong command that runs": ("exit code", "```sh\nholdfast fly\n```\n"),
    "a command that fails": ("exit code 2", "```sh\nholdfast evaluate runs/nothing\n```\n"),
    "a wrong make target": ("no target coffee", "```sh\nmake coffee\n```\n"),
    "a wrong benchmark": ("there is no bench", "```sh\npython benchmarks/nothing.py\n```\n"),
    "an unknown other command": ("no known form", "```sh\nrm -rf photos\n```\n"),
    "an open quotation": ("No closing quotation", "```sh\nholdfast train 'hm\n```\n"),
    "a fence without a language": ("name its language", "```\nholdfast list recipes\n```\n"),
    "a fence that is never closed": ("never closed", "```sh\nholdfast list recipes\n"),
    "an order for nothing": ("no block follows", "<!-- ci: parse -->\n\nwords\n"),
    "an order at the end": ("no block follows", "words\n\n<!-- ci: parse -->\n"),
    "an unknown order": ("no such order", "<!-- ci: skip -->\n```python\nx = 1\n```\n"),
    "an unknown stand-in": ("no stand-in", "<!-- ci: given unicorn -->\n```python\nunicorn\n```\n"),
    "a false excerpt": ("is no part of", "<!-- ci: excerpt README.md -->\n```python\nunicorn = 0\n```\n"),
    "json that is none": ("json", "```json\n{,}\n```\n"),
    "toml that is none": ("toml", "```toml\nx =\n```\n"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("why", "text"), [pytest.param(*pair, id=name) for name, pair in BROKEN.items()])
def test_a_broken_block_is_found(why: str, text: str, tmp_path: Path, runner: Callable[[Path], None]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{text}", encoding="utf-8")
    with pytest.raises(BrokenBlock, match=rf"page.md:\d+: .*{why}"):
        runner(page)


GOOD = """
Save as `mine.py`:

```python
# mine.py
from dataclasses import dataclass


@dataclass
class Mine:
    n: int = 3
```

- listed:

    ```python
    import mine
    assert mine.Mine().n == Mine().n == 3
    ```

<!-- ci: given encoder images labels -->

```python
assert encoder(images).shape[0] == len(labels)
```

```sh
pip install 'holdfast[report]' && holdfast list recipes   # a remark
make test
```

<!-- ci: --set epochs=1 -->
<!-- ci: parse -->

```bash
for s in 0 1; do CUDA_VISIBLE_DEVICES=$((2*s)) holdfast train hm \\
    --seed $s & done; wait
```
"""


def test_a_good_page_runs_in_its_folder_and_its_blocks_share_a_namespace(
    tmp_path: Path, runner: Callable[[Path], None]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD, encoding="utf-8")
    runner(page)
    assert Path("mine.py").is_file()
    assert "Mine" not in globals()


def test_words_are_added_to_their_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- ci: --set epochs=1 -->\n<!-- ci: evaluate --queries 10 -->\n\n```sh\nholdfast train hm\n```\n",
        encoding="utf-8",
    )
    (block,) = blocks(page)
    assert block.line == 4
    assert block.words("train") == ["--set", "epochs=1"]
    assert block.words("evaluate") == ["--queries", "10"]
    assert block.words("report") == []
    assert replace(block, orders=("needs torch",)).parse_only is False
    assert replace(block, orders=("needs no_such_package",)).parse_only is True
