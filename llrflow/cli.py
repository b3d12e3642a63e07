"""The command line. Every command imports what it needs when it is called, so that `--help` is instant."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llrflow.errors import InputError, LlrflowError

COMMANDS = {
    "run": ("llrflow.commands.run", "run", "Train and evaluate a spec; continue an unfinished run."),
    "validate": ("llrflow.commands.inspect", "validate", "Check a spec, its dataset and its devices; make no run."),
    "sweep": ("llrflow.commands.sweep", "sweep", "Run a spec with many values of its parameters, on Ray."),
    "plan": ("llrflow.commands.inspect", "plan", "Show what a spec costs before running it."),
    "evaluate": ("llrflow.commands.run", "evaluate", "Evaluate a checkpoint of a run."),
    "runs": ("llrflow.commands.runs", "runs", "List the runs in a folder, with their results."),
    "report": ("llrflow.commands.report", "report", "Write an HTML page about runs or a sweep."),
    "plugins": ("llrflow.commands.plugins", "plugins", "Check plugins: components of your own."),
    "data": ("llrflow.data.commands", "data", "Import, prepare, list and look at datasets."),
    "types": ("llrflow.commands.inspect", "types", "List every component with its fields and defaults."),
    "schema": ("llrflow.commands.inspect", "schema", "Print the JSON Schema of a spec."),
    "init": ("llrflow.commands.inspect", "init", "Write a commented starter spec."),
}


PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
"""How long CPU devices wait for each other before XLA ends the process: by itself 40 s, less than a laptop sleeps."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="llrflow")
def cli(verbose: bool) -> None:
    """One YAML spec in; a robust classifier, an honest attack report and a resumable run folder out.

    \b
    Examples:
      llrflow init my.yaml
      llrflow run my.yaml --set train.epochs=10
      llrflow plan my.yaml --measure
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a wrong input is one line and exit code 2, anything else that fails is 1."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [argument for argument in given if argument != "--verbose"]  # it may stand anywhere
    flags = os.environ.get("XLA_FLAGS", "")
    if PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}=86400".strip()
    try:
        cli.main(arguments, prog_name="llrflow", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except LlrflowError as error:
        if "--verbose" in given:
            traceback.print_exception(error)
        label = "error: " if isinstance(error, InputError) or error.exit_code == 1 else ""
        click.echo(f"{label}{' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)


def overrides(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Click callback of `--set path=value`: values are YAML scalars or flow collections."""
    from llrflow.errors import SpecError
    from llrflow.spec.source import scalar

    found: dict[str, Any] = {}
    for text in values:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise SpecError("--set", f"got {text!r}", "write path=value, for example --set train.epochs=10")
        found[path] = scalar(value)
    return found


def spec_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """SPEC and --set, as every command on a spec takes them."""
    command = click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="PATH=VALUE",
        callback=overrides,
        help="Change one value of the spec; repeatable.",
    )(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


RAY = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Ray's own noise off, and its workers in the directory of the command."""


def ray_environment() -> None:
    """Set what Ray reads from the environment, where the user has not; before Ray is imported."""
    for name, value in RAY.items():
        os.environ.setdefault(name, value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(value: Any) -> None:
    """Machine-readable output of a command."""
    click.echo(json.dumps(value, indent=2))
