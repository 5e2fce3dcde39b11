"""A model card as Hugging Face reads it, written from the records of a run and from nothing else."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import flatten, to_plain
from ..evaluation.verdict.finding import Verdict
from ..files import read_json, replacing, write_text
from ..results import record
from ..results.record import Record
from ..runs import RunFolder, open_run

_MARKS = frozenset("\\`*_{}[]<>#|~&$")
"""What gives Markdown, or HTML in it, a meaning inside a line."""
_SHARES = ("recall@", "map", "nmi", "rank", "retain@", "precision@", "flip", "accuracy", "certified@")


def write(
    run: str | Path | RunFolder,
    out: str | Path | None = None,
    *,
    exported: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Path:
    """Write ``README.md`` and ``encoder.safetensors`` for a model repository.

    Parameters
    ----------
    run
        A finished run folder. Without records the card says that nothing was measured.
    out
        Folder of the card; by default the run folder itself.
    exported, parity
        What :meth:`Exported.to_plain <holdfast.export.onnx.Exported.to_plain>` and
        :meth:`Parity.to_plain <holdfast.export.parity.Parity.to_plain>` returned, to be told as well.
    licence
        Identifier of the weights' licence. Nothing in a run folder tells it, so that by default a line asks
        for it.

    Returns
    -------
    Path
        The card.

    Notes
    -----
    Every number stands in ``run.json``, ``records.jsonl`` or the two arguments, and text out of them is
    escaped. The last record of each measurement counts.
    """
    opened = run if isinstance(run, RunFolder) else open_run(run)
    folder = opened.path if out is None else Path(out)
    weights = opened.path / "encoder.safetensors"
    opened.encoder()  # refuses a run that is not finished, and damaged weights
    if folder.resolve() != opened.path.resolve():
        with replacing(folder / weights.name) as temporary:
            temporary.write_bytes(weights.read_bytes())
    path = folder / "README.md"
    write_text(path, card(opened, exported=exported, parity=parity, licence=licence))
    return path


def card(
    opened: RunFolder,
    *,
    exported: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> str:
    """Return the text of the card; see :func:`write`."""
    file = opened.path / "records.jsonl"
    records = _told(record.latest(record.read(file))) if file.is_file() else []
    parts = [
        _front(opened, records, licence),
        f"# {text(opened.path.name)}",
        *_what(opened),
        *_recipe(opened),
        *_figures(opened, records),
        *_exports(exported, parity),
        *_limits(records),
        *_use(opened, exported),
        "## Licence",
        f"Weights: {text(licence)}."
        if licence
        else "Not stated: the run does not record the licence of its images or weights. Fill in `license` "
        "above before this folder is published.",
        "## Citation",
        _citation(opened),
    ]
    return "\n\n".join(parts) + "\n"


def _told(records: Sequence[Record]) -> list[Record]:
    """Keep the last of those records that would read alike."""
    names = ("suite", "attack", "state", "norm", "eps", "metric", "n")
    kept: dict[tuple[Any, ...], Record] = {}
    for r in records:
        fields: dict[str, Any] = dict(r)
        kept[tuple(fields[name] for name in names)] = r
    return list(kept.values())


def text(value: object) -> str:
    r"""Return text that means itself in Markdown, on one line.

    Examples
    --------
    >>> text("<b>|a_b|")
    '\\<b\\>\\|a\\_b\\|'
    """
    plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(value))
    return "".join(f"\\{c}" if c in _MARKS else c for c in plain)


def _code(value: str) -> str:
    """Return text as a code span, which nothing in it can end."""
    return (
        f"`{''.join('�' if unicodedata.category(c) in ('Cc', 'Cf', 'Cs') or c == '`' else c for c in value)}`"
    )


def _front(opened: RunFolder, records: Sequence[Record], licence: str | None) -> str:
    """Return the YAML head; scalars are written as JSON, which is YAML."""
    run: Any = opened.run
    lines = [
        "---",
        f"license: {json.dumps(licence or 'unknown')}",
        "library_name: holdfast",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in ("metric-learning", "adversarial-robustness", run.encoder.name)),
    ]
    told = list(_first_places(records))
    if told:
        name = json.dumps(opened.path.name)
        data = json.dumps(str(run.data.name))
        lines += [
            "model-index:", f"- name: {name}", "  results:", "  - task:", "      type: image-retrieval",
            "    dataset:", f"      name: {data}", f"      type: {data}", "    metrics:",
        ]  # fmt: skip
        for label, r in told:
            kind = "recall_at_1" if r["state"] == "clean" else "recall_at_1_attacked"
            lines += [
                f"    - type: {kind}",
                f"      name: {json.dumps(label)}",
                f"      value: {r['value']!r}",
            ]
    return "\n".join([*lines, "---"])


def _first_places(records: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Yield clean Recall@1 of most queries, and every attacked one with what attacked."""
    clean = [r for r in records if r["attack"] == "none" and r["metric"] == "recall@1"]
    if clean:
        yield "clean", max(clean, key=lambda r: r["n"])
    for r in records:
        if r["metric"] == "recall@1" and r["state"] == "attacked":
            yield f"{r['attack']}, {r['norm']} {r['eps']:g}, suite {r['suite']}", r


