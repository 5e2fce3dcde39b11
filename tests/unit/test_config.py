"""Settings to plain data, back, and changed by path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest
import torch

from holdfast.adversaries import Gradual, HardnessManipulation, Mined
from holdfast.config import allow, describe, flatten, from_plain, number, replace, to_plain
from holdfast.defenses import AdversarialTraining
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.functional.distance import Mahalanobis
from holdfast.losses import IntraClassStructure, Triplet
from holdfast.miners import Random, Softhard
from holdfast.schedules import Cycle, HalfCosine, Linear
from holdfast.search import NES, PGD, Autograd
from holdfast.threat import L2Threat, LinfThreat

TYPES = allow(
    AdversarialTraining, HardnessManipulation, Gradual, Mined, IntraClassStructure, Triplet, Random, Softhard,
    Cycle, HalfCosine, Linear, NES, PGD, Autograd, L2Threat, LinfThreat,
)  # fmt: skip


def defense(**changes: Any) -> AdversarialTraining:
    parts: dict[str, Any] = {
        "loss": Triplet(margin=0.3),
        "miner": Random(),
        "adversary": HardnessManipulation(destination=Mined(miner=Softhard())),
        "search": PGD(steps=8, alpha=HalfCosine(start=0.1, stop=0.01), gradient=NES(samples=3), keep="best"),
        "threat": LinfThreat(eps=8 / 255, bounds=None),
        "extra": (IntraClassStructure(weight=0.5), IntraClassStructure(weight=0.25)),
    }
    return AdversarialTraining(**parts | changes)


class Shape(Protocol):
    """Anything with an area."""

    def area(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 1.0

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ValueError("negative side")

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float

    def area(self) -> float:
        return 3 * self.radius**2


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = "x"
    root: str | None = None
    count: int = 0
    wide: int | float = 0
    flag: bool = False
    maybe: bool | None = None
    size: float | None = None
    mode: Literal["fast", "slow"] | None = None
    either: float | Shape = 0.0
    square: Square = field(default_factory=Square)
    anything: Any = None
    numbers: tuple[float, ...] = (1.0, 2.0)
    pair: tuple[int, str] = (1, "a")
    shapes: tuple[Shape, ...] = (Square(), Square(side=2.0))
    maybe_shapes: tuple[Shape, ...] | None = (Square(),)
    options: Mapping[str, float] = field(default_factory=dict)


OWN = allow(Square, Circle, Settings)


def test_nested_values_survive_json() -> None:
    value = defense()
    plain = json.loads(json.dumps(to_plain(value), allow_nan=False))
    assert plain["search"]["alpha"] == {"type": "HalfCosine", "start": 0.1, "stop": 0.01}
    assert plain["threat"] == {"type": "LinfThreat", "eps": 8 / 255, "bounds": None}
    back = from_plain(plain, TYPES)
    assert back == value
    assert isinstance(back.extra, tuple)
    assert hash(back) == hash(value)


def test_mappings_and_scalars_survive() -> None:
    value = Settings(options={"a": 0.5}, anything=(1, "b", None, True))
    assert from_plain(to_plain(value), OWN) == value
    assert from_plain(to_plain({"a": (1, (2,))}), {}) == {"a": (1, (2,))}


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.zeros(2), len, LinfThreat, b"x"])
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=type(value).__name__):
        to_plain({"deep": [value]})


def test_a_distance_with_a_tensor_is_refused_and_not_cut() -> None:
    with pytest.raises(InvalidArgument, match="Tensor"):
        to_plain(Mahalanobis(torch.eye(2)))


def test_types_that_are_not_allowed_are_never_made() -> None:
    plain = to_plain(defense())
    with pytest.raises(UnknownName, match="did you mean L2Threat"):
        from_plain(plain, {k: v for k, v in TYPES.items() if k != "LinfThreat"})
    for name in ("builtins.eval", "os.system", "", None, 3, ["PGD"]):
        with pytest.raises(UnknownName, match="type"):
            from_plain({"type": name, "steps": 3}, TYPES)


def test_unknown_fields_show_near_matches() -> None:
    with pytest.raises(UnknownName, match=r"field of PGD: .*did you mean restarts .*'restart'"):
        from_plain({"type": "PGD", "restart": 3}, TYPES)
    with pytest.raises(UnknownName, match="norm"):  # a class attribute is no field
        from_plain({"type": "LinfThreat", "eps": 0.1, "norm": "l2"}, TYPES)


def test_fields_that_a_type_refuses() -> None:
    with pytest.raises(DataError, match=r"LinfThreat: cannot be built from \['bounds'\]: .*eps"):
        from_plain({"type": "LinfThreat", "bounds": None}, TYPES)
    with pytest.raises(DataError, match="PGD"):
        from_plain({"type": "PGD", "steps": "many"}, TYPES)
    with pytest.raises(DataError, match="negative side"):
        from_plain({"type": "Square", "side": -1}, OWN)
    with pytest.raises(InvalidArgument, match="eps: need a finite number >= 0"):
        from_plain({"type": "LinfThreat", "eps": -1}, TYPES)


def test_allow_refuses_two_classes_of_one_name() -> None:
    @dataclass(frozen=True)
    class LinfThreat:
        """Another one."""

    assert allow(PGD, PGD) == {"PGD": PGD}
    with pytest.raises(InvalidArgument, match="LinfThreat"):
        allow(TYPES["LinfThreat"], LinfThreat)


def test_flatten_by_hand() -> None:
    flat = flatten(to_plain(defense()))
    assert "" not in flat
    assert flat["search"] == "PGD"
    assert flat["search.alpha"] == "HalfCosine"
    assert flat["search.alpha.stop"] == 0.01
    assert flat["threat.bounds"] is None
    assert flat["extra.1"] == "IntraClassStructure"
    assert flat["extra.1.weight"] == 0.25
    assert flatten({"a": [1, 2], "b": [], "c": [[1], 2]}) == {"a": [1, 2], "b": [], "c.0": [1], "c.1": 2}


def test_flattened_paths_are_paths_of_replace() -> None:
    value = defense()
    for path, item in flatten(to_plain(value)).items():
        if isinstance(item, float | bool | int):
            assert replace(value, path, item, TYPES) == value, path
            assert replace(value, path, str(item), TYPES) == value, path


def test_describe_has_one_line_for_each_setting() -> None:
    lines = describe(LinfThreat(eps=0.5)).splitlines()
    assert lines == ["eps = 0.5", "bounds = [0.0, 1.0]"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 0.001), ("-2", -2.0), (" 1 / 4 ", 0.25), ("-1/-2", 0.5)],
)
def test_numbers(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["", "/", "8/", "/255", "1/0", "1/2/3", "nan", "inf", "-inf", "inf/2", "1e300/1e-300", "a", "1,5"]
)
def test_no_numbers(text: str) -> None:
    with pytest.raises(InvalidArgument, match="number: need a"):
        number(text)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("name", "8/255", "8/255"),
        ("name", "none", "none"),
        ("name", "Square", "Square"),  # text is text, even if a type has that name
        ("name", "[a] b", "[a] b"),
        ("root", "None", None),
        ("root", "/data", "/data"),
        ("root", "{x}", "{x}"),
        ("count", "12", 12),
        ("count", " -3 ", -3),
        ("count", "+3", 3),
        ("wide", "3", 3),
        ("wide", "8/255", 8 / 255),
        ("flag", "True", True),
        ("flag", "false", False),
        ("maybe", "null", None),
        ("maybe", "true", True),
        ("size", "8/255", 8 / 255),
        ("size", "none", None),
        ("size", "", None),
        ("size", "2", 2.0),
        ("mode", "slow", "slow"),
        ("mode", "none", None),
        ("either", "1/4", 0.25),
        ("either", "Square", Square()),
        ("either", '{"type": "Circle", "radius": 2.5}', Circle(radius=2.5)),
        ("square", '{"type": "Square", "side": 3.0}', Square(side=3.0)),
        ("square.side", "1/3", 1 / 3),
        ("anything", "hello", "hello"),
        ("anything", "Square", Square()),
        ("anything", "[1, [2]]", (1, (2,))),
        ("numbers", "[3, 4.5]", (3, 4.5)),
        ("numbers.1", "1/2", (1.0, 0.5)),
        ("pair.0", "7", (7, "a")),
        ("pair.1", "7", (1, "7")),
        ("shapes.1.side", "5", (Square(), Square(side=5.0))),
        ("shapes.0", "Square", (Square(), Square(side=2.0))),
        ("shapes.1", '{"type": "Circle", "radius": 1}', (Square(), Circle(radius=1))),
        ("maybe_shapes.0", '{"type": "Circle", "radius": 1}', (Circle(radius=1),)),
        ("maybe_shapes", "none", None),
        ("shapes", "[]", ()),
    ],
)
def test_text_is_read_for_its_field(path: str, text: str, value: Any) -> None:
    settings = Settings()
    changed = replace(settings, path, text, OWN)
    head, *rest = path.split(".")
    got = getattr(changed, head)
    if rest and head == "square":
        got = got.side
    assert got == value
    assert type(got) is type(value)
    assert settings == Settings()  # the old value is untouched
    same = {f: getattr(changed, f) for f in Settings.__dataclass_fields__ if f != head}
    assert same == {f: getattr(settings, f) for f in same}


@pytest.mark.parametrize(
    ("path", "text", "required"),
    [
        ("count", "8/255", "an integer"),
        ("count", "1.0", "an integer"),
        ("count", "+-5", "an integer"),
        ("count", "²", "an integer"),
        ("count", "none", "an integer"),
        ("count", "Square", "an integer"),
        ("count", "[1]", "an integer"),
        ("flag", "yes", "true or false"),
        ("flag", "1", "true or false"),
        ("size", "wide", "a number such as 0.1 or 8/255 or none"),
        ("mode", "Fast", "'fast' or 'slow' or none"),
        ("square", "Circle", "the fields of Circle"),
        ("square", "Cube", "a Square"),
        ("square", '{"type": "Circle", "radius": 1}', "a Square"),
        ("square", '{"type": "Square"', "JSON"),
        ("square", '{"type": "Square", "sid": 1}', "did you mean side"),
        ("square", '{"type": "Sqare"}', "did you mean Square"),
        ("either", '{"type": "Circle"}', "radius"),
        ("square.side", "-1", "negative side"),
        ("square.side", "big", "a number"),
        ("numbers.1", "x", "a number"),
        ("pair.0", "x", "an integer"),
        ("pair.5", "1", "a position below 2"),
        ("shapes.-1", "Square", "a position below 2"),
        ("shapes.x.side", "1", "a position below 2"),
        ("shapes.²", "1", "a position below 2"),
        ("count.real", "1", "a path that ends before 'real'"),
    ],
)
def test_errors_name_the_path_and_what_was_required(path: str, text: str, required: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        replace(Settings(), path, text, OWN)
    assert str(caught.value).startswith(f"{path}: need ")
    assert required in str(caught.value)


@pytest.mark.parametrize(
    ("path", "near"),
    [("cuont", "did you mean count"), ("square.sid", "did you mean side"), ("", "known:"), ("zzz", "known:")],
)
def test_paths_that_do_not_exist(path: str, near: str) -> None:
    with pytest.raises(UnknownName, match=near) as caught:
        replace(Settings(), path, "1", OWN)
    assert str(caught.value).startswith(path)


def test_values_that_are_no_text_are_taken_as_they_are() -> None:
    assert replace(Settings(), "shapes.0", Circle(radius=1.0)).shapes[0] == Circle(radius=1.0)
    assert replace(Settings(), "size", None).size is None
    with pytest.raises(InvalidArgument, match=r"square\.side"):
        replace(Settings(), "square.side", None)


def test_a_type_must_be_allowed_to_be_named() -> None:
    with pytest.raises(InvalidArgument, match="either"):
        replace(Settings(), "either", "Square")
    with pytest.raises(InvalidArgument, match="either"):
        replace(Settings(), "either", '{"type": "Square"}', allow(Circle))


def test_the_values_own_refusal_comes_through() -> None:
    with pytest.raises(InvalidArgument, match="eps: need a finite number >= 0"):
        replace(defense(), "threat.eps", "-1/255", TYPES)


def test_parts_of_a_real_defense() -> None:
    value = defense()
    assert replace(value, "search.alpha", "1/255", TYPES).search == PGD(
        steps=8, alpha=1 / 255, gradient=NES(samples=3), keep="best"
    )
    cycle = '{"type": "Cycle", "values": [0.1, 0.2]}'
    assert replace(value, "search.alpha", cycle, TYPES).search.alpha == Cycle(values=(0.1, 0.2))
    assert replace(value, "search.gradient", "Autograd", TYPES).search.gradient == Autograd()
    assert replace(value, "search.keep", "last", TYPES).search.keep == "last"
    assert replace(value, "extra.1.weight", "1/8", TYPES).extra == (
        IntraClassStructure(weight=0.5),
        IntraClassStructure(weight=0.125),
    )
    assert replace(value, "threat.bounds", "[0, 0.5]", TYPES).threat.bounds == (0, 0.5)
    assert replace(LinfThreat(eps=0.1), "bounds.1", "1/2").bounds == (0.0, 0.5)
    with pytest.raises(InvalidArgument, match="'last' or 'best'"):
        replace(value, "search.keep", "first", TYPES)
