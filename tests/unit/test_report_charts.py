"""Charts of the report: what their lines are, and that specs are finite, escaped and the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import MissingExtra
from holdfast.files import write_arrays
from holdfast.report import certified_runs, curve, evidence, history, interactive, pareto, plots, space
from holdfast.report.certificates import Certified, curves_spec
from holdfast.report.facts import headlines, strength
from holdfast.report.lines import Line
from holdfast.report.load import EmbeddingMap, Moved, RunFolder
from holdfast.report.plots import Bar, Dots, Panel, spread
from holdfast.results import Record, make

HOSTILE = "<a href='https://e.vil'>%{x}</a><script>alert(1)</script>&$x^2$ \u202e"


def record(
    metric: str, value: float, attack: str = "none", eps: float = 0.0, *, suite: str = "core",
    norm: str = "linf", steps: int = 40, n: int = 100,
) -> Record:  # fmt: skip
    return make(
        run="r", metric=metric, value=value, n=n, ci=(max(0.0, value - 0.05), min(1.0, value + 0.05)),
        attack=attack, state="attacked" if eps else "clean", eps=eps, suite=suite, norm=norm,
        steps=steps if eps else 0, alpha=0.01 if eps else 0.0, time="2026-01-01T00:00:00",
    )  # fmt: skip


VALUES = {
    "ES": {0.05: 0.80, 0.1: 0.50, 0.2: 0.30},
    "LTM": {0.05: 0.85, 0.1: 0.40, 0.2: 0.20},
    "WORST": {0.1: 0.35, 0.2: 0.25},
}


def a_run(label: str = "r", values: Any = VALUES, **more: Any) -> RunFolder:
    found = [record("recall@1", 0.9)]
    found += [
        record("recall@1", value, attack, eps, suite="worst-case" if attack == "WORST" else "ers")
        for attack, points in values.items()
        for eps, value in points.items()
    ]
    return RunFolder(label=label, records=found, **more)


def a_map(classes: int = 3, n: int = 40, q: int = 12, names: Sequence[str] = ()) -> EmbeddingMap:
    """Clusters on the axes of the space; LTM moves each query onto the next cluster, ES nowhere."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    z = (np.eye(classes, 16)[y] + 0.01 * rng.normal(size=(n, 16))).astype(np.float32)
    moved = np.eye(classes, 16)[(y[:q] + 1) % classes].astype(np.float32)
    return EmbeddingMap(
        gallery_z=z, gallery_y=y, gallery_ids=np.arange(n), query_z=z[:q], query_y=y[:q], ids=np.arange(q),
        distance="Euclidean", class_names=tuple(names),
        moved=(Moved("ES", "linf", 0.2, z[:q] + 0.001), Moved("LTM", "linf", 0.2, moved),
               Moved("LTM", "linf", 0.1, z[:q]), Moved("CA+", "linf", 0.2, moved)),
    )  # fmt: skip


def specs(html: str) -> list[dict[str, Any]]:
    """Return the specs in a piece of a page."""
    found = re.findall(r'<script type="application/json" id="spec-\w+">(.*?)</script>', html)
    return [json.loads(text) for text in found]


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all text in a spec."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ((key, inner),) if isinstance(inner, str) else strings(inner)
            if isinstance(inner, list):
                yield from ((key, text) for text in inner if isinstance(text, str))
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def check(spec: dict[str, Any]) -> None:
    """A spec is finite JSON, names no colour but the page's words, and holds no mark-up but <b> and <br>."""
    json.dumps(spec, allow_nan=False)
    word = re.compile(r"(ink|ground|soft|clean|attacked|right|wrong|c[0-7])(/0\.\d+)?")
    for key, text in strings(spec):
        if key.lower().endswith("color"):
            assert word.fullmatch(text), (key, text)
        if key in ("text", "hovertext", "name", "ticktext", "hovertemplate"):
            assert set(re.findall(r"<[^>]*>", text)) <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}, text
            assert "\u202e" not in text
        if key == "hovertemplate":
            assert "e.vil" not in text


