"""Pages about methods: nothing is left out, markers resolve, figures draw, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from holdfast.attacks import ATTACKS, CLUSTER_ATTACKS
from holdfast.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from sitebuild import commands, figures, reference, sources, tables  # noqa: E402
from sitebuild.markers import expand, markers  # noqa: E402

METHODS = sorted((DOCS / "methods").glob("*.md"))
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def arguments(name: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the arguments of all markers of a name, with their pages."""
    return [(p, m.arguments) for p in PAGES for m in markers(p.read_text("utf-8")) if m.name == name]


def shells() -> list[str]:
    """Return all commands on pages of methods."""
    return [line for _, words in arguments("shell") for line in tables.shell(*words).splitlines()[1:-1]]


def test_every_recipe_stands_on_a_page() -> None:
    patterns = [pattern for _, words in arguments("recipes") for pattern in words]
    named = {name for hits in tables.matching(tuple(patterns)).values() for name in hits}
    assert named == set(RECIPES)


def test_every_attack_stands_on_a_page() -> None:
    named = {label for _, words in arguments("attacks") for label in words}
    assert named == set(ATTACKS) | set(CLUSTER_ATTACKS)


def test_every_page_has_what_it_promises() -> None:
    for page in METHODS:
        text = page.read_text("utf-8")
        found = {marker.name for marker in markers(text)}
        assert "source" in found, page.name
        if page.stem != "index":
            assert "figure" in found, page.name
            assert re.search(r"\*\*(Published|Ours)", text), page.name


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_source_markers_resolve(page: Path) -> None:
    for marker in markers(page.read_text("utf-8")):
        for place in marker.arguments if marker.name == "source" else ():
            cut = sources.excerpt(place)
            lines = (ROOT / cut.path).read_text("utf-8").splitlines()[cut.first - 1 : cut.last]
            assert all(line.strip() in "\n".join(lines) for line in cut.code.splitlines())
            compile(cut.code, place, "exec")


def test_excerpt_leaves_the_docstring_out() -> None:
    cut = sources.excerpt("holdfast.adversaries.minmax:MinMax.gain")
    assert cut.code.splitlines() == [
        "def gain(self, z: TripletView, ctx: Context) -> Tensor:",
        "    return hardness(z.now, ctx.distance)",
    ]


@pytest.mark.parametrize(
    "place",
    [
        "holdfast.nothing:a",
        "holdfast.adversaries.minmax:MinMax.lose",
        "holdfast.adversaries.minmax:MinMax.gain.x",
    ],
)
def test_wrong_places_are_refused(place: str) -> None:
    with pytest.raises(LookupError):
        sources.excerpt(place)


def test_markers_in_code_stay() -> None:
    text = "{{one a b}}\n```\n{{one c}}\n```\n{{one}}\n"
    assert [m.arguments for m in markers(text)] == [("a", "b"), ()]
    assert (
        expand(text, {"one": lambda *words: "+".join(words) or "none"}) == "a+b\n```\n{{one c}}\n```\nnone\n"
    )
    with pytest.raises(KeyError):
        expand("{{two}}\n", {})


def test_every_figure_is_shown() -> None:
    shown = {words[0] for _, words in arguments("figure")}
    assert shown == set(figures.names())
    assert all(len(figures.words(name)[1]) > 80 for name in shown)  # a caption that says what is seen
    with pytest.raises(LookupError):
        figures.figure("none-such")


@pytest.fixture(scope="module")
def small() -> None:
    """Make the encoders and computations of figures small."""
    common = figures.load("common")
    common.EPOCHS, common.QUERIES = 1, 24
    figures.load("min_max").STEPS = figures.load("eat").STEPS = 4
    figures.load("smoothing").COPIES = 40
    figures.load("hardness_manipulation").STEPS = 4


@pytest.mark.parametrize("name", figures.names())
def test_figure_draws(name: str, small: None) -> None:
    drawn = figures.svg(name)
    assert drawn.count("<path") > 5
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn))
    assert used <= set(figures.SHADES), "a colour that does not follow the page"


def test_figures_are_the_same_each_time(small: None) -> None:
    assert figures.svg("votes") == figures.svg("votes")


