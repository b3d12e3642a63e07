"""`llrflow export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import checkpoint_option, json_option, run_argument, trust_option
from llrflow.commands.printing import echo, print_json


@click.command()
@run_argument("run_folder", metavar="RUN")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder; default RUN/export.")
@checkpoint_option
@click.option("--parameters", type=click.Choice(["raw", "ema"]), help="Default what the run evaluates.")
@trust_option
@json_option
def export(
    run_folder: Path, out: Path | None, checkpoint: Any, parameters: Any, trust_plugins: bool, as_json: bool
) -> None:
    """Write the model of RUN as logits.stablehlo (for CPU, CUDA and TPU, any batch size), weights.npz and model.json.

    `llrflow.load_exported` reads them back, and so does jax.export alone; neither needs Haiku or the network's code.

    \b
    Examples:
      llrflow export runs/quickstart-1a2b3c4d5e6f
      llrflow export runs/quickstart-1a2b3c4d5e6f -o model --checkpoint 1320 --json
    """
    from llrflow.runs.export import export_model

    folder, record = export_model(run_folder, out, checkpoint, parameters, trust_plugins)
    if as_json:
        print_json({"export": str(folder), **record.model_dump()})
        return
    echo(f"wrote {folder}: step {record.step} of {record.name}, for {', '.join(record.platforms)}")
    for name in (*record.files, "model.json"):
        echo(f"  {name}  {(folder / name).stat().st_size:,} bytes")
