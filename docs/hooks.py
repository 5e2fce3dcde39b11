"""Hooks of the site's build: markers, figures, formulas and pages of reference; see ``docs/sitebuild``."""

from __future__ import annotations

import posixpath
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mkdocs.structure.files import File, Files
from sitebuild import commands, figures, formulas, reference, sources, tables
from sitebuild.markers import expand


def table(up: str) -> dict[str, Any]:
    """Return what each marker calls; ``up`` leads from a page to the root of the site."""
    return {
        "source": sources.source,
        "figure": partial(figures.figure, up=up),
        "recipes": tables.recipes,
        "attacks": tables.table_of,
        "shell": tables.shell,
        "checks": tables.checks,
        "cite": tables.cite,
        "cli": commands.cli,
        "reference": reference.index,
    }


def on_config(config: Any) -> Any:
    """Add the pages of reference to the navigation."""
    entries = [{page.module: page.path} for page in reference.pages()]
    for section in config.nav:
        if isinstance(section, dict) and "Reference" in section:
            kept = [entry for entry in section["Reference"] if "Python" not in entry]
            section["Reference"] = [*kept, {"Python": entries}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add figures and pages of reference."""
    for page in reference.pages():
        files.append(File.generated(config, page.path, content=page.text))
    for path, text in figures.files().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the markers of a page."""
    depth = page.file.dest_uri.count("/")
    up = posixpath.join(*[".."] * depth, "") if depth else ""
    return expand(markdown, table(up))


def on_page_content(html: str, **_: Any) -> str:
    """Convert formulas to MathML."""
    return formulas.mathml(html)
