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
    columns = ["nominal", *dict.fromkeys(name for row in rows for name in row["attacks"]), "worst case"]
    lines = [
        [
            row["name"],
            f"{row['state']} {row['step']}/{row['steps']}",
            *(
                _percent({"nominal": row["nominal"], "worst case": row["worst_case"], **row["attacks"]}.get(c))
                for c in columns
            ),
            f"{row['seconds']:.0f} s",
        ]
        for row in rows
        if row["state"] == "finished" or not markdown
    ]
    headings = ["run", "state", *columns, "time"]
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
    """One run as plain data; what was not evaluated is None."""
    record, evaluations = folder.record(), folder.evaluations()
    found = evaluations[max(evaluations)] if evaluations else None
    return {
        "path": str(folder.path),
        "name": record.name,
        "state": record.state,
        "step": record.step,
        "steps": record.steps,
        "seconds": sum(record.seconds.values()),
        "n": found and found.n,
        "nominal": found and found.nominal.accuracy,
        "attacks": {name: attack.accuracy for name, attack in found.attacks.items()} if found else {},
        "worst_case": found and found.worst_case.accuracy,
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
