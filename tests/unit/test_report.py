from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_digits

from holdfast.errors import CorruptFile, MissingExtra, RunError
from holdfast.files import append_lines, write_json
from holdfast.report import write_report
from holdfast.report.facts import (
    Strength,
    advice,
    headlines,
    items,
    mixed_scores,
    score_items,
    scores,
    strength,
    unlike,
)
from holdfast.report.images import change, choose
from holdfast.report.load import load_runs
from holdfast.report.parts import figure, json_block
from holdfast.report.theatre import STRIPS
from holdfast.report.words import number
from holdfast.results import append, make

EPS = 0.2
DIGITS = load_digits()
HOSTILE = "<script>alert(1)</script>\"'&$x^2$ ünï 日本 \u202e"


def fake_exhibit(path: Path, strength: float, names: list[str], size: int = 0) -> None:
    """Digits moved towards the nearest image of another class, with their true pixel-space neighbours."""
    digits = DIGITS
    x = (digits.images / 16).astype(np.float32).reshape(len(digits.images), -1)
    y = digits.target
    ids = np.arange(0, 360, 60 if size else 15)
    attacked, found = [], {"before": [], "after": []}
    for i in ids:
        d = np.linalg.norm(x - x[i], axis=1)
        wrong = x[np.where(y != y[i], d, 9e9).argmin()]
        attacked.append(np.clip(x[i] + np.clip(wrong - x[i], -strength, strength), 0, 1))
        for when, point in (("before", x[i]), ("after", attacked[-1])):
            near = np.linalg.norm(x - point, axis=1)
            near[i] = 9e9
            found[when].append(near.argsort()[:5])
    shape = (1, 8, 8)
    arrays: dict[str, Any] = {"query": x[ids].reshape(-1, *shape), "query_y": y[ids], "ids": ids}
    arrays["attacked"] = np.stack(attacked).reshape(-1, *shape)
    for when, rows in found.items():
        rows = np.stack(rows)
        point = x[ids] if when == "before" else np.stack(attacked)
        arrays[f"{when}_x"] = x[rows].reshape(len(ids), 5, *shape)
        arrays[f"{when}_y"] = y[rows]
        arrays[f"{when}_d"] = np.linalg.norm(x[rows] - point[:, None], axis=2).astype(np.float32)
    arrays["held"] = arrays["after_y"][:, 0] == arrays["query_y"]
    if size:  # the largest that can come: colour noise
        rng = np.random.default_rng(0)
        for name in ("query", "attacked", "before_x", "after_x"):
            lead = arrays[name].shape[:-3]
            arrays[name] = rng.random((*lead, 3, size, size), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, eps=np.float32(EPS), class_names=np.array(names), **arrays)