def test_the_worst_case_at_each_eps_is_the_minimum() -> None:
    p = curve.pushed(a_run(), "linf")
    assert {eps: (r["attack"], r["value"]) for eps, r in p.worst.items()} == {
        0.05: ("ES", 0.80), 0.1: ("WORST", 0.35), 0.2: ("LTM", 0.20),
    }  # fmt: skip
    thick = curve._lines(p)[-1]
    assert (thick.name, thick.width) == ("worst case", 4.0)
    assert list(thick.x) == [0.0, 0.05, 0.1, 0.2]
    assert list(thick.y) == pytest.approx([90.0, 80.0, 35.0, 20.0])
    assert list(thick.low) == pytest.approx([85.0, 75.0, 30.0, 15.0])
    assert {line.name for line in curve._lines(p) if line.faint} == {"ES", "LTM", "WORST"}
    assert all(line.width < thick.width for line in curve._lines(p)[:-1])


def test_other_norms_shortened_and_published_attacks_are_left_out() -> None:
    r = a_run(values={"ES": {0.1: 0.5, 0.2: 0.4}})
    odd = [
        record("recall@1", 0.0, "ES", 0.1, norm="l2"),
        record("recall@1", 0.0, "LTM", 0.1, suite="ers-robrank"),
        record("recall@1", 0.0, "ES:D", 0.1, suite="ers-robrank"),
        record("recall@1", 0.9, "ES", 0.1, steps=2),
    ]
    p = curve.pushed(RunFolder(label="r", records=[*odd, *r.records]), "linf")
    assert {eps: x["value"] for eps, x in p.worst.items()} == {0.1: 0.5, 0.2: 0.4}


def test_the_curve_says_where_half_is_lost_marks_the_eps_and_tells_all_numbers() -> None:
    r = a_run()
    html = curve.section([r], strength([r]))
    assert "r loses half of its right results between eps 0.05 and 0.1" in html
    assert "at each eps the lowest of ES, LTM and WORST" in html
    assert html.count("<figure") == 1
    for cell in ("80.0\u202f%", "35.0\u202f%", "20.0\u202f%", "worst case (WORST)"):
        assert cell in html
    (spec,) = specs(html)
    check(spec)
    (mark,) = spec["layout"]["shapes"]
    assert (mark["x0"], mark["x1"]) == (0.2, 0.2)
    assert "eps of the score" in [note["text"] for note in spec["layout"]["annotations"]]
    says = [t for trace in spec["data"] for t in trace.get("hovertext", [])]
    assert any("35.0\u202f%" in t and "30.0 to 40.0" in t and "100 queries" in t for t in says)


def test_a_worst_case_that_rises_is_told() -> None:
    r = a_run(values={"ES": {0.1: 0.3, 0.2: 0.5}})
    assert "Where the thick line rises, the search was too weak" in curve.section([r], strength([r]))
    fine = a_run(values={"ES": {0.1: 0.5, 0.2: 0.3}})
    assert "Where the thick line rises" not in curve.section([fine], strength([fine]))


def test_one_radius_keeps_the_bars_and_says_how_to_get_the_curve() -> None:
    one = a_run("one", {"ES": {0.2: 0.3}})
    html = curve.section([one], strength([one]))
    assert "holdfast evaluate RUN --eps 0.05,0.1,0.2" in html
    assert "Only this strength is shown" in html
    both = curve.section([one, a_run("two")], strength([one, a_run("two")]))
    assert "One strength of one is too few" in both
    assert both.count("<figure") == 2
    assert curve.section([RunFolder(label="none")], None).startswith('<p class="missing">')


