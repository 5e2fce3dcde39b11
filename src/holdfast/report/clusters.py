"""The section on clustering-based inference: whether a picture stays in its cluster under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import CorruptFile, RunError
from ..results import Record
from .believe import judged
from .cluster_facts import FLIP, WORST, Measured, headline, measured
from .cluster_files import Clustering, Moved, StoredClusters, worst_moves
from .cluster_map import draw, plane, shown_clusters, with_arrow
from .cluster_tables import attacks, comparison, elsewhere, transfers
from .confusion import confusion
from .facts import Strength, bounds, strength
from .load import RunFolder
from .parts import data_table, figure, missing
from .verdict import _cost
from .words import THIN, attack_says, attack_title, budget, esc, interval, join, of_100, percent


def section(runs: Sequence[RunFolder]) -> str:
    """Return "Do pictures stay in their cluster?": answer, tables, map and confusion of each run."""
    found = [(run, run.clustering) for run in runs if run.clustering and run.clustering.records]
    at = strength([replace(run, records=c.records) for run, c in found])
    all_measured = [measured(run, c, at) for run, c in found]
    parts = [_meaning(), _answer(all_measured, at), _cards(all_measured)]
    if len(all_measured) > 1:
        parts.append(comparison(all_measured))
    for index, (m, (run, c)) in enumerate(zip(all_measured, found, strict=True)):
        if len(found) > 1:
            parts.append(f"<h3>{esc(run.label)}</h3>")
        parts += [missing(note) for note in c.notes]
        parts.append(attacks(m, index, opened=len(found) == 1))
        parts.append(_pictures(m, c, f"clusters-{index}"))
        parts.append(transfers(m) + elsewhere(c, at))
    parts.append(_says(all_measured))
    return "".join(parts)


def _meaning() -> str:
    return (
        "<p>Here a picture is put into the cluster whose centre is nearest. The centres come from unattacked "
        "pictures and stay where they are; the attacker changes one picture at a time.</p>"
    )


def _answer(found: Sequence[Measured], at: Strength | None) -> str:
    """Return the answer in words, the verdict on the measurement, and who is not measured."""
    known = [(m, m.flip) for m in found if m.flip is not None]
    if at is None or not known:
        return missing("No run was attacked in this way yet, so nothing can be said about its clusters.")
    named = len(found) > 1
    said = []
    for m, flip in known:
        low, high = bounds(flip)
        span = f"{100 * (1 - high):.0f} to {100 * (1 - low):.0f}" if flip["ci"] else "no interval"
        said.append((esc(m.run.label), of_100(1 - flip["value"]), span))
    name, stay, span = said[0]
    ci = span if span == "no interval" else f"95{THIN}% interval {span}"
    text = f"<b>{stay} of 100</b> pictures{f' of <b>{name}</b>' if named else ''} stay in their cluster when "
    text += f"attacked with {esc(budget(*at[:2]))} <small>({ci})</small>"
    text += "".join(f"; of <b>{n}</b> <b>{k}</b> <small>({s})</small>" for n, k, s in said[1:]) + "."
    right = []
    for m, _ in known:
        before, after = m.clean.get("accuracy"), m.attacked[m.worst].get("accuracy")
        if before and after:
            right.append((m.run.label, of_100(before["value"]), of_100(after["value"])))
    if right and not named:
        own = f"{right[0][1]} of 100 without an attack and {right[0][2]} under attack."
        text += f' <small class="plainly">In the cluster of their own class are {own}</small>'
    elif right:
        own = "; ".join(f"{esc(label)} {before} and {after}" for label, before, after in right)
        text += (
            ' <small class="plainly">In the cluster of their own class, of 100 without an attack and under '
            f"attack: {own}.</small>"
        )
    html = f'<p class="answer">{text}</p>'
    rest = [m.run.label for m in found if m.flip is None]
    if rest:
        html += missing(f"Not measured with this attack: {join(rest)}.")
    alone = [m for m, _ in known if m.worst not in WORST]
    if alone:
        told = join([f"{m.worst} for {m.run.label}" for m in alone])
        html += missing(
            f"The worst case over many attacks was not measured; these are the figures of the single attack "
            f"that moves most pictures: {told}. Read them as upper bounds."
        )
    return html + judged([headline(m) for m in found])


def _cards(found: Sequence[Measured]) -> str:
    cards = []
    labelled = any("accuracy" in each for m in found for each in (m.clean, *m.attacked.values()))
    for m in found:
        flip = m.flip
        under = m.attacked[m.worst] if m.worst else {}
        rows = [_number("stay in their cluster under attack", flip, kept=True)]
        if labelled:
            rows.append(_number("in the cluster of their class, no attack", m.clean.get("accuracy")))
            rows.append(_number("in the cluster of their class, attacked", under.get("accuracy")))
        text = f"<div><dt>training and evaluation</dt><dd>{_cost(m.run)}</dd></div>"
        cards.append(
            f'<article class="card"><h3>{esc(m.run.label)}</h3><dl>{"".join(rows)}{text}</dl></article>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _number(name: str, record: Record | None, *, kept: bool = False) -> str:
    if record is None:
        return f"<div><dt>{name}</dt><dd>– <small>not measured</small></dd></div>"
    value, ci = record["value"], record["ci"]
    if kept:
        value, ci = 1 - value, None if ci is None else [1 - ci[1], 1 - ci[0]]
    how = f" ({esc(record['attack'])})" if record["state"] == "attacked" else ""
    span = f"<small>{interval(FLIP, ci)}</small>" if ci else ""
    return f"<div><dt>{name}{how}</dt><dd>{percent(value)} {span}</dd></div>"


def _pictures(m: Measured, c: Clustering, prefix: str) -> str:
    """Return map and confusion of the evaluation of the headline."""
    flip = m.flip
    if flip is None or c.folder is None:
        return ""
    stored = c.stored.get(flip["fingerprint"])
    if stored is None:
        return missing("No clusters were stored with this evaluation, so there is no map of them.")
    labels = [a for a in m.attacked if not a.startswith("G")]
    try:
        moved = worst_moves(c.folder / flip["fingerprint"], stored, labels)
    except (RunError, CorruptFile, OSError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        return missing(f"Where attacked pictures went is left out: {told}.") + _map(m, stored, None, prefix)
    return _map(m, stored, moved, prefix) + confusion(stored, moved, prefix)


def _map(m: Measured, stored: StoredClusters, moved: Moved | None, prefix: str) -> str:
    k, (n, e) = len(stored.centroids), stored.z.shape
    shown = shown_clusters(stored, moved)
    flat = plane(stored, shown)
    some = with_arrow(stored, shown)
    which = f"the {k} centres" if len(shown) == k else f"{len(shown)} of the {k} centres"
    caption = (
        "Each small mark is a picture without an attack, in the colour and shape of its cluster; large marks "
        f"with a rim are {which}."
    )
    caption += " Dashed lines run half-way between them." * (len(shown) == k)
    rows: list[list[object]] = [["pictures", n], ["clusters", k], ["dimensions", e]]
    title = f"{k} clusters of {m.run.label} on a plane"
    if moved is not None:
        left = moved.cluster != stored.cluster_of
        gone = int(left[some].sum())
        title = f"Where attacks move pictures: {gone} of the {len(some)} drawn leave their cluster"
        caption += (
            f" Arrows lead from {len(some)} pictures, evenly spaced in the data, to where their worst "
            "attack moved them: red and thick with a full head, out of the cluster; thin with an open head, "
            "still in it."
        )
        rows += [["leave their cluster, of all", int(left.sum())], ["of those with an arrow", gone]]
    if len(shown) < k:
        title = f"{len(shown)} of {k} clusters on a plane"
        if moved is not None:
            title = f"Where attacks move pictures: the {len(shown)} clusters of the commonest moves, of {k}"
            caption += " These clusters are among the worst, so the arrows are no fair sample of all."
    caption += (
        f" The plane shows two of {e} dimensions ({flat.name}): on it {percent(flat.kept)} of the marks lie "
        "nearest to their own centre, in truth all do. A red arrow that seems to end in its own cell has "
        "left it in a dimension that is not shown."
    )
    rows.append(["nearest to their own centre on the plane", percent(flat.kept)])
    svg = draw(stored, moved, shown, flat, title, f"{prefix}-map")
    return figure(title, svg, caption, data_table(["what", "number"], rows))


def _says(found: Sequence[Measured]) -> str:
    """Return what each attack does, in words."""
    labels = list(dict.fromkeys(a for m in found for a in m.attacked))
    if not labels:
        return ""
    says = "".join(f"<dt>{esc(attack_title(a))}</dt><dd>{esc(attack_says(a))}</dd>" for a in labels)
    return f'<details><summary>What the attacks do</summary><dl class="attacks">{says}</dl></details>'