def fake_run(
    root: Path,
    name: str = "plain",
    *,
    clean: float = 0.989,
    attacked: float | None = 0.07,
    names: list[str] | None = None,
    exhibits: tuple[str, ...] = ("ES", "CA+"),
    size: int = 0,
    hard: bool = True,
) -> Path:
    """A run folder as training and evaluation leave it."""
    run = root / name
    run.mkdir(parents=True)
    settings = {"type": "Run", "seed": 0, "defense": {"type": "AdversarialTraining", "search": {"steps": 8}}}
    usual = {"type": "Run", "seed": 0, "defense": {"type": "AdversarialTraining", "search": {"steps": 32}}}
    machine = {"python": "3.11.2", "torch": "2.13.0", "threads": 2, "device": "cpu"}
    info = {"schema": 1, "name": "hm-ics", "version": "0.1.0", "run": settings, "defaults": usual}
    info |= {
        "command": f"holdfast train hm-ics --out {name}",
        "machine": machine,
        "data_fingerprint": {"train": "a0", "test": "5f1c"},
    }
    write_json(run / "run.json", info)
    rng = np.random.default_rng(len(name))
    steps = [
        {"kind": "step", "step": i, "epoch": i // 60, "loss": 0.1 + 0.4 / (1 + i / 30) + 0.03 * rng.random()}
        | ({"hardness": -0.6 + 0.5 * i / 300, "target": -0.5 + 0.4 * i / 300} if hard else {})
        | {"seconds": 0.11 * i}
        for i in range(300)
    ]
    epochs = [
        {
            "kind": "epoch",
            "epoch": e,
            "step": 60 * e + 59,
            "epochs": 5,
            "loss": 0.4 / (e + 1),
            "seconds": 6.6 * (e + 1),
        }
        | {"recall@1": clean - 0.2 / (e + 1) ** 2}
        for e in range(5)
    ]
    append_lines(run / "log.jsonl", [*steps, *epochs])

    def record(metric: str, value: float, attack: str = "none", state: str = "clean", up: bool = True) -> Any:
        half = 1.96 * (max(value * (1 - value), 0.0) / 360) ** 0.5
        ci = (
            [max(0.0, value - half), min(1.0, value + half)]
            if metric != "shift"
            else [value * 0.9, value * 1.1]
        )
        eps = 0.0 if attack == "none" else EPS
        fields: dict[str, Any] = {"run": name, "metric": metric, "value": value, "n": 360, "ci": ci}
        fields |= {"attack": attack, "state": state, "eps": eps, "alpha": 0.02, "steps": 32, "seconds": 4.5}
        return make(
            **fields, higher_is_robust=up, encoder="small-cnn", defense=name, time="2025-01-01T00:00:00"
        )

    records = [
        record("recall@1", clean),
        record("recall@2", min(1, clean + 0.005)),
        record("map", clean - 0.1),
    ]
    if attacked is not None:
        for state, recall, up, down, shift in (
            ("clean", clean, 0.5, 0.004, 0.0),
            ("attacked", attacked, 0.02 + attacked / 3, 0.98 - attacked, 1.6 - attacked),
        ):
            records.append(record("recall@1", recall, "ES", state))
            records.append(record("shift", shift, "ES", state, False))
            records.append(record("rank", up, "CA+", state))
            records.append(record("rank", down, "CA-", state, False))
    append(run / "records.jsonl", records)
    for attack in exhibits:
        path = run / "exhibits" / f"{attack}.npz"
        moved = EPS if attacked is None or attacked < 0.5 else 0.15
        fake_exhibit(path, moved, names or list("0123456789"), size)
    return run


class Page(HTMLParser):
    """Tags, attributes and text of a page, and whether every tag is closed in order."""

    VOID = frozenset(["meta", "link", "img", "br"])

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.open = "", []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(paths: list[Path], out: Path) -> tuple[str, Page]:
    """Write without Plotly, and return the page without its own script; that is for a browser to test."""
    text = write_report(paths, out, interactive=False).read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    text = re.sub("<script>.*?</script>", "", text, flags=re.S)
    page = Page(text)
    assert page.open == []
    return text, page


def section(text: str, key: str) -> str:
    """Return one section of a page."""
    return text[text.index(f'<section id="{key}"') :].partition("</section>")[0]


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str, Page]:
    root = tmp_path_factory.mktemp("runs")
    runs = [
        fake_run(root, "plain"),
        fake_run(root, "est", clean=0.975, attacked=0.45),
        fake_run(root, "hm-ics", clean=0.98, attacked=0.69),
    ]
    return runs, *report(runs, root / "report.html")


def test_the_answer_is_computed_from_the_records(tmp_path: Path) -> None:
    _, page = report([fake_run(tmp_path, attacked=0.07)], tmp_path / "r.html")
    said = (
        "With changes of at most 20 % of the grey range, an attacker makes a wrong image come first for 93 "
    )
    assert said + "of 100 queries (95 % interval 90 to 96). Without an attack it is 1 of 100." in words(page)
    _, page = report([fake_run(tmp_path, "other", attacked=0.69)], tmp_path / "r.html")
    assert "come first for 31 of 100 queries (95 % interval 26 to 36)" in words(page)


def test_three_runs_have_a_recommendation_and_all_headings(three: tuple[list[Path], str, Page]) -> None:
    _, text, page = three
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Is my model safe?",
        "Show me.",
        "How far can it be pushed?",
        "Where is it weak?",
        "What happened in training?",
        "What does the space look like?",
        "Compare.",
        "Can I believe it?",
        "How do I get this again?",
    ]
    assert "Recommended: hm-ics, because it has the highest recall@1 under attack" in words(page)
    assert "was not checked" in page.text
    assert "upper bounds" in page.text
    assert section(text, "training").count("<svg") >= 3 * 3
    assert text.count('<article class="strip">') == 3 * STRIPS
    assert text.count('alt="query"') == 3 * STRIPS
    assert "defense.search.steps" in page.text
    assert "holdfast train hm-ics --out est" in page.text


def test_every_picture_is_inside_and_nothing_is_requested(three: tuple[list[Path], str, Page]) -> None:
    _, text, page = three
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert policy[0].startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not {"iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    assert {a.get("type") for tag, a in page.tags if tag == "script"} == {"application/json"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset", "data", "poster"):
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
            if name in ("href", "xlink:href"):
                assert value.startswith("#") or value == "data:,"
            assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", value))
    images = [a for tag, a in page.tags if tag == "img"]
    assert images
    assert all(a["alt"] for a in images)


