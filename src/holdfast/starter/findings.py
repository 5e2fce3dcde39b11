"""What was seen in a folder, in words: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .look import Look

TOLD = 3
"""Names that a finding shows."""


@dataclass(frozen=True)
class Finding:
    """Something to know about the pictures.

    Attributes
    ----------
    kind
        One word or two for programs.
    count
        How many.
    text
        What was found, with the first few names.
    remedy
        What to do, and what the starter recipe does until then.
    """

    kind: str
    count: int
    text: str
    remedy: str


def findings(found: Look) -> list[Finding]:
    """Return what needs attention, the worst first."""
    wrong = found.contradictory()
    copies = [group for group in found.copies if group not in wrong]
    labels = found.labels()
    mixed = [group for group in found.alike if len({labels[name] for name in group}) > 1]
    within = [group for group in found.alike if group not in mixed]
    single = [k for k, n in found.counts().items() if n == 1 and k]
    broken = [f"{name} ({why})" for name, why in found.broken.items()]
    others = [name for names in found.others.values() for name in names]
    suffixes = ", ".join(sorted(found.others))
    turned = [p.name for p in found.pictures if p.turned]
    rows: list[tuple[str, Sequence[object], str, str, str]] = [
        (
            "label error", wrong, "picture", f"in several classes: {_groups(wrong)}",
            "delete the wrong ones; the recipe uses none of them",
        ),
        (
            "broken", broken, "file", f"cannot be read: {_few(broken)}",
            "replace or delete; the recipe passes over them and tells so",
        ),
        (
            "alike across classes", mixed, "group",
            f"of nearly the same pictures across classes: {_groups(mixed)}",
            "look at them: is the class right?",
        ),
        (
            "copies", copies, "picture", f"more than once: {_groups(copies)}",
            "delete the copies: a query would find its own; the recipe uses the first of each",
        ),
        (
            "alike", within, "group", f"of nearly the same pictures: {_groups(within)}",
            "keep one of each where they are no different views; the recipe uses all",
        ),
        (
            "single", single, "class", f"with a single picture: {_few(single)}",
            "add pictures: there is nothing to find for it; the recipe leaves them out",
        ),
        (
            "empty", found.empty, "class folder", f"without a picture: {_few(found.empty)}",
            "delete, or add pictures",
        ),
        (
            "loose", found.loose, "picture", f"beside the class folders: {_few(found.loose)}",
            "move into a class; nothing uses them there",
        ),
        (
            "deeper", found.deeper, "picture", f"in folders below a class: {_few(found.deeper)}",
            "move up into the class; nothing uses them there",
        ),
        (
            "others", others, "file", f"of other kinds ({suffixes}): {_few(others)}",
            "convert to JPEG or PNG if they are pictures; nothing uses them",
        ),
        (
            "turned", turned, "picture", f"to be turned by their EXIF data: {_few(turned)}",
            "nothing to do: the recipe turns them",
        ),
    ]  # fmt: skip
    made = [
        Finding(kind, len(things), f"{_n(things, word)} {what}", remedy)
        for kind, things, word, what, remedy in rows
        if things
    ]
    if not found.compared:
        text = f"near-duplicates were not looked for among {len(found.pictures)} pictures"
        made.append(Finding("not compared", 1, text, "nothing to do"))
    return made


def _n(things: Sequence[object], word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{len(things)} {word if len(things) == 1 else plural}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def _groups(groups: Sequence[Sequence[str]]) -> str:
    shown = [" = ".join(group[:TOLD]) + (" = ..." if len(group) > TOLD else "") for group in groups[:TOLD]]
    return "; ".join(shown) + (f"; and {len(groups) - TOLD} more" if len(groups) > TOLD else "")
