"""The attack theatre: what is stored of examples, which are preselected, and what is left out of a budget."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from holdfast.evaluation.exhibit import label_of
from holdfast.report.facts import Strength
from holdfast.report.images import encode, pixels
from holdfast.report.load import Exhibit, RunFolder, load_runs
from holdfast.report.theatre import Pictures, attacks_of, section, stage
from holdfast.results import append, make

NAMES = ("cat", "dog")


def exhibit(
    attack: str = "ES", eps: float = 0.2, n: int = 6, size: int = 8, *, lost: int = 3, seed: int = 0
) -> Exhibit:
    """Examples with ids 100, 101, ...: the first ``lost`` have no right image left, the others all five."""
    rng = np.random.default_rng(seed)
    query = rng.random((n, 1, size, size), dtype=np.float32)
    gallery = rng.random((10, 1, size, size), dtype=np.float32)
    places = np.arange(5) + np.zeros((n, 1), dtype=int)
    after_y = np.zeros((n, 5), dtype=int)
    after_y[:lost] = 1
    d = np.sort(rng.random((n, 5)), 1)
    rows: dict[str, Any] = {"query_y": np.zeros(n, dtype=int), "before_y": np.zeros((n, 5), dtype=int)}
    rows |= {"before_d": d, "after_d": d + 0.5 + np.arange(n)[:, None], "after_y": after_y}
    rows |= {"held": np.arange(n) >= lost, "ids": 100 + np.arange(n)}
    x = {"query": query, "attacked": np.clip(query + eps * np.sign(query - 0.5), 0, 1)}
    x |= {"before_x": gallery[places], "after_x": gallery[places + 5]}
    return Exhibit(attack, x, rows, eps, NAMES)


def folder(*exhibits: Exhibit, label: str = "a") -> RunFolder:
    return RunFolder(label, exhibits={f"{e.attack}@{e.eps:g}": e for e in exhibits})


def read(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'id="theatre-data">(.*?)</script>', html)
    assert found is not None
    return dict(json.loads(found.group(1)))


AT = Strength("linf", 0.2)


def test_small_images_are_stored_pixel_by_pixel_and_photographs_small() -> None:
    x = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(read(encode(pixels(x))), np.rint(255 * x[0]).astype(np.uint8))
    photograph = encode(pixels(np.full((3, 224, 160), 0.5, dtype=np.float32)))
    assert photograph.startswith("data:image/jpeg;base64,")
    assert read(photograph).shape == (80, 57, 3)
    np.testing.assert_allclose(read(photograph), 128, atol=2)


def test_every_image_is_stored_once() -> None:
    run = folder(exhibit(eps=0.1), exhibit(eps=0.2))
    shown = data_of(section([run], AT))
    assert len(shown["images"]) == len(set(shown["images"]))
    # six queries, their changes (the same at both radii, as they are scaled by it or nearly so), two attacked
    # versions, ten gallery images
    kept = {place for row in rows(shown) for place in row["three"][:1]}
    near = {cell[0] for row in rows(shown) for when in ("before", "after") for cell in row[when]}
    assert len(kept) == 6
    assert len(near) == 10
    assert len(shown["images"]) < 2 * 6 * 13 / 2


def rows(shown: dict[str, Any], run: int = 0, attack: int = 0, size: int = -1) -> list[dict[str, Any]]:
    return list(shown["runs"][run]["attacks"][attack]["sizes"][size]["rows"])


def test_the_data_say_what_the_example_shows() -> None:
    e = exhibit()
    shown = data_of(section([folder(e)], AT))
    first = rows(shown)[0]
    place = int(first["id"]) - 100
    query = np.rint(255 * e.x["query"][place][0]).astype(np.uint8)
    np.testing.assert_array_equal(read(shown["images"][first["three"][0]]), query)
    assert first["class"] == "cat"
    assert first["right"] == [5, 0]
    assert [cell[1:3] for cell in first["after"]] == [["dog", 0]] * 5
    assert [cell[1:3] for cell in first["before"]] == [["cat", 1]] * 5
    attack = shown["runs"][0]["attacks"][0]
    assert (attack["title"], attack["moved"]) == ("ES, embedding shift", "query")
    assert attack["sizes"][0]["words"].replace("\u202f", " ") == "changes of at most 20 % of the grey range"


def test_worst_median_and_held_cases_are_marked() -> None:
    shown = rows(data_of(section([folder(exhibit(n=7))], AT)))
    assert [row["id"] for row in shown] == [100, 101, 102, 103, 104, 105, 106]  # from the worst on
    assert {row["id"]: row["kind"] for row in shown if row["kind"]} == {
        100: "worst case", 103: "median case", 106: "held best"
    }  # fmt: skip
    lost = rows(data_of(section([folder(exhibit(n=4, lost=4))], AT)))
    assert [row["kind"] for row in lost] == ["worst case", "median case", "", ""]


def test_the_headlines_attack_and_strength_come_first() -> None:
    run = folder(*(exhibit(a, e) for a in ("CA+", "ES", "LTM", "ES:D") for e in (0.05, 0.2, 0.1)))
    assert [s.attack for s in attacks_of(run, AT, "LTM")] == ["LTM", "ES", "CA+"]
    assert [s.attack for s in attacks_of(run, AT)] == ["ES", "CA+", "LTM"]
    assert [e.eps for e in attacks_of(run, AT)[0].sizes] == [0.2, 0.05, 0.1]
    attack = data_of(section([run], AT))["runs"][0]["attacks"][0]
    assert [s["label"] for s in attack["sizes"]] == ["0.05", "0.1", "0.2"]
    assert attack["first"] == 2


def test_queries_then_radii_then_attacks_are_left_out_of_a_budget() -> None:
    run = folder(*(exhibit(a, e, seed=i) for i, a in enumerate(("ES", "LTM")) for e in (0.1, 0.2)))
    shown = {"a": attacks_of(run, AT)}

    def kept(most: int) -> tuple[int, int, int, str]:
        pictures = Pictures()
        data, said = stage(shown, AT, pictures, most)
        attacks = data["runs"][0]["attacks"]
        sizes = [len(a["sizes"]) for a in attacks]
        return len(rows(data)), max(sizes), len(attacks), said

    whole = kept(10**9)
    assert whole == (6, 2, 2, "")
    found = [kept(most) for most in range(40_000, 0, -400)]
    assert found[0][:3] == (6, 2, 2)
    states = list(dict.fromkeys(f[:3] for f in found))
    assert states == [(6, 2, 2), (5, 2, 2), (4, 2, 2), (3, 2, 2), (3, 1, 2), (3, 1, 1), (2, 1, 1), (1, 1, 1)]
    said = next(f[3] for f in found if f[:3] == (3, 1, 1))
    assert said == (
        "3 of up to 6 stored queries of each attack are shown, 1 of up to 2 strengths and LTM is left out"
    )


def test_what_is_kept_of_a_small_budget_is_median_worst_and_held() -> None:
    shown = attacks_of(folder(exhibit(n=7)), AT)[0]
    assert shown.kept[:3] == (103, 100, 106)
    assert sorted(shown.kept) == sorted(shown.ids)


@pytest.mark.parametrize(("size", "most"), [(8, 40_000), (96, 600_000)])
def test_a_report_stays_in_its_budget(size: int, most: int) -> None:
    run = folder(*(exhibit(a, n=12, size=size, seed=i) for i, a in enumerate(("ES", "LTM", "GTM"))))
    html = section([run], AT, (), most)
    assert len(rows(data_of(html))) >= 3
    assert len(html) < most + 12_000
    assert "To keep this page small" in html


def test_without_scripts_a_few_examples_stand() -> None:
    html = section([folder(exhibit()), folder(exhibit(), label="b"), RunFolder("c")], AT)
    assert html.count('<article class="strip">') == 2 * 3
    assert "No examples were stored with c." in html
    assert '<div class="theatre" hidden>' in html
    assert "No examples were stored with this run." in section([RunFolder("c")], AT)


def test_examples_of_old_and_new_names_are_read(tmp_path: Path) -> None:
    run = tmp_path / "a"
    (run / "exhibits").mkdir(parents=True)
    append(run / "records.jsonl", [make(run="a", metric="recall@1", value=0.5, n=9)])
    e = exhibit()
    arrays: dict[str, Any] = {**e.x, **e.rows, "class_names": np.array(NAMES)}
    np.savez(run / "exhibits" / "ES.npz", eps=np.float32(0.2), **arrays)
    np.savez(run / "exhibits" / "ES@0.1.npz", eps=0.1, norm="l2", **arrays, before_ids=e.rows["before_y"])
    np.savez(run / "exhibits" / "ES@0.2.npz", eps=0.2, norm="linf", **arrays)
    found = load_runs([run])[0].exhibits
    assert set(found) == {"ES@0.1", "ES@0.2"}  # the old file tells the same as the newer one
    assert found["ES@0.1"].attack == "ES"
    assert found["ES@0.1"].norm == "l2"
    assert found["ES@0.1"].rows["before_ids"].shape == (6, 5)
    assert label_of("QA+@0.0313725") == "QA+"


def test_maps_are_read_and_those_of_other_queries_are_named(tmp_path: Path) -> None:
    run = tmp_path / "a"
    (run / "maps").mkdir(parents=True)
    append(run / "records.jsonl", [make(run="a", metric="recall@1", value=0.5, n=9)])
    z, i = np.ones((4, 3), np.float32), np.arange(4)
    np.savez(
        run / "maps" / "clean.npz", gallery_z=z, gallery_y=i, gallery_ids=i, query_z=z[:2], query_y=i[:2],
        ids=i[:2], distance="Euclidean", class_names=np.array(NAMES),
    )  # fmt: skip
    np.savez(run / "maps" / "ES@0.2.npz", attacked_z=2 * z[:2], eps=0.2, norm="linf")
    np.savez(run / "maps" / "CA+@0.2.npz", attacked_z=2 * z, eps=0.2, norm="linf")
    (run / "maps" / "TMA@0.2.npz").write_bytes(b"no archive")
    loaded = load_runs([run])[0]
    assert loaded.maps is not None
    assert [(m.attack, m.eps, m.z.shape) for m in loaded.maps.moved] == [("ES", 0.2, (2, 3))]
    assert loaded.maps.distance == "Euclidean"
    assert [note.partition(":")[0] for note in loaded.map_notes] == ["Arrows of the map left out"] * 2
    np.savez(run / "maps" / "clean.npz", gallery_z=z)
    broken = load_runs([run])[0]
    assert broken.maps is None
    assert "Embedding map left out" in broken.map_notes[0]
