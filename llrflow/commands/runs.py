"""`llrflow runs`: what is in a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.cli import json_option, print_json


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"))
@click.option("--markdown", is_flag=True, help="Print a Markdown table of the finished runs.")
@json_option
def runs(directory: Path, markdown: bool, as_json: bool) -> None:
    """List the runs in DIR (default runs): state, progress, nominal and robust accuracy, seconds.

    \b
    Examples:
      llrflow runs
      llrflow runs runs/methods --markdown
    """
    from llrflow.errors import CheckpointError
    from llrflow.runs.records import RunFolder

    folders = [RunFolder(path.parent) for path in sorted(directory.glob("*/run.json"))]
    if not folders:
        raise CheckpointError(str(directory), "holds no run folders", "name the folder that holds them")
    rows = [_row(folder) for folder in folders]
    if as_json:
        print_json(rows)
        return
    attacks = list(dict.fromkeys(name for row in rows for name in row["attacks"]))
    lines = [
        [
            row["name"],
            f"{row['state']} {row['step']}/{row['steps']}",
            _percent(row["nominal"]),
            *(_percent(row["attacks"].get(name), row["masked"]) for name in attacks),
            _percent(row["worst_case"], row["masked"]),
            f"{row['seconds']:.0f} s",
        ]
        for row in rows
        if row["state"] == "finished" or not markdown
    ]
    headings = ["run", "state", "nominal", *attacks, "worst case", "time"]
    if markdown:
        for cells in ([headings[0], *headings[2:]], ["---"] * (len(headings) - 1), *([c[0], *c[2:]] for c in lines)):
            click.echo(f"| {' | '.join(cells)} |")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    for cells in lines:
        table.add_row(*cells)
    Console().print(table)


def _row(folder: Any) -> dict[str, Any]:
    """One run as plain data; what was not evaluated, or is no evaluation of the last checkpoint, is None."""
    from pydantic import ValidationError

    from llrflow.errors import CheckpointError

    blank: dict[str, Any] = {
        "path": str(folder.path),
        "name": folder.path.name,
        "state": "unreadable",
        "step": 0,
        "steps": 0,
        "n": None,
    }
    blank |= {"seconds": 0.0, "nominal": None, "attacks": {}, "worst_case": None, "masked": []}
    try:
        record, evaluations = folder.record(), folder.evaluations()
    except (CheckpointError, ValidationError):
        return blank
    found = evaluations.get(record.step)
    row = {
        **blank,
        **record.model_dump(include={"name", "state", "step", "steps"}),
        "seconds": sum(record.seconds.values()),
    }
    if found is not None:
        shares = {name: attack.accuracy for name, attack in found.attacks.items()}
        row |= {"n": found.n, "nominal": found.nominal.accuracy, "attacks": shares}
        row |= {"worst_case": found.worst_case.accuracy, "masked": [flag.name for flag in found.fired]}
    return row


def _percent(share: float | None, masked: Any = ()) -> str:
    """With signs of gradient masking it is no more than an upper bound."""
    return "" if share is None else f"{'<= ' if masked else ''}{share:.2%}"