def test_ids_are_unique_and_every_reference_has_its_target(three: tuple[list[Path], str, Page]) -> None:
    _, text, page = three
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    wanted |= set(re.findall(r"url\(#(.*?)\)", text))
    assert wanted <= set(ids)


def test_charts_take_the_colours_of_the_page(three: tuple[list[Path], str, Page]) -> None:
    _, text, page = three
    assert "#010203" not in text
    charts = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert {"currentColor", "var(--clean)", "var(--attacked)"} <= set(
        re.findall(r"currentColor|var\(--\w+\)", charts)
    )
    assert all(a["aria-label"] for tag, a in page.tags if tag == "svg")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "∕")
    run = fake_run(tmp_path, name, names=[HOSTILE] * 10, attacked=0.6)
    info = json.loads((run / "run.json").read_text())
    info |= {"command": HOSTILE, "data_fingerprint": HOSTILE, "name": HOSTILE, "machine": {HOSTILE: HOSTILE}}
    info["run"][HOSTILE] = {"type": HOSTILE, "\ud800": HOSTILE}
    write_json(run / "run.json", info)
    hostile: dict[str, Any] = {"value": 0.1, "n": 9, "state": "attacked", "eps": EPS, "ci": [0.0, 0.2]}
    append(
        run / "records.jsonl",
        [make(run=name, attack=HOSTILE, metric=m, **hostile) for m in (HOSTILE, "recall@1")],
    )
    append_lines(run / "log.jsonl", [{"kind": "epoch", "epoch": HOSTILE, "step": 1, "recall@1": 0.5}])
    text, page = report([run, fake_run(tmp_path, "b")], tmp_path / "r.html")
    assert set(re.findall("<script[^>]*>", text.lower())) == {
        '<script type="application/json" id="theatre-data">'
    }
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;$x^2$ ünï 日本 \ufffd" in text
    assert HOSTILE[:30] in page.text
    assert all(not key.startswith("on") for _, a in page.tags for key in a)


