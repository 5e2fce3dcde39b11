"""Write the report: the answer first, then the evidence, then how to get it again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from .. import files
from .._version import __version__
from ..errors import RunError
from . import certificates, certified_runs, clusters, ensembles, evidence, history, verdict
from .facts import headlines, strength
from .load import RunFolder, load_runs
from .words import esc, join


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one self-contained HTML file about one or more runs.

    Reads only the files of the run folders (``run.json``, ``log.jsonl``, ``records.jsonl``,
    ``exhibits/*.npz``, ``evaluations/*/``, ``certify.json``, ``certificates/*.npz``), never models. The same
    folders give the same bytes. The page makes no request and holds no script; names and texts of the runs
    are escaped.

    Parameters
    ----------
    runs
        Run folders, in the order in which they shall appear.
    out
        The file to write; it appears at once. A folder gets a ``report.html``.

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
    """
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    folders = load_runs(runs)
    try:
        files.write_text(out, render(folders))
    except OSError as error:
        raise RunError(f"{out}: the report cannot be written: {error.strerror}") from error
    return out


def render(runs: Sequence[RunFolder]) -> str:
    """Return the report of loaded run folders as HTML."""
    at, scored = strength(runs), strength(runs, scored=True)
    lines = headlines(runs, at)
    parts = [
        ("safe", "Is my model safe?", verdict.safe(lines, at, scored)),
        ("show", "Show me.", evidence.show(runs, at)),
        ("pushed", "How far can it be pushed?", evidence.pushed(lines, at)),
        ("weak", "Where is it weak?", evidence.weak(runs, at, scored)),
        ("training", "What happened in training?", history.training(runs)),
        ("compare", "Compare.", verdict.compare(runs, at, scored)),
        ("again", "How do I get this again?", history.again(runs)),
    ]
    clustered = [run for run in runs if run.clustering and run.clustering.records]
    if clustered:
        part = ("clusters", "Do pictures stay in their cluster?", clusters.section(clustered))
        if any(run.records for run in runs):
            parts.insert(4, part)
        else:  # nothing else was measured: what asks for other records has no answer
            shown = any(run.exhibits or run.notes for run in runs)
            parts = [part, *(p for p in parts if p[0] in ("training", "again") or (shown and p[0] == "show"))]
    if any(ensembles.concerned(run) for run in runs):
        after = [p[0] for p in parts].index("training") + 1
        parts.insert(after, ("members", "How different are the members?", ensembles.section(runs)))
    certified = [(run.label, run.certified) for run in runs if run.certified is not None]
    if certified:
        alone = (
            len(certified) == len(runs)
            and not clustered
            and not any(
                run.steps or run.exhibits or run.verdicts or (run.certified and run.certified.of_run)
                for run in runs
            )
        )
        tables = [(label, c) for label, c in certified if not c.of_run]
        trained = [(label, c) for label, c in certified if c.of_run]
        named = len(certified) > 1
        html = certificates.section(tables, named=named) if tables else ""
        html += certified_runs.section(trained, named=named) if trained else ""
        part = ("certified", "What is certified?", html)
        at_training = [p[0] for p in parts].index("training")
        parts = [part, parts[-1]] if alone else [*parts[:at_training], part, *parts[at_training:]]
    template = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=esc("Holdfast report: " + join([run.label for run in runs])),
        runs=esc(join([run.label for run in runs])),
        nav="".join(f'<a href="#{key}">{esc(name)}</a>' for key, name, _ in parts),
        body="\n".join(
            f'<section id="{key}"><h2>{esc(name)}</h2>\n{html}\n</section>' for key, name, html in parts
        ),
        version=esc(__version__),
    )
