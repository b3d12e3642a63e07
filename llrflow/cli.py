"""The command line. Every command imports what it needs when it is called, so that `--help` is instant."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from llrflow.errors import InputError, LlrflowError

COMMANDS = {
    "run": ("llrflow.commands.run", "run", "Train and evaluate a spec; continue an unfinished run."),
    "validate": ("llrflow.commands.inspect", "validate", "Check a spec, its dataset and its devices; make no run."),
    "sweep": ("llrflow.commands.sweep", "sweep", "Run a spec with many values of its parameters, on Ray."),
    "plan": ("llrflow.commands.inspect", "plan", "Show what a spec costs before running it."),
    "evaluate": ("llrflow.commands.run", "evaluate", "Evaluate a checkpoint of a run."),
    "compare": ("llrflow.commands.compare", "compare", "Compare two runs: spec, data, versions and results."),
    "runs": ("llrflow.commands.runs", "runs", "List the runs in a folder, with their results."),
    "report": ("llrflow.commands.report", "report", "Write an HTML page about runs or a sweep."),
    "tail": ("llrflow.commands.tail", "tail", "Print a run's latest metrics and follow it."),
    "export": ("llrflow.commands.export", "export", "Write a run's model as StableHLO and weights."),
    "plugins": ("llrflow.commands.plugins", "plugins", "Check plugins: components of your own."),
    "data": ("llrflow.data.commands", "data", "Import, prepare, list and look at datasets."),
    "types": ("llrflow.commands.inspect", "types", "List every component with its fields and defaults."),
    "schema": ("llrflow.commands.inspect", "schema", "Print the JSON Schema of a spec."),
    "completion": (
        "llrflow.commands.completion",
        "completion",
        "Print the script that makes a shell complete llrflow.",
    ),
    "init": ("llrflow.commands.inspect", "init", "Write a commented starter spec."),
}


PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
"""How long CPU devices wait for each other before XLA ends the process: by itself 40 s, less than a laptop sleeps."""


PATHS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
"""What the system says of a path that should have been chosen otherwise; a full or broken disk is no wrong input."""


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

    \b
    Exit status:
      0    done
      1    failed
      2    wrong input: one line says where, what came and what to do
      3    done, with signs of gradient masking (evaluate)
      130  stopped by Ctrl-C; run, evaluate and sweep save first
      143  stopped by SIGTERM; likewise
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end with its exit status, which `llrflow --help` explains."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [argument for argument in given if argument != "--verbose"]  # it may stand anywhere
    flags = os.environ.get("XLA_FLAGS", "")
    if PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}=86400".strip()
    with exit_status("--verbose" in given):
        with _sigterm_as_exit():
            code = cli.main(arguments, prog_name="llrflow", standalone_mode=False, obj=given)
        if isinstance(code, int):  # of click's own Exit
            sys.exit(code)


@contextmanager
def exit_status(verbose: bool) -> Iterator[None]:
    """End with the exit status of whatever the block raises on purpose, and a line about it."""
    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):  # click makes the one of the other
        click.echo("stopped", err=True)
        sys.exit(130)
    except LlrflowError as error:
        if verbose:
            traceback.print_exception(error)
        label = "error: " if isinstance(error, InputError) or error.exit_code == 1 else ""
        click.echo(f"{label}{' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None or error.errno not in PATHS:
            raise
        if verbose:
            traceback.print_exception(error)
        click.echo(f"error: {os.fsdecode(error.filename)}: {error.strerror}", err=True)
        sys.exit(2)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM leaves the block as SystemExit(143), so that half-written files are removed; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def console() -> Any:
    """Where tables are printed: as wide as the terminal, or 100 columns in a file."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=100)


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