def test_several_runs_share_one_chart_of_worst_cases() -> None:
    weaker = a_run("weaker", {"ES": {0.05: 0.5, 0.1: 0.2, 0.2: 0.1}})
    html = curve.section([a_run("firm"), weaker], strength([a_run("firm"), weaker]))
    assert "At eps 0.2 firm keeps 20.0\u202f% and weaker keeps 10.0\u202f% of queries right" in html
    assert "The runs did not face the same attacks" in html
    assert html.count("<figure") == 3


def certificates(norm: str = "l2") -> Certified:
    radius = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    arrays = {"a.npz": {"radius": radius, "correct": np.array([1, 1, 1, 1, 0]), "exact": np.zeros(5)}}
    cell = {"value": 0.2, "low": 0.1, "high": 0.3, "spread": None}
    row = {
        "method": "lipschitz", "k": 1, "n": 5, "of": 5, "seeds": [0], "files": ["a.npz"], "clean_error": cell,
        "median": {"value": 0.2, "low": 0.1, "high": 0.3}, "certified_error": [cell], "exact": None,
        "train_seconds": 1.0, "seconds": 1.0,
    }  # fmt: skip
    run = {"norm": norm, "data": "toy", "test images": 5, "classes": 2, "encoder": "e", "defense": "d"}
    meta = {
        "kind": "encoder",
        "rows": [row],
        "radii": [0.15],
        "recorded": [],
        "comparisons": [],
        "failed": {},
    }
    return Certified({**meta, "run": run}, arrays)


def test_the_certified_area_is_the_share_of_radii_beyond_eps_and_of_the_same_norm() -> None:
    found = [record("recall@1", 0.9), *(record("recall@1", v, "MIN", e, norm="l2", suite="minimum-norm")
             for e, v in ((0.1, 0.8), (0.2, 0.7), (0.4, 0.5)))]  # fmt: skip
    run = RunFolder(label="r", records=found, certified=certificates())
    p = curve.pushed(run, "l2")
    area = curve._area(p)[0]
    assert area.filled
    share = dict(zip(np.round(area.x, 6), area.y, strict=True))
    assert share[0.0] == pytest.approx(60.0)  # three right queries with a radius; the wrong one counts not
    assert share[0.2] == pytest.approx(20.0)
    assert share[0.4] == 0.0
    html = curve.section([run], strength([run]))
    assert "proven to stay right" in html
    other = RunFolder(label="r", records=found, certified=certificates("linf"))
    assert curve.pushed(other, "l2").certified is None
    assert "about another measure of change (linf)" in curve.section([other], strength([other]))


def test_certified_empirical_and_clean_stand_in_one_chart() -> None:
    found = [record("recall@1", v, a, 0.2, norm="l2") for a, v in (("ES", 0.7), ("MIN", 0.6))]
    html = certified_runs.section([("r", certificates())], records={"r": found})
    (spec,) = specs(html)
    check(spec)
    named = {trace["name"]: trace for trace in spec["data"] if "name" in trace}
    assert set(named) == {"Lipschitz constant", "no attack", "under attack"}
    assert named["under attack"]["y"] == [60.0]
    assert set(named["no attack"]["y"]) == {80.0}
    assert "60.0\u202f%" in html
    bare = curves_spec(certificates(), 1)
    assert "under attack" not in {trace.get("name") for trace in bare["data"]}


