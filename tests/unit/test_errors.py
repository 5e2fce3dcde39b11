"""Errors say the argument, what was required and what came."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast import errors
from holdfast.errors import (
    CorruptFile,
    DataError,
    HoldfastError,
    HoldfastWarning,
    InvalidArgument,
    MissingExtra,
    RunError,
    UnknownName,
)


def test_every_error_has_the_one_root() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    raised = [c for c in found if not issubclass(c, Warning)]
    assert len(raised) == 7
    assert all(issubclass(c, HoldfastError) for c in raised)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidArgument, ValueError),
        (UnknownName, InvalidArgument),
        (DataError, ValueError),
        (CorruptFile, DataError),
        (MissingExtra, ImportError),
        (HoldfastWarning, UserWarning),
    ],
)
def test_errors_are_also_what_python_users_expect(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def test_a_run_error_is_no_value_error() -> None:
    assert not issubclass(RunError, ValueError)


def test_invalid_argument_names_argument_requirement_and_value() -> None:
    error = InvalidArgument("eps", "a number >= 0", "8/255")
    assert str(error) == "eps: need a number >= 0, got '8/255'"
    assert error.argument == "eps"


def test_unknown_name_offers_near_matches_in_their_own_spelling() -> None:
    message = str(UnknownName("attack", "es", ["ES", "CA+", "CA-"]))
    assert message == "attack: need a known name (did you mean ES?), got 'es'"
    two = str(UnknownName("attack", "ca", ["ES", "CA+", "CA-"]))
    assert "CA+" in two
    assert "CA-" in two
    assert " or " in two
    assert "ES" not in two


def test_unknown_name_lists_everything_when_nothing_is_near() -> None:
    assert "known: alpha, beta" in str(UnknownName("recipe", "zzz", {"beta": 1, "alpha": 2}))
    assert "known: none" in str(UnknownName("recipe", "zzz", ()))


def test_corrupt_file_names_file_and_offset() -> None:
    error = CorruptFile(Path("a.idx"), 16, "need 784 bytes")
    assert str(error) == "a.idx: cannot be read at byte 16: need 784 bytes"
    assert (error.path, error.offset) == ("a.idx", 16)
    assert str(CorruptFile("a.zip!b", None, "torn")) == "a.zip!b: cannot be read: torn"
    assert "at byte 0" in str(CorruptFile("a", 0, "empty"))  # 0 is an offset, not "unknown"


def test_missing_extra_says_how_to_install() -> None:
    assert str(MissingExtra("timm", "timm", "ResNet-50")) == (
        "ResNet-50 needs timm; install it with: pip install 'holdfast[timm]'"
    )