def test_the_same_folders_give_the_same_bytes(three: tuple[list[Path], str, Page], tmp_path: Path) -> None:
    runs, text, _ = three
    with matplotlib.rc_context({"font.size": 33, "svg.hashsalt": None, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert report(runs, tmp_path / "again.html")[0] == text
        assert dict(matplotlib.rcParams) == before


def test_a_torn_last_line_is_tolerated(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    whole = write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    for name in ("records.jsonl", "log.jsonl"):
        with (run / name).open("a") as handle:
            handle.write('{"schema": 1, "run": "pl')
    assert write_report([run], tmp_path / "r.html").read_text(encoding="utf-8") == whole


def test_unknown_schemas_are_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    append_lines(run / "records.jsonl", [{"schema": 7}])
    with pytest.raises(RunError, match="schema 7, expected 1"):
        write_report([run], tmp_path / "r.html")
    run = fake_run(tmp_path, "b")
    write_json(run / "run.json", {"schema": 9})
    with pytest.raises(RunError, match="schema 9, expected 1"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        write_report([tmp_path / "absent"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="not a run folder"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("run.json", "No run.json was stored"),
        ("log.jsonl", "No training log was stored"),
        ("records.jsonl", "No run was attacked yet"),
        ("exhibits/ES.npz", "No examples were stored"),
    ],
)
def test_a_missing_part_is_said_in_one_line(tmp_path: Path, gone: str, said: str) -> None:
    run = fake_run(tmp_path, exhibits=("ES",))
    (run / gone).unlink()
    text, page = report([run], tmp_path / "r.html")
    assert said in page.text
    assert text.count("<h2>") == 9


def test_runs_without_an_attack_beside_attacked_ones(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, "new", attacked=None, hard=False), fake_run(tmp_path, "old", attacked=0.3)]
    text, page = report(runs, tmp_path / "r.html")
    assert "Not measured with this attack: new." in page.text
    assert "come first for 70 of 100 queries of old" in words(page)
    assert "attacked: not measured" in page.text
    assert "–" in "".join(re.findall("<td>(.*?)</td>", text))


def test_unreadable_examples_are_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    (run / "exhibits" / "ES.npz").write_bytes(b"PK\x03\x04 broken")
    np.savez(run / "exhibits" / "CA+.npz", query=np.zeros((2, 1, 8, 8)), ids=np.array([{}], dtype=object))
    _, page = report([run], tmp_path / "r.html")
    assert page.text.count("Stored examples left out") == 2
    assert "No examples were stored" in page.text


def test_broken_records_are_an_error(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    append_lines(run / "records.jsonl", [{"schema": 1, "run": "plain"}])
    with pytest.raises(CorruptFile, match="record 12 lacks time, dataset"):
        write_report([run], tmp_path / "r.html")


def test_four_runs_of_large_images_stay_below_8_mb(tmp_path: Path) -> None:
    ten = ("ES", "CA+", "CA-", "QA+", "QA-", "TMA", "LTM", "GTM", "GTT", "ES:D")
    runs = [
        fake_run(tmp_path, f"r{i}", exhibits=ten if i < 1 else ten[:3], size=224 if i < 2 else 96)
        for i in range(4)
    ]
    assert write_report(runs, tmp_path / "r.html").stat().st_size < 8_000_000


def advise(root: Path, *pairs: tuple[float, float]) -> Any:
    runs = [fake_run(root, f"r{i}", clean=c, attacked=a, exhibits=()) for i, (c, a) in enumerate(pairs)]
    loaded = load_runs(runs)
    return advice(headlines(loaded, strength(loaded)))


def test_advice(tmp_path: Path) -> None:
    assert advise(tmp_path / "one", (0.98, 0.1)) is None
    clear = advise(tmp_path / "clear", (0.98, 0.1), (0.975, 0.6))
    assert clear.run.label == "r1"
    close = advise(tmp_path / "close", (0.98, 0.58), (0.975, 0.6))
    assert close.run is None
    assert "None is better than the others beyond chance" in close.why
    dear = advise(tmp_path / "dear", (0.98, 0.1), (0.80, 0.6))
    assert dear.run is None
    assert "50 points more often than r0" in dear.why
    assert "18.0 points less often than r0" in dear.why
    worse = advise(tmp_path / "worse", (0.98, 0.6), (0.80, 0.1))
    assert worse.run.label == "r0"


def test_no_advice_across_unequal_attacks(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, "a", exhibits=()), fake_run(tmp_path, "b", attacked=0.7, exhibits=())]
    file = runs[1] / "records.jsonl"
    file.write_text(file.read_text().replace('"steps": 32', '"steps": 1'))
    loaded = load_runs(runs)
    found = advice(headlines(loaded, strength(loaded)))
    assert found is not None
    assert found.run is None
    assert "different numbers of steps" in found.why


def test_the_change_is_scaled_to_the_budget() -> None:
    clean = np.full((1, 2, 2), 0.5, dtype=np.float32)
    moved = clean + np.array([[[0.2, -0.2], [0.1, 0.0]]], dtype=np.float32)
    np.testing.assert_allclose(change(clean, moved, 0.2), [[[1.0, 0.0], [0.75, 0.5]]], atol=1e-6)
    np.testing.assert_array_equal(change(clean, clean, 0.2), np.full((1, 2, 2), 0.5))


def test_the_examples_are_a_mix_without_repetition(tmp_path: Path) -> None:
    loaded = load_runs([fake_run(tmp_path, attacked=0.6, exhibits=("ES",))])[0].exhibits["ES"]
    assert 2 <= loaded.rows["held"].sum() <= len(loaded) - 2  # else this test shows nothing
    picks = choose(loaded)
    assert [kind for kind, _ in picks] == ["worst", "worst", "middle", "middle", "held", "held"]
    assert len({i for _, i in picks}) == 6
    assert all(loaded.rows["held"][i] == (kind == "held") for kind, i in picks if kind != "middle")


def test_seconds(tmp_path: Path) -> None:
    run = load_runs([fake_run(tmp_path, exhibits=())])[0]
    assert run.training_seconds == pytest.approx(6.6 * 5)  # the clock of the last line
    assert run.evaluation_seconds == pytest.approx(4 * 4.5)  # benign, ES, CA+, CA-: once each


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    runs = load_runs([fake_run(tmp_path / "a", "x", exhibits=()), fake_run(tmp_path / "b", "x", exhibits=())])
    assert [run.label for run in runs] == ["a/x", "b/x"]


def test_dollar_signs_are_no_mathematics(tmp_path: Path) -> None:
    text, _ = report([fake_run(tmp_path, "a$x^2$b", exhibits=())], tmp_path / "r.html")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert "a$x^2$b" in labels
    assert not [label for label in labels if "x2" in label]


MEASURED = {  # of attacks, before and after
    "QA+": {"rank": (0.5, 0.1)},
    "QA-": {"rank": (0.005, 0.4)},
    "TMA": {"cosine": (-0.1, 0.9)},
    "LTM": {"recall@1": (0.9, 0.3)},
    "GTM": {"recall@1": (0.9, 0.25)},
    "GTT": {"retain@4": (1.0, 0.05)},
}
OTHERS = {
    "CA+": {"rank": (0.51, 0.05)},
    "CA-": {"rank": (0.01, 0.8)},
    "ES": {"recall@1": (0.9, 0.4), "shift": (0.0, 1.0)},
}


def scored_run(
    root: Path, name: str, suite: str, total: float = 42.0, *, steps: int = 32, attacked: float | None = None
) -> Path:
    """A run that a suite with a score has measured."""
    run = fake_run(root, name, clean=0.9, attacked=attacked, exhibits=())
    at: dict[str, Any] = {"run": name, "suite": suite, "n": 360, "eps": EPS, "alpha": 0.02, "steps": steps}
    table: dict[str, dict[str, tuple[float, float]]] = MEASURED | OTHERS
    if suite == "ers-robrank":
        table = table | {"ES:D": {"recall@1": (0.9, 0.01), "shift": (0.0, 0.9)}}
    records = [
        make(**at, attack=attack, state=state, metric=metric, value=pair[i], ci=None, seconds=2.0)
        for attack, measures in table.items()
        for metric, pair in measures.items()
        for i, state in enumerate(("clean", "attacked"))
    ]
    whole: dict[str, Any] = {**at, "attack": "all", "state": "attacked", "seconds": 99.0}
    records.append(make(**whole, metric="ers", value=total, ci=[total - 1, total + 1]))
    after = {"CA+": 10, "CA-": 20, "QA+": 20, "QA-": 60, "TMA": 10, "ES:D": 55, "ES:R": 40}
    after |= {"LTM": 30, "GTM": 25, "GTT": 5}
    records += [
        make(**whole, metric=f"{item} of ers", value=value, ci=[value - 1.0, value + 1.0])
        for item, value in after.items()
    ]
    append(run / "records.jsonl", records)
    return run


def test_the_items_of_a_score_are_shown_before_and_after(tmp_path: Path) -> None:
    runs = load_runs([scored_run(tmp_path, "a", "ers-robrank")])
    at = strength(runs, scored=True)
    assert scores(runs[0], at)["ers-robrank"]["value"] == 42.0
    before = {i.name: i.before for i in score_items(runs[0], at, "ers-robrank")}
    wanted = {"CA+": 102, "CA-": 99, "QA+": 100, "QA-": 99.5, "TMA": 110, "ES:D": 100, "ES:R": 90}
    assert before == pytest.approx(wanted | {"LTM": 90, "GTM": 90, "GTT": 100})
    text, page = report([tmp_path / "a"], tmp_path / "r.html")
    assert "TMA costs a most: from 110 to 10.0 of 100 points" in page.text
    weak = section(text, "weak")
    assert weak.count("<svg") == 1
    headings = re.findall("<th scope=.row.>(.*?)</th>", weak)
    assert [h.partition(",")[0] for h in headings] == [
        *("TMA", "GTT", "CA+", "QA+", "CA-", "GTM", "LTM", "ES:R", "ES:D", "QA-")
    ]
    for attack in (*MEASURED, *OTHERS):
        assert f"<dt>{attack}, " in weak
    assert "robustness score (ers-robrank)" in page.text
    assert "42.0 of 100 41.0 to 43.0" in words(page)
    assert "suite ers-robrank, all attacks ↑" in page.text
    assert "means over batches of 128 queries" in page.text


def test_the_headline_is_the_worst_of_all_whole_attacks(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path, "a", "ers-robrank"), scored_run(tmp_path, "b", "ers-robrank", 50.0)]
    file = runs[1] / "records.jsonl"
    file.write_text(file.read_text().replace('"value": 0.25', '"value": 0.35'))
    loaded = load_runs(runs)
    lines = headlines(loaded, strength(loaded))
    assert [line.attacked and (line.attacked["attack"], line.attacked["value"]) for line in lines] == [
        ("GTM", 0.25),
        ("LTM", 0.3),
    ]  # ES:D, one step short, is left out
    assert unlike(lines) == []  # that the worst attacks differ is no reason
    _, page = report(runs, tmp_path / "r.html")
    assert "a wrong image come first for 75 of 100 queries of a" in words(page)
    assert "worst of ES, GTM and LTM: GTM for a and LTM for b" in words(page)


def test_scores_of_different_suites_never_meet(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path, "a", "ers-robrank"), scored_run(tmp_path, "b", "ers", 50.0)]
    loaded = load_runs(runs)
    at = strength(loaded)
    assert "a by ers-robrank and b by ers" in mixed_scores(loaded, at)
    found = [{(i.attack, i.metric, i.suite) for i in items(run, at)} for run in loaded]
    assert not found[0] & found[1]
    lines = headlines(loaded, at)
    assert unlike(lines) == ["the suites ers and ers-robrank attack in different ways"]
    told = advice(lines)
    assert told is not None
    assert told.run is None
    text, page = report(runs, tmp_path / "r.html")
    assert page.text.count("The scores cannot be compared") == 3  # safe, weak, compare
    compare = section(text, "compare").partition("<summary>Every measure")[2]
    assert "tr" in compare
    for row in re.findall("<tr><th scope=.row.*?</tr>", compare):
        assert ("–" in row) == ("no attack" not in row), row
    weak = section(text, "weak")
    assert weak.count("<svg") == 2


def test_core_and_ers_share_rows_and_say_what_only_one_faced(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, "a", attacked=0.45, exhibits=()), scored_run(tmp_path, "b", "ers")]
    loaded = load_runs(runs)
    lines = headlines(loaded, strength(loaded))
    assert [line.attacked and line.attacked["attack"] for line in lines] == ["ES", "ES"]
    assert unlike(lines) == []
    _, page = report(runs, tmp_path / "r.html")
    assert "attacks that not all runs faced alike: b 25.0" in words(page).replace("\u202f", " ")
    assert "cosine with the chosen image" in page.text


