"""`llrflow run` and `llrflow evaluate`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import click

from llrflow.base.errors import SpecError
from llrflow.commands.environment import ray_environment
from llrflow.commands.evaluations import MASKED, show, show_several
from llrflow.commands.options import checkpoint_option, json_option, run_argument, spec_argument, trust_option
from llrflow.commands.printing import echo


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
    on: Path | None,
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
      llrflow run specs/methods/trades.yaml --on specs/datasets/cifar10.yaml
      llrflow run specs/quickstart.yaml --coordinator node1:7654 --process 1 --processes 4
      llrflow run specs/quickstart.yaml --set devices.hosts=4 --address auto
    """

    def train(index: int) -> None:
        from llrflow.runs.pipeline import assist
        from llrflow.runs.pipeline import run as run_spec
        from llrflow.spec.load import load_spec

        loaded = load_spec(str(spec), changes, on)
        if index:
            return assist(loaded)
        if loaded.sweep is not None:
            echo(f"this runs {spec} with its own values; its sweep is started by: llrflow sweep {spec}", err=True)
        result = run_spec(loaded, out, fresh, quiet=as_json)
        return show(result, result.record.seconds, as_json)

    joins = (coordinator, process, processes) != (None, None, None)
    if address is not None and not supervised:
        if joins:
            raise SpecError("--address", "starts the processes itself", "leave --coordinator and its like out")
        return _on_hosts(spec, on, changes, out, fresh, address, 3 if retries is None else retries)
    if retries is not None and not supervised:
        raise SpecError("--retries", "has no effect without --address", "give both")
    if not joins:
        return train(0)
    from llrflow.commands.hosts import Place, run_in_group

    return run_in_group(Place.of(coordinator, process, processes, supervised), train)


def _on_hosts(
    spec: Path, on: Path | None, changes: dict[str, Any], out: Path | None, fresh: bool, address: str, retries: int
) -> None:
    ray_environment()
    from llrflow.commands.supervisor import run_on_hosts
    from llrflow.spec.load import load_spec

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the driver says what was lost
    arguments = click.get_current_context().find_root().obj
    run_on_hosts(load_spec(str(spec), changes, on), arguments, out, fresh, address, retries)


@click.command()
@run_argument("run_folder", metavar="RUN")
@checkpoint_option
@click.option("--attacks", metavar="PRESET|FILE", help="quick, standard, document, auto_attack, none, or a YAML file.")
@click.option(
    "--study",
    "studies",
    multiple=True,
    type=click.Choice(["strength", "linearity", "surface"]),
    help="Also write this study of the model, as the spec sets it or by default; repeatable.",
)
@click.option(
    "--on-data",
    "on_data",
    multiple=True,
    metavar="NAME[/CONFIG][:SPLIT]",
    help="Instead of the test split: prepared data of the same images and classes; * for all; repeatable.",
)
@click.option(
    "--stop-after",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N of the images, drawn at random: the record says so. More images later take up what is known.",
)
@click.option("--address", metavar="local|auto|HOST:PORT", help="Divide the images among workers of a Ray cluster.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="With --address; default one a node.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    help="With --address, how often the worker of one share is replaced when it is lost; default 3.",
)
@click.option("--export", is_flag=True, help="Also write the adversarial images of each attack (npz, float32).")
@trust_option
@json_option
def evaluate(
    run_folder: Path,
    checkpoint: Any,
    attacks: str | None,
    studies: tuple[str, ...],
    on_data: tuple[str, ...],
    stop_after: int | None,
    address: str | None,
    workers: int | None,
    retries: int | None,
    export: bool,
    trust_plugins: bool,
    as_json: bool,
) -> None:
    """Attack a checkpoint of RUN and write RUN/evaluation/STEP.json (with --attacks, STEP-HASH.json);
    an interrupted evaluation is continued.

    With --on-data the images are of other data, below the `data.dir` of the run's spec, and each record is
    RUN/evaluation/STEP@DATA.json. SPLIT is `test` where it is left out, or the only one. A * in CONFIG or SPLIT stands
    for any text in the names of prepared configs or splits; NAME:* is every split of every config.

    With --address workers under Ray each attack a share of the images, to the verdicts of a single process; one that is
    lost is replaced. RUN and the data must be on every node.

    Exit status 3: done, but signs of gradient masking were found, so that the accuracy is no more than an upper bound.

    \b
    Examples:
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --attacks auto_attack
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --attacks strong.yaml --checkpoint best --export
      llrflow evaluate runs/quickstart-1a2b3c4d5e6f --study strength --study surface
      llrflow evaluate runs/cifar10-1a2b3c4d5e6f --on-data 'cifar10_c:*' --attacks none
      llrflow evaluate runs/cifar10-1a2b3c4d5e6f --attacks auto_attack --stop-after 1000
      llrflow evaluate runs/cifar10-1a2b3c4d5e6f --attacks auto_attack --address auto
    where strong.yaml holds, for instance,
      pgd: {type: pgd, steps: 200, restarts: 10}
    """
    began = time.monotonic()
    how: dict[str, Any] = {"attacks": attacks, "export": export, "studies": studies, "stop_after": stop_after}
    how |= {"trust_plugins": trust_plugins}
    if address is not None:
        results = _on_workers(run_folder, checkpoint, on_data, address, workers, retries, as_json, how)
    elif workers is not None or retries is not None:
        raise SpecError("--workers" if workers else "--retries", "has no effect without --address", "give both")
    else:
        results = _evaluated(run_folder, checkpoint, on_data, quiet=as_json, **how)
    seconds = {"evaluate": time.monotonic() - began}
    if len(results) > 1:
        show_several(results, seconds, as_json)
    else:
        show(results[0], seconds, as_json)
    if any(result.evaluation.fired for result in results):
        raise SystemExit(MASKED)


def _evaluated(run_folder: Path, checkpoint: Any, on_data: tuple[str, ...], **how: Any) -> list[Any]:
    from llrflow.runs.reevaluate import evaluate_elsewhere, evaluate_run

    if on_data:
        return evaluate_elsewhere(run_folder, on_data, checkpoint, **how)
    return [evaluate_run(run_folder, checkpoint, **how)]


def _on_workers(
    run_folder: Path,
    checkpoint: Any,
    on_data: tuple[str, ...],
    address: str,
    workers: int | None,
    retries: int | None,
    quiet: bool,
    how: dict[str, Any],
) -> list[Any]:
    ray_environment()
    from llrflow.commands.evaluation_workers import evaluate_on_workers

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what was lost is said
    many = 3 if retries is None else retries
    return evaluate_on_workers(run_folder, checkpoint, on_data, address, workers, many, quiet, **how)
