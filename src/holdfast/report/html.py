"""Write the report: the answer first, then the evidence, then how to get it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..errors import MissingExtra, RunError
from . import (
    believe,
    certificates,
    certified_runs,
    clusters,
    compare,
    curve,
    ensembles,
    evidence,
    history,
    pareto,
    space,
    theatre,
    verdict,
)
from . import (
    interactive as charts,
)
from .facts import headlines, strength
from .load import RunFolder, load_runs
from .parts import missing
from .shell import Section, page
from .words import join

LIMIT = 7_700_000
"""Bytes of a page; what charts and tables leave of them is for examples."""
_LEAST = 500_000


def write_report(runs: Sequence[str | Path], out: str | Path, *, interactive: bool | None = None) -> Path:
    """Write one self-contained HTML file about one or more runs.

    Reads only the files of the run folders (``run.json``, ``log.jsonl``, ``records.jsonl``,
    ``exhibits/*.npz``, ``maps/*.npz``, ``evaluations/*/``, ``certify.json``, ``certificates/*.npz``), never
    models. The same folders give the same bytes, as long as the versions of Plotly, matplotlib and Pillow do
    not change. The page makes no request and can be read with scripts blocked; names and texts of the runs
    are escaped.

    Parameters
    ----------
    runs
        Run folders, in the order in which they shall appear.
    out
        The file to write; it appears at once. A folder gets a ``report.html``.
    interactive
        Whether charts answer to the pointer, which adds Plotly (5 MB) to the file. By default when Plotly is
        installed. Without it drawings stand in their place; the theatre and the sorting of tables stay.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RunError
        If a run folder is missing or empty, or was written by another schema.
    CorruptFile
        If a record or ``run.json`` cannot be read. Unreadable examples are named in the report instead.
    MissingExtra
        If ``interactive`` is true and Plotly is not installed.
    """
    if interactive and not charts.available():
        raise MissingExtra("plotly", "report", "an interactive report")
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    folders = load_runs(runs)
    library = charts.library() if interactive or (interactive is None and charts.available()) else ""
    try:
        files.write_text(out, render(folders, library))
    except OSError as error:
        raise RunError(f"{out}: the report cannot be written: {error.strerror}") from error
    return out


def render(runs: Sequence[RunFolder], library: str = "") -> str:
    """Return the report of loaded run folders as HTML.

    ``library`` is the text of Plotly; without it no interactive chart is written.
    """
    sections = _sections(runs, len(library))
    return page(
        "Holdfast report",
        join([run.label for run in runs]),
        sections,
        "Made by Holdfast {version} from the files of the run folders; no model was loaded.",
        library,
    )


def _sections(runs: Sequence[RunFolder], used: int = 0) -> list[Section]:
    """Return the sections in their order: of runs without attacks only those that have an answer.

    ``used`` bytes of the page are taken.
    """
    at, scored = strength(runs), strength(runs, scored=True)
    lines = headlines(runs, at)
    clustered = [run for run in runs if run.clustering and run.clustering.records]
    certified = _certified(runs)
    sections = [
        Section("safe", "Is my model safe?", verdict.safe(lines, at, scored)),
        Section("show", "Show me.", ""),
        Section("pushed", "How far can it be pushed?", curve.section(runs, at)),
        Section("weak", "Where is it weak?", evidence.weak(runs, at, scored)),
        *[Section("clusters", "Do pictures stay in their cluster?", clusters.section(clustered))
          for _ in clustered[:1]],
        *[Section("certified", "What is certified?", certified) for _ in [certified] if certified],
        Section("training", "What happened in training?", history.training(runs)),
        *[Section("members", "How different are the members?", ensembles.section(runs))
          for _ in [0] if any(ensembles.concerned(run) for run in runs)],
        Section("space", "What does the space look like?", _map_notes(runs) + space.section(runs, at)),
        Section("compare", "Compare.", compare.compare(lines, at, scored, pareto.chart(lines))),
        Section("believe", "Can I believe it?", believe.believe(lines)),
        Section("again", "How do I get this again?", history.cost(runs) + history.again(runs)),
    ]  # fmt: skip
    kept = _answered(runs, bool(clustered))
    sections = [s for s in sections if kept is None or s.key in kept]
    left = LIMIT - used - sum(len(s.html.encode("utf-8", "replace")) for s in sections)
    shown = theatre.section(runs, at, lines, min(theatre.BUDGET, max(_LEAST, left)))
    return [s._replace(html=shown) if s.key == "show" else s for s in sections]


def _map_notes(runs: Sequence[RunFolder]) -> str:
    named = [(f"{run.label}: " * (len(runs) > 1), note) for run in runs for note in run.map_notes]
    return "".join(missing(label + note) for label, note in named)


def _answered(runs: Sequence[RunFolder], clustered: bool) -> set[str] | None:
    """Return the sections that have something to say where runs hold no records of retrieval, else None."""
    if clustered and not any(run.records for run in runs):
        shown = any(run.exhibits or run.notes for run in runs)
        return {"clusters", "certified", "training", "members", "again", *(["show"] * shown)}
    alone = not clustered and all(
        run.certified is not None and not (run.steps or run.exhibits or run.verdicts or run.certified.of_run)
        for run in runs
    )
    return {"certified", "again"} if alone else None


def _certified(runs: Sequence[RunFolder]) -> str:
    found = [(run.label, run.certified) for run in runs if run.certified is not None]
    tables = [(label, c) for label, c in found if not c.of_run]
    trained = [(label, c) for label, c in found if c.of_run]
    named, records = len(found) > 1, {run.label: run.records for run in runs}
    html = certificates.section(tables, named=named) if tables else ""
    return html + (certified_runs.section(trained, named=named, records=records) if trained else "")