def test_the_strength_with_most_steps_that_all_runs_share_is_shown(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, name, exhibits=()) for name in "ab"]

    def more(run: Path, steps: int, eps: float, value: float) -> None:
        at: dict[str, Any] = {"attack": "ES", "state": "attacked", "alpha": 0.02, "n": 360}
        append(
            run / "records.jsonl",
            [make(run=run.name, metric="recall@1", value=value, eps=eps, steps=steps, **at)],
        )

    more(runs[0], 500, EPS, 0.01)  # of one run only
    for run in runs:
        more(run, 64, EPS, 0.02)
        more(run, 4, EPS, 0.9)  # weaker and later
        more(run, 4, 2 * EPS, 0.03)
    loaded = load_runs(runs)
    at = strength(loaded)
    assert at == Strength("linf", EPS, 64, 0.02)
    assert [line.attacked and line.attacked["value"] for line in headlines(loaded, at)] == [0.02, 0.02]
    assert strength(loaded[:1]) == Strength("linf", EPS, 500, 0.02)


def with_guard(run: Path, acts: tuple[int, ...], checks: int = 20) -> Path:
    """Add the lines of a guard that looked at every 15th step and the measures of the epochs."""
    spread = {"uniformity": -1.0, "alignment": 0.1, "intra_inter": 0.3, "collapseness": -0.4}
    lines, ease = [], 1.0
    for i in range(checks):
        acted = i in acts
        ease = ease / 2 if acted else min(1.0, 1.1 * ease)
        measures = {"mean_cosine": 0.99 if acted else 0.3, "effective_rank": 1.5 if acted else 20.0, **spread}
        lines.append(
            {"kind": "guard", "epoch": 0, "step": 15 * i + 14, "acted": acted, "ease": ease} | measures
        )
    measures = {"mean_cosine": 0.4, "effective_rank": 12.0, **spread}
    lines += [{"kind": "epoch", "epoch": e, "step": 60 * e + 59} | measures for e in range(5)]
    append_lines(run / "log.jsonl", lines)
    return run


