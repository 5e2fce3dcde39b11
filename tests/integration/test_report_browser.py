"""The report in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.files import append_lines, write_json
from holdfast.report import interactive, write_report
from holdfast.results import append, make

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)"),
    pytest.mark.skipif(not interactive.available(), reason="Plotly is not installed"),
]
NAMES = ("cat", "dog", "owl")
ATTACKS = ("ES", "CA+")
RADII = (0.1, 0.2)


def fake_run(root: Path, name: str, attacked: float) -> Path:
    """A run folder of two attacks at two radii, as training and evaluation leave it."""
    run, rng = root / name, np.random.default_rng(len(name))
    (run / "exhibits").mkdir(parents=True)
    settings = {"type": "Run", "seed": 0, "threat": {"type": "LinfThreat", "eps": 0.2}}
    info = {
        "schema": 1,
        "name": name,
        "version": "0",
        "run": settings,
        "defaults": settings,
        "command": "train",
    }
    write_json(run / "run.json", info)
    log = [
        {"kind": "step", "step": i, "epoch": 0, "loss": 1 / (1 + i), "seconds": 0.1 * i} for i in range(30)
    ]
    append_lines(run / "log.jsonl", log)
    base: dict[str, Any] = {
        "run": name,
        "n": 100,
        "seconds": 2.0,
        "fingerprint": "f" + name,
        "verdict": "OVERESTIMATED",
    }
    records = [
        make(**base, metric=f"recall@{k}", value=0.9 + 0.01 * k, ci=[0.85, 0.99]) for k in (1, 2, 4, 8)
    ]
    for eps in RADII:
        at: dict[str, Any] = {**base, "eps": eps, "alpha": eps / 10, "steps": 40, "attack": "ES"}
        value = 0.91 - (0.91 - attacked) * eps / 0.2
        for state, recall in (("clean", 0.91), ("attacked", value)):
            ci = [max(0.0, recall - 0.08), min(1.0, recall + 0.08)]
            records.append(make(**at, state=state, metric="recall@1", value=recall, ci=ci))
    append(run / "records.jsonl", records)
    checks = [
        {"id": f"R{i}", "name": f"check {i}", "status": status, "threshold": "at most 1 %",
         "detail": "it is 2 %", "remedy": "use more steps"}
        for i, status in enumerate(("pass", "fail", "warn", "skipped"))
    ]  # fmt: skip
    write_json(
        run / "evaluations" / f"f{name}" / "verdict.json", {"verdict": "OVERESTIMATED", "findings": checks}
    )
    for attack in ATTACKS:
        for eps in RADII:
            query, gallery = rng.random((6, 1, 8, 8), np.float32), rng.random((6, 5, 1, 8, 8), np.float32)
            right = np.tile(np.arange(6)[:, None] % 3, 5)
            after = np.where(np.arange(6)[:, None] < 3, (right + 1) % 3, right)
            d = np.sort(rng.random((6, 5)), 1)
            np.savez(
                run / "exhibits" / f"{attack}@{eps:g}.npz", query=query, query_y=right[:, 0],
                attacked=np.clip(query + eps * np.sign(rng.standard_normal(query.shape)), 0, 1),
                before_x=gallery, before_y=right, before_d=d, after_x=gallery[:, ::-1], after_y=after,
                after_d=d + eps + np.arange(6)[:, None], held=np.arange(6) >= 3, ids=10 + np.arange(6),
                eps=eps, norm="linf", class_names=np.array(NAMES),
            )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("browser")
    return [fake_run(root, "plain", 0.1), fake_run(root, "hard", 0.6)]


@pytest.fixture(scope="module")
def report(runs: list[Path]) -> Path:
    return write_report(runs, runs[0].parent / "report.html", interactive=True)


@pytest.fixture(scope="module")
def static(runs: list[Path]) -> Path:
    """The page without Plotly, which opens faster; all else is the same."""
    return write_report(runs, runs[0].parent / "static.html", interactive=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page with what it asked for and what it said on the console."""

    def __init__(self, browser: Any, path: Path, width: int, **more: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **more)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.charts = 0
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until something holds; Playwright's own way needs what the page's policy forbids."""
        for _ in range(200):
            if self(script):
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"never: {script}")

    def draw(self) -> int:
        """Bring every chart into view, wait until it is drawn, and return how many there are."""
        self("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        boxes = int(self("document.querySelectorAll('[data-spec]').length"))
        for i in range(boxes):
            box = f"document.querySelectorAll('[data-spec]')[{i}]"
            self(f"{box}.scrollIntoView()")
            self.until(f"!!{box}.querySelector('.main-svg')")
        return boxes

    def shown(self, selector: str) -> int:
        """Return how many elements take space."""
        found = f"[...document.querySelectorAll({selector!r})]"
        return int(self(f"{found}.filter((e) => e.getBoundingClientRect().width > 0).length"))

    def theatre(self) -> tuple[str, list[str]]:
        """Return what the theatre says and the sources of its images."""
        said = self("document.querySelector('[data-words=told]').textContent")
        return said, self("[...document.querySelectorAll('[data-stage] img')].map((i) => i.src)")


Opener = Callable[..., Opened]


@pytest.fixture
def opened(browser: Any, static: Path) -> Iterator[Opener]:
    pages: list[Opened] = []

    def start(width: int = 1440, path: Path = static, **more: Any) -> Opened:
        pages.append(Opened(browser, path, width, **more))
        return pages[-1]

    yield start
    for page in pages:
        page.context.close()


@pytest.fixture(scope="module")
def drawn(browser: Any, report: Path) -> Iterator[Opened]:
    """The whole page, first on a telephone, with every toggle open and every chart drawn."""
    page = Opened(browser, report, 390)
    at_once = page("document.querySelectorAll('.main-svg').length")
    assert page("document.documentElement.scrollWidth") <= 390
    page.charts = page.draw()
    assert at_once < page.charts  # the others waited until they came into view
    yield page
    page.context.close()


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_it_fits_draws_and_asks_for_nothing(drawn: Opened, report: Path, width: int) -> None:
    drawn.page.set_viewport_size({"width": width, "height": 900})
    drawn.until(f"document.documentElement.scrollWidth <= {width}")
    assert drawn.charts >= 4
    assert drawn.shown(".plot.live .main-svg") >= drawn.charts
    assert drawn.shown(".plot.live > svg") == 0
    room = "[...document.querySelectorAll('.plot.live')].filter((p) => p.getBoundingClientRect().width > 0)"
    drawn.until(f"{room}.every((p) => p.querySelector('.main-svg').clientWidth <= p.clientWidth + 1)")
    assert drawn.said == []
    assert {url for url in drawn.asked if not url.startswith("data:")} == {report.as_uri()}


def test_every_picker_of_the_theatre_changes_what_is_shown(opened: Opener) -> None:
    page = opened()
    said, images = page.theatre()
    assert "(median case)" in said
    assert len(images) == 3 + 5 + 5
    assert page.shown(".strips") == 0
    seen = [(said, images)]
    page.page.select_option("[data-pick=attack]", "1")
    seen.append(page.theatre())
    page.page.check("[data-pick=size] input[value='0']", force=True)
    seen.append(page.theatre())
    page.page.select_option("[data-pick=query]", label="#10, cat: lost, worst case")
    seen.append(page.theatre())
    page.page.select_option("[data-pick=run]", "1")
    seen.append(page.theatre())
    for before, after in pairwise(seen):
        assert before[1] != after[1]
    assert (
        seen[0][0]
        == "Query #12, class owl (median case): 5 of the 5 nearest right before, 0 of 5 after. ✗ It was lost."
    )
    assert seen[3][0].startswith("Gallery image #10, class cat (worst case)")
    assert seen[4][0] == seen[3][0]  # the same example of the other run
    marks = page("[...document.querySelectorAll('.row.after li')].map((l) => l.className + l.innerText[0])")
    assert marks == ["wrong✗"] * 5
    assert page.said == []


def test_arrow_keys_and_buttons_step_through_the_queries(opened: Opener) -> None:
    page = opened()
    page.page.focus("[data-stage]")
    start = page.theatre()[0]
    page.page.keyboard.press("ArrowRight")
    assert page.theatre()[0].startswith(
        "Query #13, class cat: 5 of the 5 nearest right before, 5 of 5 after. ✓ It held."
    )
    page.page.keyboard.press("ArrowLeft")
    assert page.theatre()[0] == start
    for _ in range(6):  # round
        page.page.click("[data-step='1']")
    assert page.theatre()[0] == start
    page.page.focus("[data-pick=attack]")
    page.page.keyboard.press("ArrowDown")  # the picker's own keys stay its own
    assert page.theatre()[0].startswith("Gallery image")


def test_a_click_on_the_map_opens_its_query(opened: Opener) -> None:
    page = opened()
    assert page("holdfast.show('hard', 'CA+', 15)") is True
    assert page.theatre()[0].startswith("Gallery image #15, class owl (held best)")
    assert page("document.querySelector('[data-pick=run]').selectedOptions[0].text") == "hard"
    assert page("holdfast.show('hard', 'CA+', 99)") is False
    assert "not among the stored" in page("document.getElementById('live').textContent")
    assert page("holdfast.show('gone', 'CA+', 15)") is False


def test_tables_sort_by_mouse_and_by_keyboard(opened: Opener) -> None:
    page = opened()
    names = "[...document.querySelectorAll('table.runs tbody th')].map((e) => e.textContent)"
    assert page(names) == ["plain", "hard"]
    column = "table.runs thead th:nth-child(3)"
    page.page.click(f"{column} button")
    assert page(names) == ["hard", "plain"]
    assert page(f"document.querySelector('{column}').getAttribute('aria-sort')") == "descending"
    page.page.keyboard.press("Enter")  # it has the focus
    assert page(names) == ["plain", "hard"]
    assert page(f"document.querySelector('{column}').getAttribute('aria-sort')") == "ascending"
    page.page.click("table.runs thead th:first-child button")
    assert page(names) == ["hard", "plain"]
    assert page("document.querySelectorAll('table.runs [aria-sort]').length") == 1


def test_dark_mode_changes_page_and_charts(drawn: Opened) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.main-svg .xtick text')).fill]"
    )
    light = drawn(colours)
    drawn.page.emulate_media(color_scheme="dark")
    drawn.until(f"({colours})[1] !== {light[1]!r}")
    dark = drawn(colours)
    drawn.page.emulate_media(color_scheme="light")
    drawn.until(f"({colours})[1] === {light[1]!r}")
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert drawn.said == []


def test_without_scripts_drawings_and_examples_stand(opened: Opener) -> None:
    page = opened(820, java_script_enabled=False)
    charts = page.page.locator(".plot > svg")
    assert charts.count() >= 3
    assert all(
        chart.is_visible() for chart in charts.all() if not chart.locator("xpath=ancestor::details").count()
    )
    strips = page.page.locator("article.strip")
    assert strips.count() == 6
    assert all(strip.is_visible() for strip in strips.all())
    assert not page.page.locator(".theatre").is_visible()
    assert page.page.locator("button:visible").count() == 0


def test_on_paper_the_drawings_stand(drawn: Opened) -> None:
    drawn.page.emulate_media(media="print")
    assert drawn.shown(".plot > svg") >= drawn.charts
    assert drawn.shown(".plot .main-svg") == 0
    assert drawn.shown("article.strip") == 6
    assert drawn.shown(".theatre") == 0
    drawn.page.emulate_media(media="screen")


def test_a_library_that_was_tampered_with_does_not_run(opened: Opener, report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(
        text.replace('<script type="text/plain" id="plotly">', '<script type="text/plain" id="plotly"> ')
    )
    page = opened(1440, changed)
    page("document.querySelector('[data-spec]').scrollIntoView()")
    for _ in range(100):
        page.page.wait_for_timeout(25)
        if page.said:
            break
    assert any("Content Security Policy" in said for said in page.said)
    assert page.shown(".main-svg") == 0
    assert page.shown(".plot > svg") >= 3
    assert "(median case)" in page.theatre()[0]


def test_without_plotly_everything_else_works(opened: Opener, static: Path) -> None:
    assert static.stat().st_size < 1_000_000
    page = opened(820)
    assert "(median case)" in page.theatre()[0]
    assert page.shown(".plot > svg") >= 4
    assert page("document.querySelectorAll('[data-spec]').length") == 0
    assert page.said == []


def test_it_can_be_used_without_seeing_it(drawn: Opened) -> None:
    assert drawn("[...document.images].filter((i) => !i.alt).length") == 0
    unnamed = """[...document.querySelectorAll('button, select, input, summary, a')].filter((e) =>
        !e.closest('.drawn') && !(e.getAttribute('aria-label')
          || (e.labels && [...e.labels].some((l) => l.textContent.trim()))
          || (e.tagName !== 'SELECT' && e.textContent.trim()))).length"""
    assert drawn(unnamed) == 0
    levels = drawn("""[...document.querySelectorAll('h1, h2, h3, h4, h5')]
        .filter((h) => h.offsetParent).map((h) => +h.tagName[1])""")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert drawn("[...document.querySelectorAll('.chart')].every((f) => f.querySelector('table'))")
    assert drawn("[...document.querySelectorAll('.drawn')].every((d) => d.getAttribute('aria-label'))")
    assert drawn("document.querySelector('[data-words=told]').getAttribute('role')") == "status"
    ids = drawn("[...document.querySelectorAll('[id]')].filter((e) => !e.closest('.drawn')).map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_the_first_stop_of_the_keyboard_skips_to_the_answer(opened: Opener) -> None:
    page = opened()
    page.page.keyboard.press("Tab")
    assert page("document.activeElement.className") == "skip"
    page.until("document.activeElement.getBoundingClientRect().top >= 0")
    page.page.keyboard.press("Enter")
    page.until("location.hash === '#main'")
