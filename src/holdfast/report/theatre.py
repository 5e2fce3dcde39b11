"""The attack theatre: stored examples to step through, by run, attack, strength and query.

Images are stored once each, however many examples show them, and in a fixed number of bytes: first queries,
then radii, then attacks are left out until they fit, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .facts import Headline, Strength
from .images import LARGE, SMALL, change, encode, moved_by, pixels, right_of_five, severity, strips
from .load import Exhibit, RunFolder
from .parts import json_block, missing
from .words import attack_says, attack_title, budget, esc, join, number, plain, radius

BUDGET = 2_400_000
"""Bytes of all examples of a report."""
STRIPS = 3
"""Examples of each run that stand on the page where no script runs."""
REPEATED = ("ES:D", "ES_D")
"""Stored examples that repeat those of another attack."""
_FEWEST = 3
_TEXT = 340
"""Bytes that an example takes beside its images, about."""


class Plan(NamedTuple):
    """How many queries of each attack, radii of each attack, and attacks of each run are kept."""

    queries: int
    radii: int
    attacks: int


@dataclass(frozen=True)
class Shown:
    """The examples of one attack of one run.

    ``sizes`` holds them by strength, the one to keep longest first; ``ids`` the queries from the worst to the
    one that held best at that strength, and ``kept`` the same queries, those to keep longest first.
    """

    attack: str
    norm: str
    sizes: tuple[Exhibit, ...]
    ids: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass
class Pictures:
    """Images as data URIs, each once."""

    uris: list[str] = field(default_factory=list)
    _known: dict[tuple[int, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _place: dict[str, int] = field(default_factory=dict)

    def uri(self, image: NDArray[np.uint8], most: int) -> str:
        """Return an image as a data URI, without storing it."""
        key = (most, image.shape, image.tobytes())
        if key not in self._known:
            self._known[key] = encode(image, most)
        return self._known[key]

    def add(self, image: NDArray[np.uint8], most: int) -> int:
        """Store an image unless it is there, and return its place."""
        uri = self.uri(image, most)
        if uri not in self._place:
            self._place[uri] = len(self.uris)
            self.uris.append(uri)
        return self._place[uri]


def section(
    runs: Sequence[RunFolder], at: Strength | None, lines: Sequence[Headline] = (), most: int = BUDGET
) -> str:
    """Return "Show me.": the theatre, and for pages without scripts a few examples of each run.

    Parameters
    ----------
    runs
        The runs of the report.
    at
        The strength that the report speaks of.
    lines
        The headlines of the runs: the attack that they name is shown first.
    most
        Bytes of all examples.
    """
    worst = {line.run.label: line.attacked["attack"] for line in lines if line.attacked}
    shown = {run.label: attacks_of(run, at, worst.get(run.label)) for run in runs}
    named = [(run.label if len(runs) > 1 else "", note) for run in runs for note in run.notes]
    notes = "".join(missing(f"{label}: {note}" if label else note) for label, note in named)
    without = [run.label for run in runs if not shown[run.label]]
    if len(without) == len(runs):
        return notes + missing("No examples were stored with this run." if len(runs) == 1 else
                               "No examples were stored with these runs.")  # fmt: skip
    if without:
        notes += missing(f"No examples were stored with {join(without)}.")
    static = "".join(f"<h3>{esc(label)}</h3>{_static(found[0])}" for label, found in shown.items() if found)
    pictures = Pictures()
    data, left_out = stage({k: v for k, v in shown.items() if v}, at, pictures, most - _image_bytes(static))
    said = missing(f"To keep this page small, {left_out}.") if left_out else ""
    return (
        "<p>What an attack changes, and which images come back then. A green edge and ✓ mark an image of the "
        "right class, a red dashed edge and ✗ a wrong one; the number beneath is its distance. The change is "
        "drawn on grey: black and white are the most that was allowed. The examples were picked to show what "
        f"happens, from the worst to those that held; they are not a fair sample.</p>{notes}{_CONTROLS}"
        f"{json_block(data, 'theatre-data')}"
        f'<div class="strips">{static}</div>{said}'
    )


def attacks_of(run: RunFolder, at: Strength | None, worst: str | None = None) -> list[Shown]:
    """Return the stored attacks of a run: the one named worst first, then embedding shift, then by name."""
    found: dict[tuple[str, str], list[Exhibit]] = {}
    for e in run.exhibits.values():
        if e.attack not in REPEATED:
            found.setdefault((e.attack, e.norm), []).append(e)
    order = sorted(found, key=lambda k: (k[0] != worst, k[0] != "ES", k))
    return [_shown(*key, found[key], at) for key in order]


def _shown(attack: str, norm: str, exhibits: Sequence[Exhibit], at: Strength | None) -> Shown:
    sizes = sorted(exhibits, key=lambda e: e.eps)
    near = [e for e in sizes if at and norm == at.norm and abs(e.eps - at.eps) < 1e-6]
    first = near[0] if near else sizes[-1]
    by_use = list(dict.fromkeys([first, sizes[-1], sizes[0], *sizes]))
    order = severity(first)
    ids = [int(first.rows["ids"][i]) for i in order]
    kept = _spread([ids[i] for i in picks(first)], ids)
    more = [int(i) for e in sizes for i in e.rows["ids"]]
    return Shown(
        attack=attack,
        norm=norm,
        sizes=tuple(by_use),
        ids=tuple(dict.fromkeys([*ids, *more])),
        kept=tuple(dict.fromkeys([*kept, *more])),
    )


def picks(exhibit: Exhibit) -> list[int]:
    """Return the places, in the order of severity, of the median, the worst and the best case that held."""
    held = exhibit.rows["held"].astype(bool)
    order = severity(exhibit)
    places = [(len(order) - 1) // 2]
    places += [0] * (not held[order[0]]) + [len(order) - 1] * bool(held[order[-1]])
    return list(dict.fromkeys(places))


def _spread(first: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Return the ids so that every beginning of the list lies evenly over their order."""
    places = [ids.index(i) for i in first]
    while len(places) < len(ids):
        rest = [i for i in range(len(ids)) if i not in places]
        places.append(max(rest, key=lambda i: min(abs(i - p) for p in places)))
    return [ids[p] for p in places]