def test_collapse_measures_and_what_the_guard_did(tmp_path: Path) -> None:
    run = with_guard(fake_run(tmp_path, exhibits=()), (3, 4, 9))
    text, page = report([run], tmp_path / "r.html")
    assert "The collapse guard acted 3 times; effective rank ended at 20.0" in page.text
    assert "× red: guard acted, 3 times" in page.text
    assert "fell to 0.183, ended at 0.475" in words(page)
    assert "var(--wrong)" in "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert text.count("<td>guard acted</td>") == 3
    assert text.count("<td>epoch ended</td>") >= 5


def test_collapse_measures_without_an_act_and_without_a_guard(tmp_path: Path) -> None:
    _, page = report([with_guard(fake_run(tmp_path, "a", exhibits=()), ())], tmp_path / "r.html")
    assert "looked 20 times and never acted" in words(page)
    assert "red: guard" not in page.text
    text, page = report([with_guard(fake_run(tmp_path, "b", exhibits=()), (), 0)], tmp_path / "r.html")
    assert "Effective rank went from 12.0 to 12.0" in page.text
    assert "guard" not in page.text
    assert "var(--wrong)" not in "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))


def test_a_guard_that_acts_for_ever_does_not_make_a_large_table(tmp_path: Path) -> None:
    run = with_guard(fake_run(tmp_path, exhibits=()), tuple(range(2000)), 2000)
    text, page = report([run], tmp_path / "r.html")
    assert text.count("<td>guard acted</td>") == 100
    assert "leaves out the last 1900 acts" in words(page)
    assert len(text) < 1_500_000


