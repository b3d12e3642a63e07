"""`llrflow run` and `llrflow evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.cli import json_option, print_json, spec_argument


@click.command()
@spec_argument
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/NAME-HASH.")
@click.option("--fresh", is_flag=True, help="Start over, deleting what the folder named by --out holds.")
@json_option
def run(spec: Path, changes: dict[str, Any], out: Path | None, fresh: bool, as_json: bool) -> None:
    """Train SPEC and evaluate the result; the same command continues an unfinished run.

    Ctrl-C and SIGTERM save and stop. A run that was killed goes on from its newest intact checkpoint
    and reaches the same numbers.

    \b
    Examples:
      llrflow run specs/quickstart.yaml
      llrflow run specs/quickstart.yaml --set objective.terms.gamma.weight=2 --out runs/weaker
    """
    from llrflow.runs.pipeline import run as run_spec
    from llrflow.spec.load import load_spec

    _print(run_spec(load_spec(str(spec), changes), out, fresh, quiet=as_json), as_json)


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=int, metavar="STEP", help="Step to evaluate; default the newest intact one.")
@click.option("--attacks", type=click.Path(path_type=Path), help="YAML file of named attacks, instead of the spec's.")
@json_option
def evaluate(run_folder: Path, checkpoint: int | None, attacks: Path | None, as_json: bool) -> None:
    """Attack a checkpoint of RUN and write RUN/evaluation/STEP.json (with --attacks, STEP-HASH.json);
    an interrupted evaluation is continued.

    \b
    Example:
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --attacks strong.yaml
    where strong.yaml holds, for instance,
      pgd: {type: pgd, steps: 200, restarts: 10}
    """
    from llrflow.runs.pipeline import evaluate_run
    from llrflow.spec.source import read_source

    named = None if attacks is None else read_source(str(attacks)).data
    _print(evaluate_run(run_folder, checkpoint, quiet=as_json, attacks=named), as_json)


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        print_json({"run": str(result.path), "evaluation": result.evaluation.model_dump()})
        return
    from rich.console import Console
    from rich.table import Table

    evaluation = result.evaluation
    threat = evaluation.threat
    title = f"{evaluation.n} test images, {threat['norm']} {threat['epsilon']:g}, step {evaluation.checkpoint}"
    table = Table(title=title, title_justify="left")
    for heading, justify in (("", "left"), ("accuracy", "right"), ("95 % interval", "right"), ("changed", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    rows = {"nominal": evaluation.nominal, **evaluation.attacks, "worst case": evaluation.worst_case}
    for name, share in rows.items():
        low, high = share.interval
        kills = str(share.kills) if name in evaluation.attacks else ""
        table.add_row(name, f"{share.accuracy:.2%}", f"{low:.2%} to {high:.2%}", kills)
    console = Console()
    console.print(table)
    for name, values in evaluation.gamma.items():
        median, high = values.quantiles["0.5"], values.quantiles["0.95"]
        console.print(
            f"linearity error at {name}: mean {values.mean:.3g}, median {median:.3g}, 95 % below {high:.3g} nats",
            highlight=False,
            soft_wrap=True,
        )
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.record.seconds.items())
    console.print(f"{result.path}: {seconds}", highlight=False, soft_wrap=True)
