"""A look at a folder of pictures, what is said about it, and the recipe that follows."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holdfast.data import ImageFolder, LazyImages
from holdfast.errors import DataError, InvalidArgument
from holdfast.recipes import recipe
from holdfast.starter import Choice, Look, choose, findings, look, recipe_text
from holdfast.starter.alike import GLANCE, groups, near_pairs
from holdfast.starter.recipe import quoted

RNG = np.random.default_rng(0)


def texture(width: int = 40, height: int = 30, seed: int | None = None) -> Image.Image:
    """Coarse noise: nothing like any other."""
    rng = RNG if seed is None else np.random.default_rng(seed)
    raw = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(raw).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or texture()).save(path, **options)  # type: ignore[arg-type]
    return path


def album(root: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / label / f"{i:02}.png")
    return root


def made(root: Path, out: Path) -> Choice:
    """Write the recipe of a folder and return what it chose; the recipe's data must agree."""
    found = look(root)
    chosen = choose(found)
    out.write_text(recipe_text(found, chosen, file=out.name), encoding="utf-8")
    split = recipe(str(out)).data.load()
    assert (len(split.train), len(split.test)) == (chosen.train, chosen.test)
    assert split.train.n_classes == len(chosen.counts)
    assert split.protocol == chosen.protocol
    return chosen


def kinds(found: Look) -> dict[str, int]:
    return {f.kind: f.count for f in findings(found)}


# --- what is seen ---


def test_a_sound_folder_is_counted_and_nothing_is_wrong(tmp_path: Path) -> None:
    found = look(album(tmp_path, {"cat": 5, "dog": 4}))
    assert found.counts() == {"cat": 5, "dog": 4}
    assert (found.total, found.sided, found.flat) == (9, False, False)
    assert {(p.width, p.height, p.kind, p.turned) for p in found.pictures} == {(40, 30, "colour", False)}
    assert findings(found) == []
    json.dumps(found.plain())


def test_kinds_of_pictures(tmp_path: Path) -> None:
    album(tmp_path, {"a": 1, "b": 1})
    grey = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50
    save(tmp_path / "a" / "grey.jpg", texture().convert("L"))
    save(tmp_path / "a" / "deep.png", Image.fromarray(grey))
    save(tmp_path / "a" / "clear.png", texture().convert("RGBA"))
    save(tmp_path / "a" / "palette.gif", texture().convert("P"))
    save(tmp_path / "a" / "print.jpg", texture().convert("CMYK"))
    found = {p.name: p.kind for p in look(tmp_path).pictures}
    assert found["a/grey.jpg"] == "grey"
    assert found["a/deep.png"] == "16-bit"
    assert found["a/clear.png"] == "transparent"
    assert found["a/palette.gif"] == "palette"
    assert found["a/print.jpg"] == "CMYK"
    assert found["a/00.png"] == "colour"


def test_broken_and_other_files_are_named_and_not_fatal(tmp_path: Path) -> None:
    album(tmp_path, {"a": 4, "b": 4})
    cut = save(tmp_path / "a" / "cut.jpg", texture(200, 200))
    cut.write_bytes(cut.read_bytes()[:700])
    (tmp_path / "b" / "text.png").write_text("no picture")
    (tmp_path / "b" / "notes.txt").write_text("x")
    (tmp_path / "void").mkdir()
    save(tmp_path / "beside.png")
    save(tmp_path / "b" / "more" / "x.png")
    save(tmp_path / ".hidden" / "x.png")
    found = look(tmp_path)
    assert set(found.broken) == {"a/cut.jpg", "b/text.png"}
    assert "truncated" in found.broken["a/cut.jpg"]
    assert "no image of the formats" in found.broken["b/text.png"]
    assert found.others == {".txt": ["b/notes.txt"]}
    assert (found.empty, found.loose, found.deeper) == (["void"], ["beside.png"], ["b/more/x.png"])
    assert kinds(found) == {"broken": 2, "empty": 1, "loose": 1, "deeper": 1, "others": 1}
    assert found.counts() == {"a": 4, "b": 4}


def test_turned_pictures_are_told(tmp_path: Path) -> None:
    album(tmp_path, {"a": 2, "b": 2})
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a" / "turned.jpg", exif=exif)
    exif[0x0112] = 1
    save(tmp_path / "a" / "upright.jpg", exif=exif)
    assert [p.name for p in look(tmp_path).pictures if p.turned] == ["a/turned.jpg"]