def test_recall_in_training_is_said_to_be_of_training_images(tmp_path: Path) -> None:
    _, page = report([fake_run(tmp_path, clean=1.0, exhibits=())], tmp_path / "r.html")
    assert "Recall@1 of training images ended at" in page.text
    assert "this says nothing about new ones" in words(page)


def test_advice_names_a_run_that_withstands_more_but_costs(tmp_path: Path) -> None:
    found = advise(tmp_path / "close", (0.98, 0.58), (0.975, 0.6), (0.80, 0.65))
    assert found.run is None
    assert "highest recall@1 under attack among the runs that lose nothing" in found.why
    assert "r2 withstands more, not beyond the intervals" in found.why
    found = advise(tmp_path / "clear", (0.98, 0.1), (0.975, 0.6), (0.80, 0.65))
    assert found.run.label == "r1"
    assert "r2 withstands more, but not beyond the intervals" in found.why


def test_a_score_costs_no_time_of_its_own(tmp_path: Path) -> None:
    run = load_runs([scored_run(tmp_path, "a", "ers")])[0]
    assert run.evaluation_seconds == pytest.approx(4.5 + 9 * 2.0)  # benign and nine attacks


@pytest.mark.parametrize(
    ("value", "text"), [(99.97, "100"), (9.999, "10.0"), (0.9999, "1.00"), (1.1e-5, "1.10e−05")]
)
def test_numbers_keep_three_digits_when_they_round_up(value: float, text: str) -> None:
    assert number(value) == text


def with_checks(run: Path) -> Path:
    """Add per-query values and checks of an evaluation, and let all records be of it."""
    fingerprint = f"f{run.name}"
    file = run / "records.jsonl"
    records = [json.loads(line) | {"fingerprint": fingerprint, "verdict": "OVERESTIMATED"}
               for line in file.read_text().splitlines()]  # fmt: skip
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    folder = run / "evaluations" / fingerprint
    settings = {"suite": records[0]["suite"], "threat": {"type": "LinfThreat", "eps": EPS}, "search": {},
                "data": "d", "seed": 0}  # fmt: skip
    write_json(folder / "settings.json", settings)
    n = 360
    values = {}
    for state, value in (("clean", records[0]["value"]), ("attacked", records[7]["value"])):
        values[f"{state}.recall@1"] = (np.arange(n) < round(value * n)).astype(np.float32)
    np.savez(folder / f"ES-00000000-{n:08d}.npz", **values)
    words = {"threshold": "at most 1 %", "detail": "it is 2 %", "remedy": "use more steps"}
    findings = [
        {"id": f"R{i}", "name": f"check {i}", "status": status, **words}
        for i, status in enumerate(("pass", "skipped", "warn", "fail", "pass"), start=1)
    ]
    write_json(folder / "verdict.json", {"verdict": "OVERESTIMATED", "findings": findings})
    return run


def test_differences_are_over_pairs_and_noise_is_said(tmp_path: Path) -> None:
    runs = [
        with_checks(fake_run(tmp_path, name, clean=clean, attacked=attacked, exhibits=()))
        for name, clean, attacked in (("a", 0.975, 0.45), ("b", 0.98, 0.69), ("c", 0.975, 0.3))
    ]
    text, _ = report(runs, tmp_path / "r.html")
    pairs = section(text, "compare").partition("Differences, query by query")[2].partition("</table>")[0]
    cells = re.findall("<td.*?</td>", pairs)
    assert "b" in pairs  # the run that is recommended is what the others are compared with
    assert re.findall('<th scope="col">(.*?)</th>', pairs) == ["measure", "b", "a − b", "c − b"]
    plain = [re.sub("<.*?>", "", cell).replace("\u202f", " ") for cell in cells]
    assert plain[0] == "98.1 %"
    assert plain[1].startswith("≈ −0.6 points within noise")
    assert 'class="noise"' in cells[1]
    assert plain[3] == "68.9 %"
    assert plain[4].startswith("−23.9 points ✗ worse")
    assert plain[5].startswith("−38.9 points ✗ worse")
    write_json(runs[0] / "evaluations" / "fa" / "settings.json", {"suite": "core", "threat": {"eps": EPS},
               "search": {}, "data": "other", "seed": 0})  # fmt: skip
    _, page = report(runs, tmp_path / "r.html")
    assert "a and b cannot be compared query by query: " in words(page)
    assert "they differ in data fingerprint" in words(page)
    assert str(tmp_path) not in page.text


