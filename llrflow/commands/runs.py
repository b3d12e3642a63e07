"""`llrflow runs`: what is in a folder of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llrflow.base.harmless import markdown_cell
from llrflow.commands.options import json_option
from llrflow.commands.printing import console, echo, print_json


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"))
@click.option("--markdown", is_flag=True, help="Print a Markdown table of the finished runs.")
@json_option
def runs(directory: Path, markdown: bool, as_json: bool) -> None:
    """List the runs in DIR (default runs) and in folders up to three levels below, such as a sweep's.

    State, progress, nominal and robust accuracy of the last evaluated step, seconds; the best of each column is bold.
    What cannot be read, and folders without a run, are named below.

    \b
    Examples:
      llrflow runs
      llrflow runs sweeps/digits --json
      llrflow runs runs/methods --markdown
    """
    from llrflow.base.errors import CheckpointError
    from llrflow.runs.folder import RunFolder

    found, others = _folders(directory)
    if (directory / "sweep.json").exists():  # whose folders are known, also those without a run
        others = []
    if not found:
        raise CheckpointError(str(directory), "holds no run folders", "name the folder that holds them")
    rows = [_row(RunFolder(path)) for path in found]
    if as_json:
        print_json(rows)
        return
    if markdown:
        for line in _markdown([row for row in rows if row["state"] == "finished"]):
            echo(line)
        return
    out = console()
    out.print(_table(rows, directory))
    for row in rows:
        if row["error"]:
            out.print(f"{row['path']}: {row['error']}", highlight=False, markup=False, soft_wrap=True)
    if others:
        out.print(f"no run in {', '.join(map(str, others))}", highlight=False, markup=False, soft_wrap=True)


DEPTH = 3
"""Levels of folders: DIR/RUN, DIR/SWEEP/runs/RUN."""


def _folders(directory: Path, depth: int = DEPTH) -> tuple[list[Path], list[Path]]:
    """Run folders at or below a folder, and the folders directly in it in which there is none."""
    if (directory / "run.json").exists():
        return [directory], []
    if not directory.is_dir() or not depth:
        return [], []
    runs, others = [], []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found, _ = _folders(path, depth - 1)
            runs += found
            others += [] if found else [path]
    return runs, others


def _attacks(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["attacks"]))


def _shares(row: dict[str, Any], attacks: list[str]) -> list[float | None]:
    return [row["nominal"], *(row["attacks"].get(name) for name in attacks), row["worst_case"]]


def _markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    attacks = _attacks(rows)
    yield _line(["run", "nominal", *attacks, "worst case", "time"])
    yield f"|{' --- |' * (len(attacks) + 4)}"
    for row in rows:
        yield _line([row["name"] + _drawn(row), *_percents(row, attacks), _time(row)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"


def _table(rows: list[dict[str, Any]], directory: Path) -> Any:
    from rich.table import Table
    from rich.text import Text

    attacks, table = _attacks(rows), Table(box=None)
    for heading in ("run", "state", "done", "nominal", *attacks, "worst case", "time"):
        table.add_column(Text(heading), justify="left" if heading in ("run", "state") else "right", overflow="fold")
    columns = list(zip(*(_shares(row, attacks) for row in rows), strict=True))
    best = [max((share for share in column if share is not None), default=None) for column in columns]
    for row in rows:
        path = Path(row["path"])
        label = path.name if path == directory else str(path.relative_to(directory))
        done = f"{row['progress']:.0%} of {row['steps']}" if row["steps"] else ""
        cells = [
            Text(text, style="bold" if share is not None and share == top and len(rows) > 1 else "")
            for text, share, top in zip(_percents(row, attacks), _shares(row, attacks), best, strict=True)
        ]
        cells[0].append(_drawn(row))
        if row["trained_on_test"]:
            cells[0].append(" (trained on test images)")
        if row["evaluated"] not in (None, row["step"]):
            cells[0].append(f" (step {row['evaluated']})")
        table.add_row(Text(label), row["state"], done, *cells, _time(row))
    return table


def _percents(row: dict[str, Any], attacks: list[str]) -> list[str]:
    """With signs of gradient masking robust accuracies are no more than upper bounds."""
    shares = _shares(row, attacks)
    bound = "<= " if row["masked"] else ""
    return ["" if s is None else f"{bound if i else ''}{s:.2%}" for i, s in enumerate(shares)]


def _drawn(row: dict[str, Any]) -> str:
    """Which images, where they are not all."""
    return f" ({row['subset']})" if row["subset"] else ""


def _time(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.0f} s"


def _row(folder: Any) -> dict[str, Any]:
    """One run as plain data; what was not evaluated is None."""
    from pydantic import ValidationError

    from llrflow.base.errors import CheckpointError

    row: dict[str, Any] = {
        "path": str(folder.path),
        "name": folder.path.name,
        "state": "unreadable",
        "step": 0,
        "steps": 0,
        "progress": 0.0,
        "evaluated": None,
        "n": None,
        "subset": None,
        "trained_on_test": None,
    }
    row |= {"seconds": 0.0, "nominal": None, "attacks": {}, "worst_case": None, "masked": [], "error": None}
    try:
        record = folder.record()
        row |= record.model_dump(include={"name", "state", "step", "steps", "error", "trained_on_test"})
        row["state"] = "imported" if record.imported is not None and row["state"] == "finished" else row["state"]
        row |= {"seconds": sum(record.seconds.values()), "progress": record.step / max(record.steps, 1)}
        evaluations = folder.evaluations()
    except (CheckpointError, ValidationError) as error:
        return row | {"error": str(error)}
    if evaluations:
        row["evaluated"], found = max(evaluations.items())
        shares = {name: share.accuracy for name, share in found.shares.items()}
        row |= {"n": found.n, "subset": found.subset and found.described}
        row |= {"nominal": shares.pop("nominal"), "worst_case": shares.pop("worst case"), "attacks": shares}
        row |= {"masked": [flag.name for flag in found.fired]}
    return row
