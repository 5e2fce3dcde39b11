"""One self-contained page: sections, one style, one script, and a policy that forbids all else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import NamedTuple

from .._version import __version__
from . import interactive as charts
from .parts import json_block
from .words import esc

_SPEC = re.compile(r' data-spec="[^"]*"|<script type="application/json" id="spec-\w+">[^<]*</script>')


class Section(NamedTuple):
    """A part of a page: its id, the question it answers, and its HTML."""

    key: str
    name: str
    html: str


def page(heading: str, words: str, sections: Sequence[Section], footer: str, library: str = "") -> str:
    """Return a whole page.

    Parameters
    ----------
    heading, words
        The title, and what it is about; escaped here.
    sections
        Their HTML is taken as it is.
    footer
        ``{version}`` in it is the version of Holdfast.
    library
        The text of Plotly; without it no interactive chart is written.
    """
    body = "\n".join(
        f'<section id="{s.key}" aria-label="{esc(s.name)}"><h2>{esc(s.name)}</h2>\n{s.html}\n</section>'
        for s in sections
    )
    body = body if library else _SPEC.sub("", body)
    script, library = _script(_read("page.js")), _script(library)
    hashes = [script, *([library] if library else [])]
    scripts = json_block(dict(charts.CONFIG), "plot-config") if library else ""
    # kept as text until the first chart comes into view, so that the page opens fast
    scripts += f'<script type="text/plain" id="plotly">{library}</script>' if library else ""
    return Template(_read("template.html")).substitute(
        heading=esc(heading),
        words=esc(words),
        policy=" ".join(f"'sha256-{_hash(text)}'" for text in hashes),
        style=_read("page.css"),
        nav="".join(f'<li><a href="#{s.key}">{esc(s.name)}</a></li>' for s in sections),
        body=body,
        scripts=f"{scripts}<script>{script}</script>",
        footer=esc(footer.format(version=__version__)),
        version=esc(__version__),
    )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """Return a script with the line ends that a browser sees, so that its hash is that of these bytes."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