def test_all_checks_are_listed_failed_ones_first(tmp_path: Path) -> None:
    text, page = report([with_checks(fake_run(tmp_path, exhibits=()))], tmp_path / "r.html")
    believe = section(text, "believe")
    assert re.findall(r'scope="row">(R\d)', believe) == ["R4", "R3", "R1", "R5", "R2"]
    assert "Of 5 checks 1 failed, 1 gave a warning, 2 passed, 1 could not be run." in words(page)
    row = re.search(r"<tr><th scope=.row.>R4.*?</tr>", believe)
    assert row is not None
    assert re.findall(">([^<]+)<", row[0]) == [
        "R4 check 4", "✗ failed", "it is 2\u202f%", "at most 1\u202f%", "use more steps"
    ]  # fmt: skip
    safe = section(text, "safe")
    assert '<b class="badge bad">Overestimated</b>' in safe
    assert "R4 check 4 failed." in safe
    assert 'href="#believe"' in safe
    _, page = report([fake_run(tmp_path, "unchecked", exhibits=())], tmp_path / "r.html")
    assert "No checks were stored for this run" in words(page)


def test_recall_at_k_stands_with_its_intervals(tmp_path: Path) -> None:
    run = fake_run(tmp_path, exhibits=(), clean=0.9, attacked=0.3)
    at: dict[str, Any] = {"attack": "ES", "state": "attacked", "eps": EPS, "alpha": 0.02, "steps": 32}
    append(
        run / "records.jsonl", [make(run="plain", metric="recall@2", value=0.5, n=360, ci=[0.4, 0.6], **at)]
    )
    text, _ = report([run], tmp_path / "r.html")
    rows = re.findall("<tr>(.*?)</tr>", section(text, "safe"))
    shown = [re.sub("<.*?>", " ", row).replace("\u202f", " ").split("  ") for row in rows]
    told = [[cell.strip() for cell in row if cell.strip()] for row in shown]
    assert told[1][:2] == ["first", "90.0 %"]
    assert told[2] == ["among the first 2", "90.5 %", "87.5 to 93.5 %", "50.0 %", "40.0 to 60.0 %"]


def test_the_runs_own_radius_is_the_reports(tmp_path: Path) -> None:
    run = fake_run(tmp_path, exhibits=())
    at: dict[str, Any] = {"attack": "ES", "state": "attacked", "alpha": 0.02, "n": 360, "steps": 99}
    append(run / "records.jsonl", [make(run="plain", metric="recall@1", value=0.01, eps=2 * EPS, **at)])
    assert strength(load_runs([run])) == Strength("linf", 2 * EPS, 99, 0.02)
    info = json.loads((run / "run.json").read_text())
    info["run"]["threat"] = {"type": "LinfThreat", "eps": EPS, "bounds": [0.0, 1.0]}
    write_json(run / "run.json", info)
    assert strength(load_runs([run])) == Strength("linf", EPS, 32, 0.02)


def test_data_for_scripts_cannot_end_their_block() -> None:
    value = {"a": "</script><script>alert(1)</script><!--", "b": "ü &amp;"}
    block = json_block(value, "x")
    inside = block.partition(">")[2].removesuffix("</script>")
    assert "<" not in inside
    assert json.loads(inside) == value
    shown = figure("t", "<svg></svg>", "c", "", {"data": [value], "layout": {}})
    assert shown.count("<script") == 1
    assert 'data-spec="spec-' in shown


def test_scripts_carry_their_hashes(tmp_path: Path) -> None:
    text = write_report([fake_run(tmp_path)], tmp_path / "r.html").read_text(encoding="utf-8")
    policy = re.search(r"script-src ([^;]*);", text)
    scripts = re.findall(r'<script(?: type="text/plain" id="plotly")?>(.*?)</script>', text, flags=re.S)
    assert policy is not None
    assert scripts
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert set(policy[1].split()) == hashes
    assert text.count('id="plotly"') == 1


def test_an_interactive_report_needs_plotly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.report.interactive.available", lambda: False)
    run = fake_run(tmp_path)
    with pytest.raises(MissingExtra, match="plotly"):
        write_report([run], tmp_path / "r.html", interactive=True)
    assert 'id="plotly"' not in write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
