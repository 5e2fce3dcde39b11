"""The command line as a page, from the same objects that parse it."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin


def _cell(text: str) -> str:
    return (
        " ".join(text.split())
        .replace("[", "\\[")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("_", "\\_")
    )


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or str(value) == "" or value == ():
        return ""
    return f"`{value}`" if not isinstance(value, bool) else "on"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _kind(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(annotation))
    inner = (get_args(annotation) or (annotation,))[0]
    return {"str": "text", "int": "integer", "float": "number", "Path": "path"}.get(
        getattr(inner, "__name__", ""), ""
    )


def _shown(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _rows(parameters: list[Any]) -> str:
    rows = []
    for one in parameters:
        name = ", ".join([*one.opts, *one.secondary_opts]) if _is_option(one) else _shown(one)
        kind = f" *{_kind(one)}*" if _is_option(one) and _kind(one) else ""
        default = f" Default {_default(one)}." if _default(one) else ""
        needed = " **Needed.**" if one.required else ""
        text = _cell(getattr(one, "help", None) or "")
        rows.append(f"- `{name}`{kind}{': ' if text else ''}{text}{default}{needed}")
    return "\n".join(rows)


def cli() -> str:
    """Return a section for every command (``{{cli}}``)."""
    from typer.main import get_command

    from holdfast.cli.main import app

    group: Any = get_command(app)
    parts = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        arguments = [p for p in command.params if not _is_option(p)]
        options = [p for p in command.params if _is_option(p) and not p.hidden]
        usage = [_shown(p) if p.required else f"[{_shown(p)}]" for p in arguments]
        line = " ".join(["holdfast", name, *usage, *(["[options]"] if options else [])])
        text = "\n\n".join(_cell(part) for part in (command.help or "").replace("\b", "").split("\n\n"))
        parts.append(f"## holdfast {name}\n\n{text}\n\n```text\n{line}\n```")
        parts += [_rows(part) for part in (arguments, options) if part]
    return "\n\n".join(parts)