def stage(
    shown: Mapping[str, Sequence[Shown]], at: Strength | None, pictures: Pictures, most: int
) -> tuple[dict[str, Any], str]:
    """Return the data of the theatre within ``most`` bytes, and what was left out in words."""
    plans = list(_plans(shown))
    plan = next((p for p in plans if _fits(shown, p, pictures, most)), plans[-1])
    full = plans[0]
    runs = [
        {"label": plain(label), "attacks": [_attack(s, plan, pictures) for s in some[: plan.attacks]]}
        for label, some in shown.items()
    ]
    left = []
    if plan.queries < full.queries:
        left.append(f"{plan.queries} of up to {full.queries} stored queries of each attack are shown")
    if plan.radii < full.radii:
        left.append(f"{plan.radii} of up to {full.radii} strengths")
    if plan.attacks < full.attacks:
        gone = sorted({s.attack for some in shown.values() for s in some[plan.attacks :]})
        left.append(f"{join(gone)} {'are' if len(gone) > 1 else 'is'} left out")
    return {"images": pictures.uris, "runs": runs}, join(left)


def _plans(shown: Mapping[str, Sequence[Shown]]) -> Iterator[Plan]:
    """Yield what may be kept, from everything down to one example of each run."""
    every = [s for some in shown.values() for s in some]
    queries = max((len(s.ids) for s in every), default=1)
    radii = max((len(s.sizes) for s in every), default=1)
    attacks = max((len(some) for some in shown.values()), default=1)
    fewest = min(_FEWEST, queries)
    yield from (Plan(q, radii, attacks) for q in range(queries, fewest - 1, -1))
    yield from (Plan(fewest, r, attacks) for r in range(radii - 1, 0, -1))
    yield from (Plan(fewest, 1, a) for a in range(attacks - 1, 0, -1))
    yield from (Plan(q, 1, 1) for q in range(fewest - 1, 0, -1))


def _fits(shown: Mapping[str, Sequence[Shown]], plan: Plan, pictures: Pictures, most: int) -> bool:
    """Say whether a plan fits; stops looking at the first image that does not."""
    seen, total = set[str](), 0
    for rank in range(plan.queries):
        for some in shown.values():
            for s in some[: plan.attacks]:
                for e in s.sizes[: plan.radii]:
                    total += _TEXT
                    for uri in _uris(e, s.kept[rank : rank + 1], pictures):
                        if uri not in seen:
                            seen.add(uri)
                            total += len(uri) + 3
                            if total > most:
                                return False
    return True


def _uris(e: Exhibit, ids: Sequence[int], pictures: Pictures) -> Iterator[str]:
    for i in _rows(e, ids):
        for image, size in _images(e, i):
            yield pictures.uri(image, size)


