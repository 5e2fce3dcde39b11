"""Tables that say what the library holds: recipes, attacks, checks, papers."""

from __future__ import annotations

import fnmatch
import html
from typing import Any

from .paths import ROOT

MANY = 5
"""A pattern with more matches than this becomes one row."""


def first_line(thing: Any) -> str:
    """Return the first sentence of a docstring."""
    function = getattr(thing, "func", thing)
    doc = function.__doc__ or ""
    return " ".join(doc.strip().split("\n\n")[0].split()).replace("|", "\\|").replace("``", "`")


def matching(patterns: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the recipes that each pattern names.

    Raises
    ------
    LookupError
        For a pattern that names none.
    """
    from holdfast.recipes import RECIPES

    found = {pattern: fnmatch.filter(RECIPES, pattern) for pattern in patterns}
    for pattern, hits in found.items():
        if not hits:
            raise LookupError(f"{pattern}: no recipe of that name")
    return found


def recipes(*patterns: str) -> str:
    """Return the recipes of a page with the commands that run the first (``{{recipes name ...}}``)."""
    from holdfast.recipes import RECIPES

    rows = ["| recipe | what it trains |", "|---|---|"]
    for pattern, hits in matching(patterns).items():
        if len(hits) > MANY:
            shown = pattern.replace("*", "…")
            rows.append(f"| `{shown}` ({len(hits)} recipes) | {first_line(RECIPES[hits[0]])} |")
        else:
            rows += [f"| `{name}` | {first_line(RECIPES[name])} |" for name in hits]
    name = next(iter(matching(patterns).values()))[0]
    commands = (
        f"holdfast train {name} --show   # all settings; trains nothing\n"
        f"holdfast train {name} --out runs/{name}\n"
        f"holdfast evaluate runs/{name} --suite ers"
    )
    return "\n".join(rows) + f"\n\n```sh\n{commands}\n```"


def shell(*words: str) -> str:
    """Return commands, separated by ``;``, as a block (``{{shell command ; command}}``)."""
    lines = " ".join(words).split(" ; ")
    return "```sh\n" + "\n".join(lines) + "\n```"


def table_of(*labels: str) -> str:
    """Return attacks by label with their values (``{{attacks CA+ ...}}``)."""
    from holdfast.attacks import ATTACKS, CLUSTER_ATTACKS

    known = {**ATTACKS, **CLUSTER_ATTACKS}
    rows = ["| label | what it does | value |", "|---|---|---|"]
    for label in labels:
        if label not in known:
            raise LookupError(f"{label}: no attack of that label")
        attack: Any = known[label]
        inner = getattr(attack, "attack", attack)
        rows.append(f"| `{label}` | {first_line(type(inner))} | `{attack}` |")
    return "\n".join(rows)


def checks() -> str:
    """Return the checks of the verdict (``{{checks}}``)."""
    from holdfast.evaluation.verdict.table import CHECKS
    from holdfast.evaluation.verdict.texts import TEXTS

    rows = ["| check | passes when | runs at | a failure says |", "|---|---|---|---|"]
    for name, check in CHECKS.items():
        text = TEXTS[name]
        rows.append(f"| {name} {text.name} | {text.threshold} | {check.level} | {check.group} |")
    return "\n".join(rows)


def _papers() -> list[dict[str, Any]]:
    import yaml  # comes with mkdocs

    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    papers: list[dict[str, Any]] = yaml.safe_load(text)["references"]
    return papers


def cite(*words: str) -> str:
    """Return a paper of ``CITATION.cff`` in words and as BibTeX (``{{cite words of its title}}``)."""
    wanted = " ".join(words).lower()
    hits = [paper for paper in _papers() if wanted in paper["title"].lower()]
    if len(hits) != 1:
        raise LookupError(f"{wanted!r}: {len(hits)} papers in CITATION.cff have this in their title")
    paper = hits[0]
    people = [f"{one.get('given-names', '')} {one['family-names']}".strip() for one in paper["authors"]]
    where = paper.get("collection-title") or paper.get("notes", "")
    key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}"
    kind, field = ("inproceedings", "booktitle") if "collection-title" in paper else ("misc", "note")
    bib = (
        f"@{kind}{{{key},\n  title = {{{paper['title']}}},\n  author = {{{' and '.join(people)}}},\n"
        f"  {field} = {{{where}}},\n  year = {{{paper['year']}}}\n}}"
    )
    indented = "\n".join("    " + line for line in f"```bibtex\n{bib}\n```".splitlines())
    who = people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"
    line = f"{who}, *{html.escape(paper['title'])}*, {where}, {paper['year']}."
    return f'??? quote "{line.replace("*", "")}"\n\n{indented}'
