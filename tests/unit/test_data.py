from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import torch

from holdfast.config import allow, from_plain, to_plain
from holdfast.data import DATASETS, SAMPLERS, DataSplit, Digits, ImageSet, class_disjoint, find
from holdfast.errors import DataError, InvalidArgument


def images(labels: list[int], **fields: object) -> ImageSet:
    """One 1x2x2 image for each label; image i is filled with i / 100."""
    x = (torch.arange(len(labels)) / 100).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return ImageSet(x, torch.tensor(labels, dtype=torch.int64), "toy", **fields)  # type: ignore[arg-type]


def numbers(found: ImageSet) -> list[int]:
    return (found.x[:, 0, 0, 0] * 100).round().int().tolist()


GOOD_X, GOOD_Y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])


def with_value(row: int, value: float) -> torch.Tensor:
    x = GOOD_X.clone()
    x[row, 0, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (GOOD_X[:, 0], GOOD_Y, r"4 dimensions \(n, c, h, w\), got shape \(4, 2, 2\)"),
        (GOOD_X, GOOD_Y[:3], r"label for each of the 4 images, got shape \(3,\)"),
        (GOOD_X, GOOD_Y[:, None], r"label for each of the 4 images, got shape \(4, 1\)"),
        (GOOD_X[:0], GOOD_Y[:0], "at least one image"),
        (GOOD_X[..., :0], GOOD_Y, "at least one pixel"),
        (GOOD_X.double(), GOOD_Y, "float32, got torch.float64"),
        (GOOD_X.to(torch.uint8), GOOD_Y, "float32, got torch.uint8; divide integer pixels by 255"),
        (GOOD_X, GOOD_Y.int(), "int64, got torch.int32"),
        (with_value(2, float("nan")), GOOD_Y, "image 2 .* not finite"),
        (with_value(3, float("inf")), GOOD_Y, "image 3 .* not finite"),
        (with_value(1, float("-inf")), GOOD_Y, "image 1 .* not finite"),
        (with_value(1, 255.0), GOOD_Y, r"\[0, 1\], got \[0, 255\]; divide by 255"),
        (with_value(1, -0.25), GOOD_Y, r"\[0, 1\], got \[-0.25, 0\]$"),
        (with_value(1, 1.001), GOOD_Y, r"\[0, 1\], got \[0, 1.001\]$"),
        (GOOD_X, torch.full((4,), 7), r"at least 2 classes, got 1: \[7\]"),
    ],
)
def test_image_set_refuses(x: torch.Tensor, y: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        ImageSet(x, y, "toy")
    assert "'toy'" in str(caught.value)


def test_image_set_names_the_first_bad_row() -> None:
    x = GOOD_X.clone()
    x[1:] = float("nan")
    with pytest.raises(DataError, match="image 1 "):
        ImageSet(x, GOOD_Y, "toy")


@pytest.mark.parametrize(("labels", "bad"), [([0, 1, 2], "label 2"), ([-1, 0, 1], "label -1")])
def test_every_label_needs_its_class_name(labels: list[int], bad: str) -> None:
    with pytest.raises(DataError, match=f"{bad} has no name: 2 class names"):
        images(labels, class_names=("a", "b"))


def test_min_classes_can_be_set() -> None:
    assert images([5, 5], min_classes=1).classes == (5,)
    with pytest.raises(DataError, match="at least 3 classes, got 2"):
        images([0, 1], min_classes=3)


def test_image_set_describes_itself_without_pixels() -> None:
    found = images([3, 1, 3])
    assert (len(found), found.shape, found.classes, found.n_classes) == (3, (1, 2, 2), (1, 3), 2)
    assert repr(found) == "ImageSet('toy': 3 images of 1x2x2, 2 classes)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]


def test_subsets_keep_the_right_images_in_the_right_order() -> None:
    found = images([2, 0, 1, 0, 2, 0], class_names=("a", "b", "c"))
    assert numbers(found.take([4, 1])) == [4, 1]
    assert found.take([4, 1]).y.tolist() == [2, 0]
    assert found.take([4, 1]).class_names == ("a", "b", "c")
    assert numbers(found.of_classes([2, 0])) == [0, 1, 3, 4, 5]
    assert numbers(found.first(3)) == [0, 1, 2]
    assert numbers(found.first_per_class(1)) == [0, 1, 2]
    assert numbers(found.of_classes([0, 2]).first_per_class(2)) == [0, 1, 3, 4]


def test_subsets_refuse_what_is_not_there() -> None:
    found = images([2, 0, 1, 0, 2, 0])
    with pytest.raises(InvalidArgument, match=r"rows in \[0, 6\)"):
        found.take([0, 6])
    with pytest.raises(InvalidArgument, match=r"rows in \[0, 6\)"):
        found.take([-1, 0])
    with pytest.raises(InvalidArgument, match="integer rows"):
        found.take(torch.tensor([True, False, True, False, True, False]))
    with pytest.raises(DataError, match="at least one image"):
        found.take([])
    with pytest.raises(DataError, match=r"no images of classes \[9\]; present are \[0, 1, 2\]"):
        found.of_classes([0, 9])
    with pytest.raises(DataError, match="2 images of every class, but class 1 has 1"):
        found.first_per_class(2)
    with pytest.raises(InvalidArgument, match="k: need"):
        found.first_per_class(0)
    for n in (0, 7):
        with pytest.raises(InvalidArgument, match=r"n: need an integer in \[1, 6\]"):
            found.first(n)
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        found.take([1, 3])
    assert numbers(found.take([1, 3], min_classes=1)) == [1, 3]
    assert numbers(found.of_classes([1], min_classes=1)) == [2]


def test_fingerprint_is_the_hash_of_pixels_then_labels() -> None:
    found = images([0, 1, 1])
    expected = hashlib.sha256(found.x.numpy().tobytes() + found.y.numpy().tobytes()).hexdigest()
    assert found.fingerprint() == expected
    assert found.take([0, 1, 2]).fingerprint() == expected
    assert found.take([1, 0, 2]).fingerprint() != expected
    strided = ImageSet(found.x.transpose(2, 3), found.y, "other name")
    assert strided.fingerprint() == expected  # constant images: equal values, another memory layout
    assert images([0, 1, 0]).fingerprint() != expected  # labels count


def test_zero_shot_split_keeps_classes_apart() -> None:
    split = class_disjoint(images([0, 1, 2, 3, 0, 4]), [0, 1], [2, 3], "toy")
    assert split.protocol == "zero-shot"
    assert numbers(split.train) == [0, 1, 4]
    assert numbers(split.test) == [2, 3]
    assert (split.train.name, split.test.name) == ("toy train", "toy test")
    with pytest.raises(DataError, match=r"both sides: \[1\]"):
        class_disjoint(images([0, 1, 2, 3]), [0, 1], [1, 2], "toy")
    with pytest.raises(DataError, match=r"no images of classes \[8\]"):
        class_disjoint(images([0, 1, 2, 3]), [0, 1], [2, 8], "toy")


def test_closed_split_tests_only_trained_classes() -> None:
    assert DataSplit(images([0, 1, 2]), images([2, 0]), "toy", "closed").protocol == "closed"
    with pytest.raises(DataError, match=r"not trained on: \[3\]"):
        DataSplit(images([0, 1, 2]), images([2, 3]), "toy", "closed")
    with pytest.raises(InvalidArgument, match="protocol"):
        DataSplit(images([0, 1]), images([0, 1]), "toy", "open")  # type: ignore[arg-type]


def test_split_needs_images_of_one_shape() -> None:
    wide = ImageSet(torch.zeros(2, 1, 2, 3), torch.tensor([0, 1]), "wide")
    with pytest.raises(DataError, match=r"\(1, 2, 2\), test images \(1, 2, 3\)"):
        DataSplit(images([0, 1]), wide, "toy", "closed")


def test_digits_closed_is_the_data_sets_own_order() -> None:
    split = Digits().load()
    assert (len(split.train), len(split.test), split.protocol, split.name) == (1200, 597, "closed", "digits")
    assert split.train.shape == (1, 8, 8)
    assert split.train.y[:10].tolist() == list(range(10))
    assert split.train.x[0, 0, 0].tolist() == [0, 0, 5 / 16, 13 / 16, 9 / 16, 1 / 16, 0, 0]
    assert split.train.x.max() == 1
    assert split.train.class_names == tuple("0123456789")
    assert split.test.y[-3:].tolist() == [8, 9, 8]
    assert Digits().load().train.fingerprint() == split.train.fingerprint()
    short = Digits(train_images=100).load()
    assert (len(short.train), len(short.test)) == (100, 1697)
    assert torch.equal(short.test.x[1100:], split.test.x)


def test_digits_zero_shot_uses_every_image_once() -> None:
    split = Digits(protocol="zero-shot").load()
    assert split.train.classes == (0, 1, 2, 3, 4)
    assert split.test.classes == (5, 6, 7, 8, 9)
    assert (len(split.train), len(split.test)) == (901, 896)


@pytest.mark.parametrize("train_images", [0, 1797])
def test_digits_refuses_an_empty_side(train_images: int) -> None:
    with pytest.raises(InvalidArgument, match="train_images"):
        Digits(train_images=train_images)


def test_digits_refuses_an_unknown_protocol() -> None:
    with pytest.raises(InvalidArgument, match="protocol"):
        Digits(protocol="zero_shot")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_a_frozen_value_that_knows_its_name(name: str) -> None:
    source = DATASETS[name]()
    assert source.name == name
    assert source == DATASETS[name]()
    assert all(field.init for field in dataclasses.fields(source))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(source, dataclasses.fields(source)[0].name, "x")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_without_a_folder_the_message_tells_the_flag(name: str) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        DATASETS[name]().load()


def test_find_without_a_folder() -> None:
    assert find(None) == {name: "embedded" if name == "digits" else "not found" for name in DATASETS}


def test_sources_and_samplers_survive_plain_data() -> None:
    values = [
        *(source() for source in DATASETS.values()),
        DATASETS["fashion-mnist"]("somewhere", train_per_class=200, test_images=500),
        DATASETS["omniglot"]("somewhere", size=14, test_alphabets=("Tagalog",)),
        SAMPLERS["pairs"](8, self_pairs=True),  # type: ignore[call-arg]
        SAMPLERS["m-per-class"](8, m=4),  # type: ignore[call-arg]
    ]
    allowed = allow(*DATASETS.values(), *SAMPLERS.values())
    for value in values:
        assert from_plain(json.loads(json.dumps(to_plain(value))), allowed) == value