def _what(opened: RunFolder) -> list[str]:
    run: Any = opened.run
    encoder = opened.encoder()
    c, h, w = encoder.shape
    count = sum(t.numel() for t in encoder.parameters())
    unit = "of length 1" if encoder.normalize else "not normalised"
    return [
        f"An image encoder for retrieval: {c} x {h} x {w} pixels in [0, 1] in, {encoder.embedding_dim} "
        f"numbers out ({unit}), compared by {text(type(run.distance).__name__)} distance. "
        f"Architecture {text(run.encoder.name)}, {count} parameters. Trained with Holdfast "
        f"{text(opened.meta.get('version', 'unknown'))}, recipe {text(run.name)}.",
        "## Data",
        f"Data set {text(run.data.name)}"
        + (f", protocol {text(run.data.protocol)}" if hasattr(run.data, "protocol") else "")
        + ". "
        + " ".join(
            f"SHA-256 of the {text(side)} images: {_code(str(digest)[:16])}."
            for side, digest in dict(opened.meta.get("data_fingerprint", {})).items()
        ),
    ]


def _recipe(opened: RunFolder) -> list[str]:
    settings = flatten(to_plain(opened.run))
    rows = [f"| {text(key)} | {text(json.dumps(value))} |" for key, value in settings.items()]
    return [
        "## Training",
        f"Recipe {text(opened.run.name)}, created {text(opened.meta.get('created', 'unknown'))}. Command: "
        f"{_code(str(opened.meta.get('command', 'unknown')))}.",
        "\n".join(
            ["<details><summary>All settings</summary>", "", "| setting | value |", "|---|---|", *rows]
        ) + "\n\n</details>",
    ]  # fmt: skip


def _figures(opened: RunFolder, records: Sequence[Record]) -> list[str]:
    if not records:
        return ["## Results", "Not evaluated: there are no records."]
    parts = ["## Results", "Values with their 95 % intervals over queries. Shares are fractions of 1."]
    clean = [r for r in records if r["attack"] == "none" and r["suite"] != "certified"]
    if clean:
        parts += ["### Clean", _table(clean, ("suite", "metric", "value", "interval", "queries"))]
    attacked = [
        r for r in records
        if r["state"] == "attacked" and r["attack"] != "none" and r["suite"] != "certified"
        and " of " not in r["metric"]
    ]  # fmt: skip
    if attacked:
        columns = (
            "suite", "attack", "norm", "eps", "metric", "value", "interval", "queries", "robust is", "verdict"
        )  # fmt: skip
        parts += [
            "### Under attack",
            "The attacker knows the model. `verdict` is on the evaluation itself, not on the model: only "
            "TRUSTWORTHY figures can be taken as they are, OVERESTIMATED ones are upper bounds.",
            _table(attacked, columns),
        ]
    failed = list(_failed(opened, records))
    if failed:
        parts.append("Checks of the evaluation that failed:\n\n" + "\n".join(failed))
    certified = [r for r in records if r["suite"] == "certified"]
    if certified:
        parts += [
            "### Certified",
            "Shares of queries that are right and certified to stay so under every change shorter than the "
            "radius (`certified@RADIUS`, l2 norm of pixels), and the median radius. By smoothing and votes a "
            "radius holds with high probability and not for certain.",
            _table(certified, ("attack", "metric", "value", "interval", "queries")),
        ]
    return parts


def _table(records: Sequence[Record], columns: Sequence[str]) -> str:
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(_cell(r, column) for column in columns) + " |" for r in records]
    return "\n".join(rows)


def _cell(r: Record, column: str) -> str:
    if column == "value":
        return _number(r, r["value"])
    if column == "interval":
        return "" if r["ci"] is None else f"{_number(r, r['ci'][0])} to {_number(r, r['ci'][1])}"
    if column == "queries":
        return str(r["n"])
    if column == "robust is":
        return "high" if r["higher_is_robust"] else "low"
    fields: dict[str, Any] = dict(r)
    value = fields[column]
    return f"{value:g}" if isinstance(value, float) else text(value)