def test_figures_are_kept_and_coloured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = []
    monkeypatch.setattr(figures, "CACHE", tmp_path)
    monkeypatch.setattr(figures, "svg", lambda name: drawings.append(name) or "<svg #101011/>")
    first, second = figures.drawn("votes"), figures.drawn("votes")
    assert drawings == ["votes"]
    assert first == second
    assert (first.light, first.dark) == ("<svg #1c1e21/>", "<svg #e8e8ea/>")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    made = {DOCS / one.path for one in reference.pages()}
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if not re.match(r"[a-z]+:|#", target):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists() or path in made, target


def test_navigation_lists_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    listed = re.findall(r"(\S+\.md)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(page.relative_to(DOCS)) for page in PAGES}


def test_commands_are_ones_that_exist() -> None:
    from typer.main import get_command

    from holdfast.cli.main import app
    from holdfast.evaluation import SUITES

    known = get_command(app).commands
    assert len(shells()) > 15
    for line in shells():
        program, command, *words = line.split(" #")[0].split()
        assert program == "holdfast"
        options = {name for one in known[command].params for name in one.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
        if "--suite" in words:
            assert words[words.index("--suite") + 1] in SUITES, line


def test_command_page_has_every_command_and_option() -> None:
    from typer.main import get_command

    from holdfast.cli.main import app

    page = commands.cli()
    for name, command in get_command(app).commands.items():
        section = page.partition(f"## holdfast {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for one in command.params:
            if one.opts[0].startswith("-"):
                assert f"`{', '.join([*one.opts, *one.secondary_opts])}`" in section, (name, one.opts)


def test_reference_has_every_public_package() -> None:
    pages = {page.module: page for page in reference.pages()}
    for module in ("holdfast", "holdfast.losses", "holdfast.evaluation.verdict", "holdfast.types"):
        assert module in pages
    assert "Triplet" in pages["holdfast.losses"].names
    assert "        - Triplet\n" in pages["holdfast.losses"].text
    assert not any(page.module.startswith("holdfast.cli") for page in pages.values())
    assert reference.index().count("\n") == len(pages) + 1


def test_papers_can_be_cited() -> None:
    pytest.importorskip("yaml")
    for _, words in arguments("cite"):
        assert "@" in tables.cite(*words)
    with pytest.raises(LookupError):
        tables.cite("no", "such", "paper")


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    from sitebuild.formulas import formula, mathml

    inline, block = (
        r'<span class="arithmatex">\(a &lt; b\)</span>',
        r'<div class="arithmatex">\[\max_x f\]</div>',
    )
    made = mathml(f"<p>a {inline} and {block}</p>")
    assert made.count("<math") == 2
    assert "<munder>" in made
    assert "arithmatex" not in made
    assert "<munder>" not in formula(r"\max_x f", display=False)
    for page in METHODS:
        text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))
        found = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL)
        assert found or page.stem in ("verdict", "holdfast", "hubs"), page.name
        for block, inline in found:
            assert "\\" not in re.sub(r"<[^>]+>", "", formula(block or inline, display=bool(block))), (
                block or inline
            )


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe")
    spec = importlib.util.find_spec("sitebuild.docstrings")
    assert spec is not None
    from sitebuild.docstrings import markdown

    text = (
        ":class:`~holdfast.losses.Triplet` and :func:`run`, :math:`x`::\n\n    >= 0, in pixels\n>>> 1 > 0\n"
    )
    assert markdown(text, "holdfast.attacks").splitlines() == [
        '<autoref optional identifier="holdfast.losses.Triplet"><code>Triplet</code></autoref> and '
        '<autoref optional identifier="holdfast.attacks.run"><code>run</code></autoref>, $x$:',
        "",
        "    \\>= 0, in pixels",
        ">>> 1 > 0",
    ]
    assert markdown(".. math:: a\n    = b\n\nText.", "holdfast") == "$$\na = b\n$$\n\nText."
    table = "    ==== ===\n    name  of\n    ==== ===\n    a b  12 3\n    ==== ===\n"
    assert markdown(table, "holdfast").splitlines() == [
        "    | name | of |", "    |---|---|", "    | a b | 12 3 |",
    ]  # fmt: skip
