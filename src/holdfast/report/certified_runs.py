"""What is certified of a trained run: curves and tables of Recall@k, and what each way to certify means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..results import Record
from .certificates import Attacked, Certified, curves_spec, drawn_curves, median_of, title, took
from .facts import bounds
from .parts import data_table, figure, missing
from .words import esc, join, number, percent


def section(
    folders: Sequence[tuple[str, Certified]],
    *,
    named: bool = True,
    records: Mapping[str, Sequence[Record]] = {},
) -> str:
    """Return "What is certified?" for runs: what it means, and for each k curve, table and intervals.

    ``named`` heads each folder with its name. ``records`` are those of the runs by name: what attacks of the
    same norm left right is drawn beside what is certified.
    """
    parts = [_meaning()]
    for index, (label, certified) in enumerate(folders):
        if named:
            parts.append(f"<h3>{esc(label)}</h3>")
        parts.append(_about(certified))
        parts += [missing(note) for note in certified.notes]
        own = records.get(label, ())
        parts += [_places(certified, k, f"run-certified-{index}-{k}", own) for k in certified.ks()]
    return "".join(parts)


def _meaning() -> str:
    return (
        "<p>A certificate is a proof about one query image: as long as the image is changed by less than its "
        "radius, the first place of its search results goes to an image of its own class, whatever the "
        "attack, known or not (for k places: one of the first k). The gallery stays as it is. The radius is "
        "the Euclidean length (l2) of the change, with pixels from 0 to 1: 0.5 is one pixel changed by half "
        "its range, or 100 pixels by 0.05 each. A query that is answered wrong has radius 0.</p>"
        "<p>What is certified differs. <b>Lipschitz constant</b>: the encoder as it is; its embeddings "
        "provably move no further than its images, and nothing is left to chance. <b>Smoothing</b>: the mean "
        "embedding of many noisy copies of the query, and <b>votes</b>: the class that most noisy copies "
        "find. These two are other systems than the encoder alone, and usually less accurate: what "
        "infinitely many copies would answer, measured on some drawn at random; with few copies, close cases "
        "may be answered otherwise. The <b>failure probability</b> is about that chance: for each query, the "
        "radius is too large with at most that probability, so of 1000 queries at 0.001 one such radius is "
        "expected at most. A certificate says nothing about larger changes, nor about queries that were not "
        "measured.</p>"
    )


def _about(certified: Certified) -> str:
    run = certified.meta["run"]
    words = (
        f"{run.get('data')}: {run.get('test images')} test images of {run.get('classes')} classes, each "
        f"searched among all the others; encoder {run.get('encoder')}, trained as {run.get('defense')}."
    )
    command = certified.meta.get("command")
    return f'<p class="note">{esc(words)}</p>' + (f"<pre>{esc(command)}</pre>" if command else "")


def _attacked(certified: Certified, k: int, records: Sequence[Record]) -> Attacked:
    """Return the lowest recall@k under attack at each radius of the certificates' norm."""
    norm = certified.meta["run"].get("norm", "l2")
    lowest: dict[float, Record] = {}
    for r in records:
        if (r["state"], r["norm"], r["metric"]) != ("attacked", norm, f"recall@{k}") or r["eps"] <= 0:
            continue
        if r["eps"] not in lowest or r["value"] < lowest[r["eps"]]["value"]:
            lowest[r["eps"]] = r
    return [(eps, r["value"], *bounds(r), r["n"]) for eps, r in sorted(lowest.items())]


def _places(certified: Certified, k: int, prefix: str, records: Sequence[Record] = ()) -> str:
    """Return curve, table and intervals of Recall@k of a trained run."""
    rows = certified.of("rows", k)
    ordered = sorted(rows, key=lambda row: -(row["median"]["value"] or 0.0))
    medians = join([f"{median_of(row['median'])} ({title(row['method'])})" for row in ordered])
    where = "the first place" if k == 1 else f"the first {k} places"
    head = f"An image of the right class in {where}. Median certified radius: {medians}"
    caption = (
        f"Share of queries whose own class is proven to stay in {where}, for every radius. Higher is better. "
        "At radius 0 it is what can be proven at all; dotted blue: the encoder itself, without noise and "
        "attack."
    )
    attacked = _attacked(certified, k, records)
    if attacked:
        caption += (
            " Orange: what the strongest attack on the encoder itself left right. What is true lies between "
            "the certificate of the encoder and the attack; smoothing and votes are other systems."
        )
    svg = drawn_curves(certified, k, head, prefix, attacked)
    spec = curves_spec(certified, k, attacked)
    radii = certified.meta["radii"]
    at = [f"at {r:g}" for r in radii]
    top = ["method", "queries", "copies", "failure probability", "clean", *at, "median radius", "certifying"]
    body, spans = [], []
    for row in rows:
        noise = row.get("noise")
        few = row["n"] < row.get("of", row["n"])
        shares = [1 - cell["value"] for cell in (row["clean_error"], *row["certified_error"])]
        body.append([
            title(row["method"]), f"{row['n']} of {row['of']}" if few else row["n"],
            number(noise["samples"][1]) if noise else "–", f"{row['alpha']:g}" if row.get("alpha") else "0",
            *(f"{100 * v:.1f}" for v in shares), median_of(row["median"]), took(row["seconds"]),
        ])  # fmt: skip
        m = row["median"]
        middle = (
            "–" if m["low"] is None or m["high"] is None else f"{number(m['low'])} to {number(m['high'])}"
        )
        ranges = [_kept_range(cell) for cell in (row["clean_error"], *row["certified_error"])]
        spans.append([title(row["method"]), *ranges, middle])
    notes = (
        f"Clean: recall@{k} of the encoder itself on these queries; at each radius: certified recall@{k}; in "
        "percent, the higher the better. Copies: noisy ones of each query that certify it."
    )
    if any(row["n"] < row.get("of", row["n"]) for row in rows):
        notes += " Where fewer queries than there are were certified, they are a random sample."
    table = data_table(top, body, f"Figures, recall@{k}", opened=True) + f'<p class="note">{esc(notes)}</p>'
    name = "95 % intervals over queries (shares in percent, Wilson; median by the bootstrap)"
    table += data_table(["method", "clean", *at, "median radius"], spans, name)
    if attacked:
        struck = [[number(e), percent(v), f"{100 * a:.1f} to {percent(b)}", n] for e, v, a, b, n in attacked]
        top = ["radius", f"recall@{k} under attack", "95 % interval", "queries"]
        table += data_table(top, struck, "Under attack")
    return figure(head, svg, caption, table, spec) + "".join(_struck(row) for row in rows)


def _kept_range(cell: Mapping[str, Any]) -> str:
    return f"{100 * (1 - cell['high']):.1f} to {100 * (1 - cell['low']):.1f}"


def _struck(row: Mapping[str, Any]) -> str:
    """Say what an attack inside the radii did, if there was one."""
    a = row.get("attacked")
    if not a:
        return ""
    chance = f"by chance, at most {a['allowed']} may break" if row.get("alpha") else "none may break"
    good = "as it must be" if a["broken"] <= a["allowed"] else "so the certificate is wrong"
    words = (
        f"{title(row['method'])}: an attack inside the radii of {a['tried']} certified queries broke "
        f"{a['broken']}, {good} ({chance})."
    )
    return f"<p>{esc(words)}</p>"
