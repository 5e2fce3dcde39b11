"""Can I believe it: the verdict on each run's measurement and every check behind it, failed ones first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .facts import Headline
from .load import RunFolder
from .parts import Cell, missing, table
from .words import THIN, esc, join

LIMITS = (
    "The measurement itself was not checked, and each figure under attack is what one attack found. Read "
    "these figures as upper bounds: a stronger attack may find more."
)
MEANING = {
    "TRUSTWORTHY": "The measurement was checked, and nothing speaks against it.",
    "UNDERPOWERED": "The figures may be right, but the evidence is thin: few queries, or many warnings.",
    "OVERESTIMATED": "A check failed that a sound measurement passes: the true figures are lower. Read these "
    "as upper bounds only.",
    "VACUOUS": "The embeddings have collapsed. What does not tell images apart cannot be fooled, so these "
    "figures say nothing about safety.",
    "INVALID": "The measurement is faulty: these figures mean nothing.",
}
WORST = ("INVALID", "VACUOUS", "OVERESTIMATED", "UNDERPOWERED", "UNCHECKED", "TRUSTWORTHY")
SYMBOLS = {"fail": "✗ failed", "warn": "! warning", "pass": "✓ passed", "skipped": "– not run"}
_ORDER = {status: place for place, status in enumerate(SYMBOLS)}
_KINDS = {"INVALID": "bad", "VACUOUS": "bad", "OVERESTIMATED": "bad", "TRUSTWORTHY": "good"}
_HEAD = ("check", "result", "measured", "limit", "what to do")


def word_of(line: Headline) -> str:
    """Return the verdict on the headline under attack, or the worst of the run."""
    if line.attacked is not None:
        return _known(line.attacked["verdict"])
    words = [_known(r["verdict"]) for r in line.run.records if r["state"] == "attacked"]
    return min(words, key=WORST.index, default="UNCHECKED")


def _known(word: str) -> str:
    return word if word in WORST else "UNCHECKED"


def name_of(word: str) -> str:
    """Return a verdict as it is shown."""
    return "Not checked" if word == "UNCHECKED" else word.capitalize()


def badge(word: str) -> str:
    """Return a verdict as a badge."""
    return f'<b class="badge {_KINDS.get(word, "plain")}">{esc(name_of(word))}</b>'


def judged(lines: Sequence[Headline]) -> str:
    """Return the verdict on each run's measurement with its reason in words; equal ones stand together."""
    words = {line.run.label: word_of(line) for line in lines}
    several = len(set(words.values())) > 1
    text = ""
    for word in sorted(set(words.values()), key=WORST.index):
        of = [line for line in lines if words[line.run.label] == word]
        said = f"<strong>{esc(join([line.run.label for line in of]))}</strong>: " if several else ""
        text += (
            f'<div class="verdict">{badge(word)} <p>{said}{esc(MEANING.get(word, LIMITS))}'
            f"{_reasons(of, named=len(of) > 1)}</p></div>"
        )
    return text


def _reasons(lines: Sequence[Headline], *, named: bool) -> str:
    """Name the checks that failed, or where none did those that warned."""
    told = []
    for line in lines:
        found = findings(line)
        if found is None or word_of(line) == "TRUSTWORTHY":
            continue
        for status in ("fail", "warn"):
            names = [f"{f['id']} {f['name']}" for f in found["findings"] if f["status"] == status]
            if names:
                how = "failed" if status == "fail" else "warned"
                told.append(f"{f'{line.run.label}: ' * named}{join(names)} {how}")
                break
    return f' {esc("; ".join(told))}. <a href="#believe">All checks</a>' if told else ""


def findings(line: Headline) -> Mapping[str, Any] | None:
    """Return what the checks of the evaluation behind the headline found."""
    if line.attacked is None:
        return None
    mended = "/REPAIRED" if line.attacked["attack"] == "REPAIRED" else ""
    return line.run.verdicts.get(line.attacked["fingerprint"] + mended)


