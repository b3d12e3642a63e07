"""How commands print: what others have written shows on a terminal, and does nothing to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from llrflow.base.harmless import printable


def echo(message: str = "", err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print a line (or several), on a terminal in a style of `click.style`."""
    click.secho(printable(message), err=err, nl=nl, **style)


def print_json(value: Any) -> None:
    """Machine-readable output of a command; JSON writes control characters as escapes of its own."""
    echo(json.dumps(value, indent=2))


def console(width: int = 100) -> Any:
    """Where tables are printed: as wide as the terminal, or `width` columns in a file."""
    from rich.console import Console

    found = Console()
    found = found if found.is_terminal else Console(width=width)
    found.push_render_hook(_harmless())
    return found


def _harmless() -> Any:
    """A hook of rich that makes all printed text `printable`; made here, since rich takes long to import."""
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
    from rich.segment import Segment

    class Harmless:
        def __init__(self, shown: ConsoleRenderable) -> None:
            self._shown = shown

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
            for segment in console.render(self._shown, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [Harmless(shown) for shown in renderables]

    return Hook()
