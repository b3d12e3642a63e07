"""A page for each command, from click: usage, text, options, examples.

Small code instead of sphinx-click: docstrings are Markdown here, and the tests look at these pages without Sphinx.
"""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator

import click

from llrflow.cli import cli
from llrflow_docs.prose import escape, fence, markdown, table


def command_pages() -> dict[str, str]:
    """Pages of all commands, groups and their sub-commands too, by path below the reference."""
    pages, rows, root = {}, [], click.Context(cli, info_name="llrflow")
    for context in walk(root):
        name = context.command_path.removeprefix("llrflow ")
        path = name.replace(" ", "-")
        pages[f"commands/{path}.md"] = _page(context)
        rows.append((f"[`llrflow {name}`]({path}.md)", escape(context.command.get_short_help_str(200))))
    names = "\n".join(page.removeprefix("commands/").removesuffix(".md") for page in pages)
    parts = ["# Commands", _text(cli), "", table(("command", ""), rows), "## Options of every command", _options(root)]
    pages["commands/index.md"] = "\n\n".join([*parts, fence(f":hidden:\n\n{names}", "{toctree}")])
    return pages


def walk(context: click.Context) -> Iterator[click.Context]:
    """A context for every command below a group, in the group's order."""
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield inner
        if isinstance(command, click.Group):
            yield from walk(inner)


def _page(context: click.Context) -> str:
    usage = " ".join(context.command.collect_usage_pieces(context))
    parts = [
        f"# llrflow {context.command_path.removeprefix('llrflow ')}",
        fence(f"{context.command_path} {usage}", "text"),
        _text(context.command),
        "## Options",
        _options(context),
    ]
    if isinstance(context.command, click.Group):
        base = context.command_path.removeprefix("llrflow ").replace(" ", "-")
        names = context.command.list_commands(context)
        rows = [
            (f"[`{name}`]({base}-{name}.md)", escape(inner.get_short_help_str(200)))
            for name in names
            if (inner := context.command.get_command(context, name))
        ]
        parts[3:] = ["## Sub-commands", table(("", ""), rows)]
    return "\n\n".join(parts)


def _text(command: click.Command) -> str:
    """The help text: paragraphs after click's mark \\b are as they stand, those named Examples a section."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        marked, body = paragraph.startswith("\b"), paragraph.removeprefix("\b").strip("\n")
        heading, _, rest = body.partition("\n")
        if marked and re.fullmatch(r"Examples?:", heading.strip()):
            parts += [f"## {heading.strip().removesuffix(':')}", *_examples(rest.splitlines())]
        else:
            parts.append(fence(textwrap.dedent(body)) if marked else markdown(body))
    return "\n\n".join(parts)


def _examples(lines: list[str]) -> Iterator[str]:
    """Indented lines are commands; those after a line of prose are what it speaks of."""
    language = "console"
    for indented, group in itertools.groupby(lines, key=lambda line: line.startswith(" ")):
        text = textwrap.dedent("\n".join(group))
        yield fence(text, language) if indented else escape(text)
        language = "yaml"


def _options(context: click.Context) -> str:
    records = [
        record
        for parameter in context.command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    return table(("option", ""), ((f"`{name}`", escape(text)) for name, text in records if text))
