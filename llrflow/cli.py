"""The command line. Every command imports what it needs when it is called, so that `--help` is instant."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from llrflow.commands.environment import xla_environment
from llrflow.commands.exit_status import exit_status

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
    "import-model": (
        "llrflow.commands.import_model",
        "import_model",
        "Make a run folder of weights from PyTorch or Haiku.",
    ),
    "export": ("llrflow.commands.export", "export", "Write a run's model for other tools."),
    "zoo": ("llrflow.commands.zoo", "zoo", "List, fetch and publish runs: a zoo in a folder or at a URL."),
    "plugins": ("llrflow.commands.plugins", "plugins", "Check plugins: components of your own."),
    "data": ("llrflow.commands.data", "data", "Import, prepare, list and look at datasets."),
    "types": ("llrflow.commands.inspect", "types", "List every component with its fields and defaults."),
    "schema": ("llrflow.commands.inspect", "schema", "Print the JSON Schema of a spec."),
    "completion": (
        "llrflow.commands.completion",
        "completion",
        "Print the script that makes a shell complete llrflow.",
    ),
    "init": ("llrflow.commands.inspect", "init", "Write a commented starter spec."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        xla_environment()
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
    with exit_status("--verbose" in given):
        with _sigterm_as_exit():
            code = cli.main(arguments, prog_name="llrflow", standalone_mode=False, obj=given)
        if isinstance(code, int):  # of click's own Exit
            sys.exit(code)


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