def believe(lines: Sequence[Headline]) -> str:
    """Return "Can I believe it?": for each run its verdict and all checks, failed and warning ones first."""
    parts = [
        "<p>Attacks that are too weak make a model look safer than it is. So the measurement is checked too. "
        "The figures above are as good as these checks.</p>"
    ]
    for line in lines:
        head = f"<h3>{esc(line.run.label)}</h3>" if len(lines) > 1 else ""
        found = findings(line)
        word = word_of(line)
        parts.append(
            f'{head}<div class="verdict">{badge(word)} <p>{esc(MEANING.get(word, LIMITS))}</p></div>'
        )
        if found is not None:
            parts.append(_checks(found))
            continue
        parts.append(missing(_unchecked(line.run)))
        beside, suite = _beside(line)
        if beside is not None:
            parts.append(f"<p>The evaluation by the suite {esc(suite)} with the same change was checked:</p>")
            parts.append(_checks(beside))
    return "".join(parts)


def _unchecked(run: RunFolder) -> str:
    what = "the figure under attack" if run.verdicts else "this run"
    return f"No checks were stored for {what}; holdfast evaluate makes them unless it is told --check off."


def _beside(line: Headline) -> tuple[Mapping[str, Any] | None, str]:
    """Return the checks of another evaluation of the same change, and its suite."""
    r = line.attacked
    for other in reversed(line.run.records) if r else ():
        if r and (other["norm"], other["eps"]) == (r["norm"], r["eps"]):
            found = line.run.verdicts.get(other["fingerprint"])
            if found is not None:
                return found, other["suite"]
    return None, ""


def _checks(found: Mapping[str, Any]) -> str:
    """Return the checks of one evaluation: what needs attention open, the rest behind a toggle."""
    rows = sorted(found["findings"], key=lambda f: _ORDER.get(f["status"], len(_ORDER)))
    count = {status: sum(f["status"] == status for f in rows) for status in SYMBOLS}
    said = (
        f"{_count(count['fail'], 'failed')}, {_count(count['warn'], 'gave a warning')}, "
        f"{_count(count['pass'], 'passed')}, {_count(count['skipped'], 'could not be run')}."
    )
    text = f"<p>Of {len(rows)} checks {esc(said)}</p>"
    if found["applied"]:
        done = "; ".join(f"{name}: {what}" for name, what in found["applied"].items())
        text += f'<p class="note">After repairs ({esc(done)}).</p>'
    open_ = [f for f in rows if f["status"] in ("fail", "warn")]
    rest = [f for f in rows if f not in open_]
    if open_:
        text += table(
            _HEAD, [_row(f) for f in open_], kind="checks", sort=False, label="Checks that failed or warned"
        )
    if rest:
        shown = table(
            _HEAD[:-1], [_row(f)[:-1] for f in rest], kind="checks", sort=False, label="Other checks"
        )
        name = f"Passed and not run ({len(rest)})"
        text += f"<details><summary>{name}</summary>{shown}</details>"
    return text


def _listed(head: Sequence[str], found: Sequence[Mapping[str, Any]], label: str) -> str:
    rows = [_row(f)[: len(head)] for f in found]
    return table(head, rows, kind="checks", sort=False, label=label)


def _count(n: int, what: str) -> str:
    return f"{n or 'none'} {what}"


def _row(f: Mapping[str, Any]) -> list[object]:
    status = f["status"]
    shown = SYMBOLS.get(status, status)
    return [
        f"{f['id']} {f['name']}",
        Cell(shown, float(_ORDER.get(status, len(_ORDER))), kind=f"is-{status}" if status in SYMBOLS else ""),
        _kept(f["detail"]),
        _kept(f["threshold"]),
        f["remedy"] if status in ("fail", "warn") else "",
    ]


def _kept(text: str) -> str:
    """Keep numbers and their percent signs on one line."""
    return re.sub(r"(?<=\d) %", f"{THIN}%", text)