def test_same_pixels_are_found_in_any_lossless_format(tmp_path: Path) -> None:
    album(tmp_path, {"a": 3, "b": 3})
    picture = texture(64, 48)
    save(tmp_path / "a" / "one.png", picture)
    save(tmp_path / "a" / "another.bmp", picture)
    save(tmp_path / "b" / "third.webp", picture, lossless=True)
    found = look(tmp_path)
    assert found.copies == [["a/one.png", "b/third.webp", "a/another.bmp"]]
    assert found.contradictory() == found.copies
    assert found.alike == []
    assert kinds(found) == {"label error": 1}


def test_near_duplicates_survive_size_and_compression_and_others_are_none(tmp_path: Path) -> None:
    album(tmp_path, {"a": 12, "b": 12})
    picture = texture(400, 300, seed=5)
    save(tmp_path / "a" / "large.png", picture)
    save(tmp_path / "b" / "small.jpg", picture.resize((90, 70)), quality=60)
    save(tmp_path / "b" / "mirror.png", picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    found = look(tmp_path)
    assert found.copies == []
    assert found.alike == [["a/large.png", "b/small.jpg"]]
    assert kinds(found) == {"alike across classes": 1}


def test_near_pairs_compare_colours_and_plain_pictures() -> None:
    shape = np.zeros((GLANCE, GLANCE, 3), np.uint8)
    shape[8:24, 8:24] = 200
    red, blue = shape * np.array([1, 0, 0], np.uint8), shape * np.array([0, 0, 1], np.uint8)
    plain = np.full_like(shape, 100)
    darker = np.full_like(shape, 60)
    glances = np.stack([red, blue, red, plain, darker, plain])
    assert near_pairs(glances) == [(0, 2), (3, 5)]
    assert near_pairs(glances[:1]) == []
    assert groups(6, [(0, 2), (2, 4), (3, 5)]) == [[0, 2, 4], [3, 5]]


def test_a_part_is_spread_over_classes_and_files(tmp_path: Path) -> None:
    root = album(tmp_path, {f"c{i:02}": 12 for i in range(8)})
    found = look(root, most=16)
    assert found.total == 96
    assert found.counts() == {"c00": 8, "c04": 8}
    assert [p.name for p in found.pictures][:3] == ["c00/00.png", "c00/01.png", "c00/03.png"]
    assert look(root, most=96).total == len(look(root, most=96).pictures)


def test_progress_and_absent_folders(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    look(album(tmp_path / "x", {"a": 2, "b": 1}), on_file=lambda n, of: seen.append((n, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(DataError, match="no such folder"):
        look(tmp_path / "y")
    (tmp_path / "z").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        look(tmp_path / "z")


# --- what is chosen ---


def test_few_classes_are_tested_on_both_sides(tmp_path: Path) -> None:
    chosen = made(album(tmp_path / "p", {"a": 10, "b": 12, "c": 3}), tmp_path / "recipe.py")
    assert (chosen.protocol, chosen.test_share, chosen.min_images) == ("closed", 0.3, 4)
    assert chosen.counts == {"a": 7, "b": 8}
    assert (chosen.test, chosen.small) == (7, ("c",))
    assert (chosen.side, chosen.memory, chosen.pairs, chosen.classes) == (24, True, 4, None)


def test_many_classes_are_tested_on_unseen_ones(tmp_path: Path) -> None:
    chosen = made(album(tmp_path / "p", {f"c{i:02}": 2 for i in range(20)}), tmp_path / "recipe.py")
    assert (chosen.protocol, chosen.train, chosen.test) == ("zero-shot", 20, 20)
    assert list(chosen.counts) == [f"c{i:02}" for i in range(10)]


def test_uneven_classes_are_drawn_by_class(tmp_path: Path) -> None:
    chosen = made(album(tmp_path / "p", {"a": 4, "b": 40}), tmp_path / "recipe.py")
    assert chosen.classes == 2
    assert "MPerClass(2, 4)" in (tmp_path / "recipe.py").read_text()


def test_sides_decide_the_protocol(tmp_path: Path) -> None:
    for side, labels in (("train", "abc"), ("test", "ab")):
        album(tmp_path / "closed" / side, dict.fromkeys(labels, 3))
    for side, labels in (("train", "ab"), ("test", "cd")):
        album(tmp_path / "open" / side, dict.fromkeys(labels, 3))
    assert made(tmp_path / "closed", tmp_path / "one.py").protocol == "closed"
    assert made(tmp_path / "open", tmp_path / "two.py").protocol == "zero-shot"
    album(tmp_path / "open" / "test", {"a": 2})
    with pytest.raises(DataError, match=r"that train/ has \(1\) and classes that it has not \(c, d\)"):
        choose(look(tmp_path / "open"))


def test_a_training_class_of_one_picture_is_not_tested(tmp_path: Path) -> None:
    album(tmp_path / "p" / "train", {"a": 3, "b": 3, "c": 1})
    album(tmp_path / "p" / "test", {"a": 3, "b": 3, "c": 3})
    assert made(tmp_path / "p", tmp_path / "recipe.py").small == ("c",)


def test_copies_broken_files_and_strange_names_end_in_a_recipe_that_loads(tmp_path: Path) -> None:
    root = album(tmp_path / 'my "photos" {x}', {"a": 6, "b": 6})
    picture = texture()
    for name in ("a/x.png", "a/longer name.png", "b/y.png"):
        save(root / name, picture)
    copy = texture()
    save(root / "a" / 'quo"te\n# .png', copy)
    save(root / "a" / 'a longer quo"te\n# .png', copy)
    (root / "a" / "broken.png").write_bytes(b"\x89PNG")
    found = look(root)
    chosen = choose(found)
    assert chosen.broken == "skip"
    assert set(chosen.leave_out) == {"a/x.png", "a/longer name.png", "b/y.png", 'a/a longer quo"te\n# .png'}
    text = recipe_text(found, chosen)
    ast.parse(text)
    (tmp_path / "recipe.py").write_text(text, encoding="utf-8")
    run = recipe(str(tmp_path / "recipe.py"))
    with pytest.warns(UserWarning, match=r"1 of 14 files cannot be read and are left out: a/broken.png"):
        split = run.data.load()
    assert len(split.train) + len(split.test) == 13
    plain = recipe(f"{tmp_path / 'recipe.py'}:plain")
    assert (plain.name, plain.data, plain.epochs) == ("plain", run.data, run.epochs)
    assert plain.defense.adversary is None  # type: ignore[attr-defined]


def test_too_many_pictures_for_memory_stay_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.starter.recipe.HELD", 12 * 24 * 24 * 7)
    chosen = made(album(tmp_path / "p", {"a": 4, "b": 4}), tmp_path / "recipe.py")
    assert not chosen.memory
    source = recipe(str(tmp_path / "recipe.py")).data
    assert isinstance(source, ImageFolder)
    assert (source.resize, source.crop) == (27, 24)
    assert isinstance(source.load().train.x, LazyImages)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda r: [save(r / f"{n}_{i}.png") for n in ("cat", "dog") for i in "12"], r"perhaps cat, dog"),
        (lambda r: album(r, {"a": 9, "b": 3}), "4 usable pictures each, got 1 and 1"),
        (lambda r: album(r, {"a": 9}), "got 1 and 1"),
    ],
)
def test_what_cannot_be_trained_on_is_told(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=says):
        choose(look(tmp_path))


def test_quoted_names_are_python() -> None:
    for text in ("plain", 'a"b', "new\nline", "back\\slash", "ü", "\udc80", "{x}"):
        assert ast.literal_eval(quoted(text)) == text
        quoted(text).encode()


# --- recipe files ---


def test_recipe_files_are_loaded_by_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom holdfast.recipes import hm\n"
        "def run():\n    return replace(hm(), epochs=3)\ndef longer():\n    return replace(run(), epochs=5)\n"
    )
    assert recipe(str(file)).epochs == 3
    assert recipe(f"{file}:longer").epochs == 5
    assert recipe(str(file), data="digits").data.name == "digits"


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (None, "", "a file that is there"),
        ("x = 1\ny = = 2", "", "line 2: invalid syntax"),
        ("x = 1\n\nz = absent", "", "line 3: NameError: name 'absent'"),
        ("def run():\n    return 1 / 0", "", "line 2: ZeroDivisionError"),
        ("def run():\n    return 1", "", r"run\(\) in .* does not, got 'int'"),
        ("def mine():\n    pass", "", r"a function run\(\) in .* \(there are: mine\)"),
        ("run = 3", ":run", r"\(there are: none\)"),
    ],
)
def test_recipe_files_that_fail_are_told(tmp_path: Path, text: str | None, name: str, says: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidArgument, match=says):
        recipe(f"{file}{name}")


def test_errors_of_holdfast_pass_through_recipe_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from holdfast.threat import LinfThreat\nLinfThreat(eps=-1)")
    with pytest.raises(InvalidArgument, match=r"^eps"):
        recipe(str(file))
