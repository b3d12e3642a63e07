"""`llrflow import-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import json_option, set_option
from llrflow.commands.printing import echo, print_json


@click.command(name="import-model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", "spec", required=True, metavar="SPEC", type=click.Path(path_type=Path), help="Spec of the run."
)
@click.option("--out", required=True, metavar="RUN", type=click.Path(path_type=Path), help="Run folder to make.")
@click.option(
    "--map", "mapping", metavar="FILE", type=click.Path(path_type=Path), help="YAML: what arrays are called there."
)
@click.option("--key", metavar="NAME", help="Which dict of arrays of a checkpoint; default its state_dict.")
@set_option
@json_option
def import_model(
    file: Path, spec: Path, out: Path, mapping: Path | None, key: str | None, changes: dict[str, Any], as_json: bool
) -> None:
    """Make a run folder of the weights in FILE, to evaluate, attack, report, export or begin from.

    FILE is a state_dict of PyTorch (.pt, .pth, .safetensors), an .npz, or an .npy of Haiku's parameters as DeepMind
    published them. PyTorch is not needed, and nothing in FILE is run. SPEC names the network, the data and the threat.
    Layouts known by name: torchvision's ResNet, RobustBench's and DeepMind's WideResNet, PreActResNet, timm's ViT and
    ConvNeXt.

    \b
    Examples:
      llrflow import-model wrn28_10.pt --model wrn.yaml --out runs/theirs
      llrflow import-model resnet50.safetensors --model imagenet.yaml --set model.depth=50 --out runs/r50
    """
    from llrflow.runs.importing import import_model as import_into

    record = import_into(file, spec, out, mapping, key, changes)
    if as_json:
        print_json({"run": str(out), **record.model_dump()})
        return
    assert record.imported is not None
    echo(f"made {out} of {record.imported.arrays} arrays by the names of {record.imported.layout}")
    for path, value in record.imported.set.items():
        echo(f"  {path} = {value}, as {'the file' if path in ('model.mean', 'model.std') else 'this layout'} has it")
