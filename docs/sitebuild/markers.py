"""Markers: ``{{name arguments}}`` alone on a line, replaced by what a function of that name returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

MARKER = re.compile(r"^\{\{(\w+)((?: [^}\n]*)?)\}\}[ \t]*$", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


class Marker(NamedTuple):
    """A marker's name and its arguments."""

    name: str
    arguments: tuple[str, ...]


def markers(text: str) -> Iterator[Marker]:
    """Yield the markers of a page, those inside fenced code left out."""
    for found in MARKER.finditer(FENCE.sub("", text)):
        yield Marker(found[1], tuple(found[2].split()))


def expand(text: str, table: Mapping[str, Callable[..., str]]) -> str:
    """Return a page with all markers replaced.

    Raises
    ------
    KeyError
        For a marker that nobody knows.
    """

    def replaced(found: re.Match[str]) -> str:
        return table[found[1]](*found[2].split())

    out, end = [], 0
    for fence in FENCE.finditer(text):
        out += [MARKER.sub(replaced, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*out, MARKER.sub(replaced, text[end:])])
