"""Arguments and options that commands share, and how they print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


def overrides(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Click callback of `--set path=value`: values are YAML scalars or flow collections."""
    from llrflow.base.errors import SpecError
    from llrflow.spec.source import scalar

    found: dict[str, Any] = {}
    for text in values:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise SpecError("--set", f"got {text!r}", "write path=value, for example --set train.epochs=10")
        found[path] = scalar(value)
    return found


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--set, as every command that takes a spec has it."""
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="PATH=VALUE",
        callback=overrides,
        help="Change one value of the spec; repeatable.",
    )(command)


def spec_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """SPEC, --on and --set, as every command on a spec takes them."""
    command = set_option(command)
    command = click.option(
        "--on",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Put SPEC's method on the dataset, model, threat, training and evaluation of this spec.",
    )(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


def checkpoint_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--checkpoint, as every command on one of a run's checkpoints takes it."""

    def parsed(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        if value in (None, "best", "last"):
            return value
        if not value.isdigit():
            raise click.BadParameter(f"{value!r} is neither best, last nor a step")
        return int(value)

    return click.option(
        "--checkpoint",
        metavar="best|last|STEP",
        callback=parsed,
        help="Which one; default the best if `checkpoint.best` kept one, else the newest intact.",
    )(command)


trust_option = click.option(
    "--trust-plugins",
    is_flag=True,
    help="Run the plugins that RUN names, also those that are not installed and that you have not trained with here.",
)


def run_argument(name: str, metavar: str) -> Callable[..., Any]:
    """A run folder, which shells complete."""
    return click.argument(name, metavar=metavar, type=click.Path(path_type=Path), shell_complete=_run_folders)


def _run_folders(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run folders that begin with what is typed, or are right below such a folder; else any folder."""
    parent, _, start = incomplete.rpartition("/")
    below = (f"{start}*/run.json", f"{start}*/*/run.json")
    records = [
        record for pattern in below for record in Path(parent or ("/" if incomplete[:1] == "/" else ".")).glob(pattern)
    ]
    return [CompletionItem(str(record.parent)) for record in sorted(records)] or [
        CompletionItem(incomplete, type="dir")
    ]


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
