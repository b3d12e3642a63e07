"""`llrflow export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import checkpoint_option, json_option, run_argument, trust_option
from llrflow.commands.printing import echo, print_json
from llrflow.runs.exports import FORMATS, export_to

_TEXTS = "; ".join(f"{name}: {format.text}" for name, format in FORMATS.items())


@click.command()
@run_argument("run_folder", metavar="RUN")
@click.option("--to", type=click.Choice(list(FORMATS)), default="stablehlo", help=f"{_TEXTS}. Default stablehlo.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder; default RUN/export, for others RUN/export-FORMAT."
)
@checkpoint_option
@click.option("--parameters", type=click.Choice(["raw", "ema"]), help="Default what the run evaluates.")
@trust_option
@json_option
def export(
    run_folder: Path, to: str, out: Path | None, checkpoint: Any, parameters: Any, trust_plugins: bool, as_json: bool
) -> None:
    """Write the model of RUN for other programs, with model.json, which says what it is.

    StableHLO is for CPU, CUDA and TPU and any batch size: `llrflow.load_exported` reads it back, and so does jax.export
    alone; neither needs Haiku or the network's code.

    \b
    Examples:
      llrflow export runs/quickstart-1a2b3c4d5e6f
      llrflow export runs/quickstart-1a2b3c4d5e6f -o model --checkpoint 1320 --json
    """
    folder, record = export_to(to, run_folder, out, checkpoint, parameters, trust_plugins)
    if as_json:
        print_json({"export": str(folder), **record.model_dump()})
        return
    echo(f"wrote {folder}: {record.described}")
    for name in (*record.files, "model.json"):
        echo(f"  {name}  {(folder / name).stat().st_size:,} bytes")
