"""Formulas as MathML, made while the site is built: no script, no font, no network."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET

from latex2mathml.converter import convert

FOUND = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


SPACE = "http://www.w3.org/1998/Math/MathML"
LIMITS = {"max", "min", "argmax", "∑", "∏"}
"""Operators that carry their limits below and above where a formula stands on its own line."""
UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}


def formula(text: str, display: bool) -> str:
    """Return MathML of a formula in LaTeX."""
    ET.register_namespace("", SPACE)
    root = ET.fromstring(convert(text, display="block" if display else "inline"))
    for node in root.iter():
        tag = node.tag.removeprefix(f"{{{SPACE}}}")
        if display and tag in UNDER and len(node) and node[0].text in LIMITS:
            node.tag = f"{{{SPACE}}}{UNDER[tag]}"
        if node.text in ("‖", "∥", "|"):
            node.set("stretchy", "false")
        if node.text in ("′", "″"):
            node.tag = f"{{{SPACE}}}mo"
    return ET.tostring(root, encoding="unicode")


def mathml(content: str) -> str:
    """Return the HTML of a page with every formula that ``pymdownx.arithmatex`` marked converted."""

    def converted(found: re.Match[str]) -> str:
        tag, kind, text = found[1], found[2], html.unescape(found[3]).strip()
        made = formula(text, display=kind == "[")
        return f'<{tag} class="formula">{made}</{tag}>'

    return FOUND.sub(converted, content)