def test_the_map_draws_the_strongest_attack_at_the_strength_and_tells_what_it_shows() -> None:
    m = a_map(names=["cat", "dog", "owl"])
    run = a_run(maps=m)
    at = strength([run])
    assert [a.attack for a in space.chosen(m, at)] == ["LTM", "ES"]  # CA+ moves gallery images
    assert space.lost(m, m.moved[1].z).all()
    assert not space.lost(m, m.query_z).any()
    view = space.principal(m, space.chosen(m, at))
    spread_ = m.gallery_z - m.gallery_z.mean(0)
    share = np.linalg.svd(spread_.astype(float), compute_uv=False) ** 2
    assert view.kept == pytest.approx(share[:2].sum() / share.sum(), abs=1e-5)
    html = space.section([run], at)
    assert "LTM carries 12 of 12 drawn queries of r to an image of another class" in html
    assert f"they hold {100 * (view.kept or 0):.1f}\u202f% of its variance" in html
    assert "Distances on such a map are not distances in the space" in html
    for spec in specs(html):
        check(spec)
    first = specs(html)[0]
    arrows = [t for t in first["data"] if "customdata" in t]
    assert [(t["meta"]["run"], t["meta"]["attack"], t["visible"]) for t in arrows] == [
        ("r", "LTM", True), ("r", "ES", "legendonly"),
    ]  # fmt: skip
    assert arrows[0]["customdata"][:3] == [0, 0, None]
    assert {t["line"]["color"] for t in arrows} == {"wrong", "ink"}
    assert {n["text"] for n in first["layout"]["annotations"]} == {"<b>cat</b>", "<b>dog</b>", "<b>owl</b>"}


def test_a_query_is_not_its_own_neighbour_and_cosine_ignores_length() -> None:
    z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 5.0]], dtype=np.float32)
    y = np.array([0, 1, 0])
    own: dict[str, Any] = {"gallery_z": z, "gallery_y": y, "gallery_ids": np.arange(3), "class_names": ()}
    m = EmbeddingMap(query_z=z[:1], query_y=y[:1], ids=np.array([0]), distance="Euclidean", **own)
    assert space.lost(m, z[:1]).tolist() == [True]  # the next image is of class 1
    far = np.array([[0.01, 0.02]], dtype=np.float32)
    q: dict[str, Any] = {"query_z": far, "query_y": y[:1], "ids": np.array([9]), **own}
    assert space.lost(EmbeddingMap(distance="Cosine", **q), far).tolist() == [False]
    assert space.lost(EmbeddingMap(distance="Euclidean", **q), far).tolist() == [True]


def test_a_map_shows_the_queries_that_the_attack_saw() -> None:
    m = a_map()
    half = m.moved[1].z.copy()
    half[::2] = np.nan  # the worst case was searched for every other query
    part = replace(m, moved=(m.moved[0], replace(m.moved[1], z=half), Moved("GTM", "linf", 0.2, half[::-1])))
    run = a_run(maps=part)
    at = strength([run])
    shown, attacks = space.covered(part, space.chosen(part, at))
    assert {a.attack for a in attacks} == {"LTM", "ES"}  # GTM saw the other half
    assert shown.ids.tolist() == [1, 3, 5, 7, 9, 11]
    assert all(np.isfinite(a.z).all() for a in attacks)
    html = space.section([run], at)
    assert "LTM carries 6 of 6 drawn queries of r" in html
    for spec in specs(html):
        check(spec)


def test_many_classes_are_grey_and_poor_maps_are_told() -> None:
    m = a_map(classes=12)
    view = space.principal(m, space.chosen(m, None))
    spec = space.spec_of("r", m, view, [])
    assert [trace["marker"]["color"] for trace in spec["data"]] == ["soft"]
    assert spec["layout"]["annotations"] == []
    assert "No embeddings were stored" in space.section([a_run()], None)
    still = EmbeddingMap(**{**vars(m), "moved": ()})
    assert "there are no arrows" in space.section([a_run(maps=still)], None)


def test_the_second_view_is_for_small_galleries_and_always_the_same() -> None:
    m = a_map(n=40)
    attack = space.chosen(m, None)[0]
    one, two = space.neighbours(m, attack), space.neighbours(m, attack)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.gallery_at, two.gallery_at)
    assert one.moved_at[attack.attack].shape == (12, 2)
    assert space.neighbours(a_map(n=space.TSNE_POINTS + 1), attack) is None


def test_embeddings_of_one_number_have_a_map() -> None:
    m = a_map()
    flat = EmbeddingMap(
        **{**vars(m), "gallery_z": m.gallery_z[:, :1], "query_z": m.query_z[:, :1], "moved": ()}
    )
    view = space.principal(flat, [])
    assert view.gallery_at.shape == (40, 2)
    assert (view.gallery_at[:, 1] == 0).all()


