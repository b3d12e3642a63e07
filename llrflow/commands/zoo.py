"""`llrflow zoo`: runs that somebody published, and publishing one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.base.memory_size import amount
from llrflow.commands.options import json_option, run_argument
from llrflow.commands.printing import console, echo, print_json

_source = click.option(
    "--from", "source", required=True, metavar="URL|DIR", help="Where the zoo is: a folder, or an http(s) address."
)


@click.group()
def zoo() -> None:
    """List and fetch runs of a zoo, or publish finished runs in one.

    \b
    Examples:
      llrflow zoo list --from https://example.org/zoo
      llrflow zoo get llr-digits --from zoo --out runs/llr-digits
    """


@zoo.command("list")
@_source
@json_option
def list_runs(source: str, as_json: bool) -> None:
    """List the runs of a zoo: what they were trained on, and the accuracies that their certificates have.

    \b
    Examples:
      llrflow zoo list --from zoo
      llrflow zoo list --from https://example.org/zoo --json
    """
    from rich.table import Table

    from llrflow.runs.zoo import read_index

    index = read_index(source)
    if as_json:
        print_json(index.model_dump(mode="json")["runs"])
        return
    table = Table("run", "dataset", "network", "threat", "nominal", "worst case", "size", "plugins")
    for name, run in index.runs.items():
        shares = ("" if share is None else f"{share:.1%}" for share in (run.nominal, run.worst_case))
        cells = (name, run.dataset, run.network, run.threat, *shares, amount(run.bytes), ", ".join(run.plugins))
        table.add_row(*map(_plain, cells))
    console().print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


@zoo.command("get")
@click.argument("name")
@_source
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to be made; default runs/NAME.")
@json_option
def get_run(name: str, source: str, out: Path | None, as_json: bool) -> None:
    """Fetch a run of a zoo into a new run folder; each file is as the zoo's index says, or nothing appears.

    Nothing of it is run. It is somebody else's run: commands that would import a plugin of its spec ask you first.

    \b
    Examples:
      llrflow zoo get llr-digits --from zoo
      llrflow zoo get llr-digits --from https://example.org/zoo --out runs/theirs
    """
    from llrflow.runs.zoo import get

    folder = out or Path("runs") / name
    run = get(source, name, folder)
    if as_json:
        print_json({"run": str(folder), **run.model_dump(mode="json")})
        return
    echo(f"wrote {folder}: step {run.step}, {run.network} on {run.dataset}, {amount(run.bytes)}")
    if run.plugins:
        echo(f"its spec names plugins, which are not part of it: {', '.join(run.plugins)}")


@zoo.command("add")
@run_argument("run_folder", metavar="RUN")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The zoo's folder.")
@click.option("--name", help="What to call it there; default its spec's name.")
@json_option
def add_run(run_folder: Path, folder: Path, name: str | None, as_json: bool) -> None:
    """Publish a finished run in a zoo's folder: its spec, record, metrics, evaluations and one checkpoint.

    The checkpoint is the one that `evaluate` takes. Serve the folder as it is, by any web server.

    \b
    Examples:
      llrflow zoo add runs/quickstart-1a2b3c4d5e6f --to zoo
      llrflow zoo add runs/mine --to zoo --name llr-digits --json
    """
    from llrflow.runs.zoo import add, read_index

    name = add(run_folder, folder, name)
    if as_json:
        print_json({"name": name, **read_index(str(folder)).runs[name].model_dump(mode="json")})
        return
    echo(f"added {name} to {folder}")
