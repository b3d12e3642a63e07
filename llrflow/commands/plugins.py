"""`llrflow plugins`: what a plugin's author needs before a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import json_option, overrides
from llrflow.commands.printing import echo, print_json


@click.group()
def plugins() -> None:
    """Check plugins: components of your own.

    \b
    Example:
      llrflow plugins check my_term.py
    """


@plugins.command()
@click.argument("plugin", metavar="FILE")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="TYPE.FIELD=VALUE",
    callback=overrides,
    help="A field of one of its components, where it has no default; repeatable.",
)
@json_option
def check(plugin: str, changes: dict[str, Any], as_json: bool) -> None:
    """Import FILE (or a module, or an installed entry point) and try its components on a toy batch.

    Terms: one finite number per example, a gradient that reaches the parameters, examples that do not see their
    batch-mates, and the cost in forward passes (F). Other kinds: what each must do. Exit code 1 if anything fails.

    \b
    Examples:
      llrflow plugins check my_term.py
      llrflow plugins check my_term.py --set my_term.power=3
    """
    from llrflow.base.errors import SpecError
    from llrflow.base.validation import suggest
    from llrflow.commands.check_plugins import check as check_component
    from llrflow.components.plugins import load_plugin, registered_by
    from llrflow.components.registry import make

    found = registered_by(load_plugin(str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin, plugin))
    for path in changes:
        if path.partition(".")[0] not in (known := [name for _, name in found]):
            raise SpecError(
                f"--set {path}", "names no component of this plugin", suggest(path.partition(".")[0], known)
            )
    results: dict[str, list[dict[str, Any]]] = {}
    for kind, name in found:
        fields = {path.partition(".")[2]: value for path, value in changes.items() if path.startswith(f"{name}.")}
        component = make(kind, {"type": name, **fields})
        results[f"{kind} {name}"] = [finding._asdict() for finding in check_component(kind, component)]
    failed = sum(not finding["ok"] for findings in results.values() for finding in findings)
    if as_json:
        print_json({"plugin": plugin, "failed": failed, "components": results})
    else:
        for label, findings in results.items():
            echo(label, bold=True)
            for finding in findings:
                mark, colour = ("ok    ", "green") if finding["ok"] else ("FAILED", "red")
                echo(f"  {mark}", nl=False, fg=colour)
                echo(f"  {finding['what']}" + (f": {finding['detail']}" if finding["detail"] else ""))
        echo(f"{len(results)} component(s), {failed} check(s) failed")
    sys.exit(1 if failed else 0)