def points(*pairs: tuple[float, float]) -> list[pareto.Point]:
    return [pareto.Point(f"run {i}", (x, x - 2, x + 2), (y, y - 2, y + 2)) for i, (x, y) in enumerate(pairs)]


def test_the_front_is_what_no_other_beats() -> None:
    assert pareto.front(points((90, 10), (80, 50), (85, 30), (79, 49), (90, 9))) == [1, 2, 0]
    assert pareto.front(points((90, 10), (90, 10))) == [0, 1]
    assert pareto.front(points((90, 60), (80, 50))) == [0]
    x, y = pareto._steps(points((80, 50), (90, 10)), [0, 1])
    assert (x, y) == ([80, 80, 90], [50, 10, 10])


def test_labels_of_near_runs_do_not_overlap() -> None:
    near = points((90, 50), (90.2, 50.1), (90.1, 49.8), (97, 50), (80, 20))
    limits, size = pareto._limits(near), (250.0, 300.0)
    (x0, x1), (y0, y1) = limits
    boxes = []
    for p, (right, up) in zip(near, pareto.placed(near, limits, size), strict=True):
        x = size[0] * (p.x[0] - x0) / (x1 - x0) + right
        y = size[1] * (p.y[0] - y0) / (y1 - y0) + up
        boxes.append((x - 22, y - 7, 44.0, 14.0))
    for i, a in enumerate(boxes):
        assert all(pareto._shared(a, b) == 0 for b in boxes[:i])


def test_the_chart_of_clean_against_worst_case_names_the_front() -> None:
    runs = [
        a_run("firm", {"ES": {0.2: 0.6}}),
        a_run("weak", {"ES": {0.2: 0.1}}),
        a_run(HOSTILE, {"ES": {0.2: 0.3}}),
    ]
    html = pareto.chart(headlines(runs, strength(runs)))
    assert "firm is best both without an attack and in the worst case" in html
    (spec,) = specs(html)
    check(spec)
    crosses = [t for t in spec["data"] if "error_x" in t]
    assert len(crosses) == 3
    assert crosses[0]["error_y"]["array"] == pytest.approx([5.0])
    assert pareto.chart(headlines(runs[:1], strength(runs[:1]))) == ""