def _rows(e: Exhibit, ids: Sequence[int]) -> list[int]:
    here = {int(name): i for i, name in reversed(list(enumerate(e.rows["ids"])))}
    return [here[name] for name in ids if name in here]


def _images(e: Exhibit, i: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield query, change, attacked query, and the nearest images before and after, with their sizes."""
    clean, attacked = e.x["query"][i], e.x["attacked"][i]
    for x in (clean, change(clean, attacked, e.eps), attacked):
        yield pixels(x), LARGE
    for when in ("before_x", "after_x"):
        for x in e.x[when][i]:
            yield pixels(x), SMALL


def _attack(s: Shown, plan: Plan, pictures: Pictures) -> dict[str, Any]:
    kept = set(s.kept[: plan.queries])
    ids = [i for i in s.ids if i in kept]
    sizes = s.sizes[: plan.radii]
    norm = "" if s.norm == "linf" else f" ({plain(s.norm)})"
    return {
        "name": plain(s.attack),
        "title": plain(attack_title(s.attack)) + norm,
        "says": attack_says(s.attack),
        "moved": moved_by(s.attack),
        "first": sorted(sizes, key=lambda e: e.eps).index(sizes[0]),
        "sizes": [
            {
                "eps": e.eps,
                "label": radius(e.eps),
                "words": budget(e.norm, e.eps),
                "rows": _examples(e, ids, pictures),
            }
            for e in sorted(sizes, key=lambda e: e.eps)
        ],
    }


def _examples(e: Exhibit, ids: Sequence[int], pictures: Pictures) -> list[dict[str, Any]]:
    rows = _rows(e, ids)
    order = [i for i in severity(e) if i in set(rows)]
    kinds = {}
    if order:
        held = e.rows["held"].astype(bool)
        kinds = {order[-1]: "held best"} if held[order[-1]] else {}
        kinds |= {} if held[order[0]] else {order[0]: "worst case"}
        kinds |= {order[(len(order) - 1) // 2]: "median case"}
    before, after = right_of_five(e, "before"), right_of_five(e, "after")
    found = []
    for i in rows:
        places = [pictures.add(image, size) for image, size in _images(e, i)]
        near = e.rows["before_y"].shape[1]
        found.append(
            {
                "id": int(e.rows["ids"][i]),
                "class": plain(e.class_name(int(e.rows["query_y"][i]))),
                "held": bool(e.rows["held"][i]),
                "kind": kinds.get(i, ""),
                "right": [int(before[i]), int(after[i])],
                "three": places[:3],
                "before": _near(e, i, "before", places[3 : 3 + near]),
                "after": _near(e, i, "after", places[3 + near :]),
            }
        )
    return found


def _near(e: Exhibit, i: int, when: str, places: Sequence[int]) -> list[list[Any]]:
    labels, own = e.rows[f"{when}_y"][i], int(e.rows["query_y"][i])
    distances = e.rows[f"{when}_d"][i]
    return [
        [place, plain(e.class_name(int(y))), int(int(y) == own), number(float(d))]
        for place, y, d in zip(places, labels, distances, strict=True)
    ]


def _static(s: Shown) -> str:
    e = s.sizes[0]
    return (
        f"<p><b>{esc(attack_title(s.attack))}.</b> {esc(attack_says(s.attack))} Here with "
        f"{esc(budget(e.norm, e.eps))}.</p>{strips(e, STRIPS)}"
    )


def _image_bytes(text: str) -> int:
    """Return the bytes of the images in HTML."""
    return sum(len(part.partition('"')[0]) for part in text.split('src="data:')[1:])


_CONTROLS = """
<div class="theatre" hidden>
<div class="pickers">
<label class="pick">Run<select data-pick="run"></select></label>
<label class="pick wide">Attack<select data-pick="attack"></select></label>
<fieldset class="pick"><legend>Largest change</legend><div class="sizes" data-pick="size"></div></fieldset>
<div class="pick wide"><label for="pick-query" data-words="moved">Query</label><div class="step">
<button type="button" data-step="-1" aria-label="Previous example"><span aria-hidden="true">‹</span></button>
<select id="pick-query" data-pick="query"></select>
<button type="button" data-step="1" aria-label="Next example"><span aria-hidden="true">›</span></button>
</div></div>
</div>
<p class="note" data-words="says"></p>
<p class="told" data-words="told" role="status"></p>
<div class="stage" data-stage tabindex="0" role="group"
 aria-label="The example; the left and right arrow keys step through the queries"></div>
<p class="note keys">← and → step through the queries, from the worst to the one that held best; on a touch \
screen, swipe.</p>
</div>
"""