def _number(r: Record, value: float) -> str:
    if r["metric"].startswith(_SHARES):
        return f"{value:.3f}"
    return f"{value:.1f}" if r["attack"] == "all" else f"{value:.4g}"


def _failed(opened: RunFolder, records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each failed check, with its remedy where the folder still has the verdict."""
    seen = set()
    for r in sorted(records, key=lambda r: r["eps"] == 0):  # attacked ones first: they know the radius
        path = opened.path / "evaluations" / r["fingerprint"] / "verdict.json"
        if not r["failed"] or r["fingerprint"] in seen or r["attack"] == "REPAIRED":
            continue
        seen.add(r["fingerprint"])
        where = f"suite {text(r['suite'])}" + (f", {r['norm']} {r['eps']:g}" if r["eps"] else "")
        verdict = Verdict.from_plain(read_json(path)) if path.is_file() else None
        for check in r["failed"]:
            try:
                finding = None if verdict is None else verdict[check]
            except KeyError:
                finding = None
            words = "" if finding is None else f": {text(finding.name)}. {text(finding.detail)}"
            yield f"- {text(check)} ({where}){words}"


def _exports(exported: Mapping[str, Any] | None, parity: Mapping[str, Any] | None) -> list[str]:
    if exported is None:
        return []
    worst = max(exported["difference"].values())
    sizes = ", ".join(exported["difference"])
    parts = [
        "## ONNX",
        f"{_code(exported['onnx'])} (opset {exported['opset']}) holds standardisation, encoder and "
        "embedding in one graph: `images` (n, c, h, w) in [0, 1] to `embeddings`. onnxruntime differs from "
        f"PyTorch by at most {worst:.2g} in an embedding (batches of {sizes}).",
    ]
    if exported.get("int8"):
        parts.append(f"{_code(exported['int8'])}: quantised to 8 bits, {text(exported['quantised'])}.")
    if parity is not None:
        rows = [
            f"| {text(name)} | {row['float']['value']:.3f} | {row['int8']['value']:.3f} "
            f"| {text(row['words'])} |"
            for name, row in parity["rows"].items()
        ]
        head = ["| Recall@1 | float | int8 | difference |", "|---|---|---|---|"]
        parts += [
            f"Robustness after quantisation ({parity['queries']} queries, {text(parity['norm'])} "
            f"{parity['eps']:g}): {text(parity['verdict'])}",
            "\n".join([*head, *rows]),
        ]
    return parts


def _limits(records: Sequence[Record]) -> list[str]:
    lines = [
        "- Figures hold for the data set, the attacks and the radii named above. Other images, larger "
        "changes and other kinds of changes (rotation, patches, edits of the gallery) were not measured "
        "unless they are listed.",
        "- Intervals are over queries, not over training seeds.",
    ]
    attacked = [r for r in records if r["state"] == "attacked" and r["suite"] != "certified"]
    if not attacked:
        lines.append("- No attack was measured: nothing is known about robustness.")
    elif not any(r["verdict"] == "TRUSTWORTHY" for r in attacked):
        lines.append("- No attacked figure has the verdict TRUSTWORTHY: the model may be weaker.")
    if not any(r["suite"] == "certified" for r in records):
        lines.append("- Nothing is certified.")
    return ["## Limits", "\n".join(lines)]


def _use(opened: RunFolder, exported: Mapping[str, Any] | None) -> list[str]:
    code = [
        "from holdfast.encoders import load", "", 'encoder = load("encoder.safetensors").eval()',
        "embeddings = encoder(images)  # (n, c, h, w) in [0, 1]",
    ]  # fmt: skip
    if exported is not None:
        code += [
            "", "# or without PyTorch's weights:", "from holdfast.export import OnnxEncoder", "",
            'embeddings = OnnxEncoder("encoder.onnx")(images)',
        ]  # fmt: skip
    return [
        "## Use",
        "```python\n" + "\n".join(code) + "\n```",
        f"SHA-256 of `encoder.safetensors`: {_code(opened.weights())}.",
    ]


def _citation(opened: RunFolder) -> str:
    year = str(opened.meta.get("created", ""))[:4]
    lines = [
        "@software{holdfast,", "  title = {Holdfast: adversarially robust metric learning},",
        "  author = {{The Holdfast developers}},",
        *([f"  year = {{{year}}},"] if year.isdigit() else []), "}",
    ]  # fmt: skip
    return "```bibtex\n" + "\n".join(lines) + "\n```\n\nAnd the papers of the methods used."