def log(n: int = 300) -> dict[str, Any]:
    steps = [{"step": i, "epoch": i // 60, "loss": 1.0 / (i + 1), "hardness": -0.1, "seconds": 0.1 * i}
             for i in range(n)]  # fmt: skip
    measures = {"mean_cosine": 0.5, "effective_rank": 7.0}
    epochs = [{"step": 60 * e + 59, "epoch": e, "recall@1": 0.5, **measures} for e in range(n // 60)]
    guards = [{"step": s, "acted": s in (20, 30), "ease": 0.5, **measures} for s in range(10, n, 10)]
    return {"steps": steps, "epochs": epochs, "guards": guards}


def test_training_has_red_bands_where_the_guard_acted() -> None:
    html = history.training([RunFolder(label="r", **log())])
    found = specs(html)
    assert len(found) == 4
    for spec in found:
        check(spec)
        bands = [s for s in spec["layout"]["shapes"] if s["type"] == "rect"]
        assert [(b["x0"], b["x1"], b["fillcolor"]) for b in bands] == [(10, 30, "wrong")]
    assert max(len(trace["x"]) for spec in found for trace in spec["data"]) <= 160
    assert "Red: the collapse guard acted." in html


def test_the_cost_counts_what_was_recorded(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}, "__metadata__": {"a": "b"}}
    header["n"] = {"dtype": "I64", "shape": [], "data_offsets": [48, 56]}
    text = json.dumps(header).encode()
    (tmp_path / "encoder.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(56))
    machine = {"processor": "x86_64", "cores": 2, "threads": 1, "cuda": "none"}
    info = {"machine": {**machine, HOSTILE: HOSTILE}}
    lines = log(100)
    lines["steps"][-1]["passes"] = 1700
    html = history.cost(
        [RunFolder(label=HOSTILE, info=info, path=tmp_path, **lines), RunFolder(label="bare")]
    )
    text = re.sub("<[^>]+>", "|", html).replace("\u202f", " ")
    for cell in ("9.9 s", "100", "99.0 ms", "1 700", "12", "x86_64 2 cores, 1 threads"):
        assert f"|{cell}|" in text
    assert "<script" not in html
    assert "No seconds were recorded" in history.cost([RunFolder(label="bare")])
    for junk in (b"", b"\xff" * 20, (9).to_bytes(8, "little") + b"[1, 2, 3]"):
        (tmp_path / "encoder.safetensors").write_bytes(junk)
        assert history.parameters(tmp_path / "encoder.safetensors") is None


def test_where_it_is_weak_says_the_worst_three_in_plain_words() -> None:
    value = {"ES:R": 10.0, "LTM": 40.0, "GTM": 60.0, "TMA": 90.0}
    scored = [make(run="r", metric=f"{k} of ers", value=v, n=100, attack="all", state="attacked", suite="ers",
                   eps=0.2, ci=(v - 1, v + 1)) for k, v in value.items()]  # fmt: skip
    scored.append(make(run="r", metric="ers", value=50.0, n=100, attack="all", state="attacked", suite="ers",
                       eps=0.2, ci=(49, 51)))  # fmt: skip
    run = RunFolder(label="r", records=scored)
    html = evidence.weak([run], strength([run]), strength([run], scored=True))
    worst = re.findall("<li>(.*?)</li>", html)
    assert [w.split(",")[0] for w in worst] == ["<b>ES:R", "<b>LTM", "<b>GTM"]
    assert "Changes the query so that images of other classes come before" in worst[1]
    assert "It takes 60.0 of 100 points." in worst[1]
    (spec,) = specs(html)
    check(spec)


def test_hostile_names_are_neither_mark_up_nor_templates() -> None:
    m = a_map(n=24, names=[HOSTILE] * 3)
    run = a_run(HOSTILE, {HOSTILE: {0.1: 0.5, 0.2: 0.3}, "ES": {0.1: 0.6, 0.2: 0.2}}, maps=m)
    runs = [run, a_run("b")]
    at = strength(runs)
    html = curve.section(runs, at) + space.section(runs, at) + pareto.chart(headlines(runs, at))
    html += evidence.weak(runs, at, None)
    assert "<script>" not in html
    assert "<a " not in html
    assert "\u202e" not in html
    found = specs(html)
    assert len(found) >= 6
    for spec in found:
        check(spec)


def test_the_same_runs_give_the_same_bytes() -> None:
    def page() -> str:
        run = a_run("a", maps=a_map(), **log())
        at = strength([run])
        return curve.section([run], at) + space.section([run], at) + history._loss(run, 0)

    assert page() == page()


def test_builders_leave_out_what_is_not_known() -> None:
    nan = float("nan")
    drawn = [
        Line("a", [0.0, 1.0], [nan, 5.0], says=["", ""]),
        Line("b", [0.0, 1.0], [1.0, 2.0], says=["", ""]),
    ]
    made = [
        interactive.bars([(HOSTILE, Bar(0.5, 0.4, 0.6, 10), Bar(None))], "share (%)"),
        interactive.dots([(HOSTILE, [Dots(HOSTILE, None, 0.2), Dots("b", 0.3, 0.1, "n = 2")])], "x", None),
        interactive.lines(
            drawn, "x", "y", limits=(0, 10), at=(1.0, HOSTILE), inside=[(HOSTILE, 0, 0, "right")]
        ),
        interactive.several([(HOSTILE, [(0, 1.0), (1, 2.0)]), ("b", [(0, 2.0)])], "x", "y"),
        interactive.panels(
            [Panel("a", [(0, 1.0)], (0, 1), 0.5), Panel("b", [(0, 2.0)], (0, 3))], [(0, 1)], [0], "!"
        ),
        interactive.matrix(
            np.array([[nan, 0.5], [1.0, 0.0]]), [HOSTILE, "b"], ["c", "d"], ("r", "c"), "clean"
        ),
    ]
    for spec in made:
        check(spec)
    assert made[2]["data"][0]["y"] == [None, 5.0]
    assert len(made[5]["data"][0]["text"]) == 3
    assert any("not measured" in note["text"] for note in made[0]["layout"]["annotations"])


def test_labels_are_spread_in_order() -> None:
    assert spread([10.0, 10.0, 10.0], 4.0, 0.0, 100.0) == [6.0, 10.0, 14.0]
    assert spread([0.0, 1.0], 4.0, 0.0, 100.0) == [0.0, 4.0]
    assert spread([99.0, 100.0], 4.0, 0.0, 100.0) == [96.0, 100.0]
    places = spread([5.0, 1.0, 30.0, 3.0, 31.0], 6.0, 0.0, 100.0)
    ordered = sorted(places)
    assert all(b - a >= 6.0 - 1e-9 for a, b in pairwise(ordered))
    assert np.argsort(places).tolist() == [1, 3, 0, 2, 4]


def test_the_library_cannot_end_its_element(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = interactive.inlined("a='</SCRIPT>';b='<!-- x';c='</div>'")
    assert "</script" not in guarded.lower()
    assert "<!--" not in guarded
    assert guarded.endswith("c='</div>'")
    assert {"displaylogo": False}.items() <= interactive.CONFIG.items()
    buttons = {b for group in interactive.CONFIG["modeBarButtons"] for b in group}
    assert buttons == {"zoom2d", "pan2d", "resetScale2d", "toImage"}
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingExtra, match=r"holdfast\[report\]"):
        interactive.library()


@pytest.mark.skipif(not interactive.available(), reason="needs plotly")
def test_plotly_itself_is_whole() -> None:
    text = interactive.library()
    assert len(text) > 1_000_000
    assert "</script" not in text.lower()
    assert "<!--" not in text


def test_drawings_are_slim_and_keep_what_is_referenced() -> None:
    svg = plots.curve([(i, float(i % 7)) for i in range(40)], "y", "label", "p")
    assert "\n" not in svg
    wanted = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg))
    assert wanted
    assert wanted == set(re.findall(r' id="([\w.-]+)"', svg))
    assert not re.search(r"\d\.\d{3,}", re.sub(r'viewBox="[^"]*"', "", svg))


def test_maps_that_cannot_be_read_are_notes(tmp_path: Path) -> None:
    from holdfast.report.load import load_runs
    from holdfast.results import append

    run = tmp_path / "r"
    append(run / "records.jsonl", a_run().records)
    m = a_map()
    names = ("gallery_z", "gallery_y", "gallery_ids", "query_z", "query_y", "ids")
    write_arrays(run / "maps" / "clean.npz", {name: getattr(m, name) for name in names})
    moved = {"attacked_z": m.moved[1].z, "eps": np.array(0.2), "norm": np.array("linf")}
    write_arrays(run / "maps" / "LTM@0.2.npz", moved)
    write_arrays(run / "maps" / "ES@0.2.npz", {**moved, "attacked_z": m.moved[1].z[:3]})
    (run / "maps" / "GTM@0.2.npz").write_bytes(b"PK\x03\x04 torn")
    (found,) = load_runs([run])
    assert found.maps is not None
    assert [a.attack for a in found.maps.moved] == ["LTM"]
    assert len(found.map_notes) == 2
    told = space.section([found], None)  # no distance was stored, so nothing is said of classes
    assert "Where LTM moves 12 queries of r" in told
