"""`llrflow run` and `llrflow evaluate`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llrflow.base.errors import SpecError
from llrflow.commands.environment import ray_environment
from llrflow.commands.options import console, json_option, print_json, run_argument, spec_argument

MASKED = 3
"""Exit status of an evaluation with signs of gradient masking."""


@click.command()
@spec_argument
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/NAME-HASH.")
@click.option("--fresh", is_flag=True, help="Start over, deleting what the folder named by --out holds.")
@click.option("--coordinator", metavar="HOST:PORT", help="Train with other processes; process 0 listens there.")
@click.option("--process", type=int, metavar="I", help="Which of the processes this is, from 0.")
@click.option("--processes", type=int, metavar="N", help="How many processes train the model together.")
@click.option("--supervised", is_flag=True, hidden=True)
@click.option("--address", metavar="local|auto|HOST:PORT", help="Train on devices.hosts nodes of a Ray cluster.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    help="With --address, losses in a row without a new checkpoint after which to start again; default 3.",
)
@json_option
def run(
    spec: Path,
    changes: dict[str, Any],
    out: Path | None,
    fresh: bool,
    coordinator: str | None,
    process: int | None,
    processes: int | None,
    supervised: bool,
    address: str | None,
    retries: int | None,
    as_json: bool,
) -> None:
    """Train SPEC and evaluate the result; the same command continues an unfinished run.

    Ctrl-C and SIGTERM save and stop. A run that was killed goes on from its newest intact checkpoint
    and reaches the same numbers.

    With --coordinator, --process and --processes several processes, on one host or many, train one model
    on the devices of all; process 0 writes the run folder. With --address Ray starts one on each of `devices.hosts`
    nodes, and all of them again, from the newest checkpoint, when one is lost.

    \b
    Examples:
      llrflow run specs/quickstart.yaml
      llrflow run specs/quickstart.yaml --set objective.terms.gamma.weight=2 --out runs/weaker
      llrflow run specs/quickstart.yaml --coordinator node1:7654 --process 1 --processes 4
      llrflow run specs/quickstart.yaml --set devices.hosts=4 --address auto
    """

    def train(index: int) -> None:
        from llrflow.runs.pipeline import assist
        from llrflow.runs.pipeline import run as run_spec
        from llrflow.spec.load import load_spec

        loaded = load_spec(str(spec), changes)
        if index:
            return assist(loaded)
        if loaded.sweep is not None:
            click.echo(f"this runs {spec} with its own values; its sweep is started by: llrflow sweep {spec}", err=True)
        result = run_spec(loaded, out, fresh, quiet=as_json)
        return _print(result, result.record.seconds, as_json)

    joins = (coordinator, process, processes) != (None, None, None)
    if address is not None and not supervised:
        if joins:
            raise SpecError("--address", "starts the processes itself", "leave --coordinator and its like out")
        return _on_hosts(spec, changes, out, fresh, address, 3 if retries is None else retries)
    if retries is not None and not supervised:
        raise SpecError("--retries", "has no effect without --address", "give both")
    if not joins:
        return train(0)
    from llrflow.commands.hosts import Place, run_in_group

    return run_in_group(Place.of(coordinator, process, processes, supervised), train)


def _on_hosts(spec: Path, changes: dict[str, Any], out: Path | None, fresh: bool, address: str, retries: int) -> None:
    ray_environment()
    from llrflow.commands.supervisor import run_on_hosts
    from llrflow.spec.load import load_spec

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the driver says what was lost
    arguments = click.get_current_context().find_root().obj
    run_on_hosts(load_spec(str(spec), changes), arguments, out, fresh, address, retries)


@click.command()
@run_argument("run_folder", metavar="RUN")
@click.option("--checkpoint", default="last", metavar="best|last|STEP", help="Which one; default the newest intact.")
@click.option("--attacks", metavar="PRESET|FILE", help="quick, standard, document, auto_attack, or a YAML file.")
@click.option(
    "--study",
    "studies",
    multiple=True,
    type=click.Choice(["strength", "linearity", "surface"]),
    help="Also write this study of the model, as the spec sets it or by default; repeatable.",
)
@click.option("--export", is_flag=True, help="Also write the adversarial images of each attack (npz, float32).")
@json_option
def evaluate(
    run_folder: Path, checkpoint: str, attacks: str | None, studies: tuple[str, ...], export: bool, as_json: bool
) -> None:
    """Attack a checkpoint of RUN and write RUN/evaluation/STEP.json (with --attacks, STEP-HASH.json);
    an interrupted evaluation is continued.

    Exit status 3: done, but signs of gradient masking were found, so that the accuracy is no more than an upper bound.

    \b
    Examples:
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --attacks auto_attack
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --attacks strong.yaml --checkpoint best --export
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --study strength --study surface
    where strong.yaml holds, for instance,
      pgd: {type: pgd, steps: 200, restarts: 10}
    """
    from llrflow.runs.reevaluate import evaluate_run

    if checkpoint not in ("best", "last") and not checkpoint.isdigit():
        raise click.BadParameter(f"{checkpoint!r} is neither best, last nor a step", param_hint="--checkpoint")
    step: Any = int(checkpoint) if checkpoint.isdigit() else checkpoint
    began = time.monotonic()
    result = evaluate_run(run_folder, step, quiet=as_json, attacks=attacks, export=export, studies=studies)
    _print(result, {"evaluate": time.monotonic() - began}, as_json)
    if result.evaluation.fired:
        raise SystemExit(MASKED)


def _print(result: Any, seconds: Mapping[str, float], as_json: bool) -> None:
    if as_json:
        print_json({"run": str(result.path), "evaluation": result.evaluation.model_dump()})
        return
    from rich.table import Table

    evaluation = result.evaluation
    mark = "<= " if evaluation.fired else ""
    title = (
        f"{evaluation.n} test images, {evaluation.threat['norm']} {evaluation.epsilon}, step {evaluation.checkpoint}"
    )
    table = Table(title=title, title_justify="left")
    robust = "still correct" if evaluation.cascade else "accuracy"
    for heading in ("", robust, "95 % interval", "attacked", "changed"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {"nominal": evaluation.nominal, **evaluation.attacks, "worst case": evaluation.worst_case}
    for name, share in rows.items():
        low, high = share.interval
        made = evaluation.attacks.get(name)
        counts = ("", "") if made is None else (str(made.attacked), str(made.kills))
        bound = "" if name == "nominal" else mark
        table.add_row(name, f"{bound}{share.accuracy:.2%}", f"{low:.2%} to {high:.2%}", *counts)
        for stage, part in made.stages.items() if made else ():
            table.add_row(f"  {stage}", "", "", str(part.attacked), str(part.kills))
    out = console()
    out.print(table)
    if evaluation.classes is not None and len(evaluation.classes.names) > 1:
        out.print(_by_class(evaluation.classes), highlight=False, markup=False, soft_wrap=True)
    for name, made in evaluation.attacks.items():
        if made.minimum is not None:
            median = "beyond what it found" if made.minimum.median is None else f"{made.minimum.median:.4g}"
            share = f"{made.minimum.beyond_epsilon:.2%} of the images lie beyond epsilon"
            out.print(f"{name}: median distance {median}, {share}", highlight=False, soft_wrap=True)
    for name, values in evaluation.gamma.items():
        median, high = values.quantiles["0.5"], values.quantiles["0.95"]
        out.print(
            f"linearity error at {name}: mean {values.mean:.3g}, median {median:.3g}, 95 % below {high:.3g} nats",
            highlight=False,
            soft_wrap=True,
        )
    for flag in evaluation.fired:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in flag.measured.items())
        out.print(f"MASKED? {flag.name}: {flag.meaning} ({numbers})", style="bold red", highlight=False, markup=False)
    if not evaluation.checked:
        out.print("signs of gradient masking: not looked for (no examples to try)", highlight=False)
    elif not evaluation.fired:
        out.print(f"signs of gradient masking: none on {evaluation.checked} images", highlight=False)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    out.print(f"{result.path}: {took}", highlight=False, markup=False, soft_wrap=True)


def _by_class(found: Any) -> str:
    """The classes with the lowest worst case, and whom it takes for whom most often."""
    shares = found.accuracy["worst case"]
    lowest = sorted((share, at) for at, share in enumerate(shares) if share is not None)[:3]
    wrong = [(-n, true, other) for true, row in found.taken["worst case"].items() for other, n in row.items()]
    pairs = sorted(pair for pair in wrong if pair[1] != pair[2])[:3]
    named = {-1: "not finite", **dict(enumerate(found.names))}
    taken = ", ".join(f"{named[true]} for {named[other]} ({-n})" for n, true, other in pairs)
    classes = ", ".join(f"{named[at]} {share:.2%}" for share, at in lowest)
    return f"lowest worst case by class: {classes}" + (f"; most often taken: {taken}" if taken else "")
