"""`llrflow sweep`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from llrflow.commands.environment import ray_environment
from llrflow.commands.options import json_option, print_json, spec_argument


@click.command()
@spec_argument
@click.option("--out", "--storage", "out", type=click.Path(path_type=Path), help="Folder; default sweeps/NAME.")
@click.option("--address", default="local", metavar="local|auto|HOST:PORT", help="Ray cluster; default one of its own.")
@click.option("--resume", is_flag=True, help="Go on with the sweep in the folder; its space may have grown.")
@click.option("--mirror", metavar="URI", help="Keep a copy there: file:///..., s3://... or gs://...; --resume uses it.")
@click.option("--strict", is_flag=True, help="Exit status 1 if any trial failed, not only if all did.")
@json_option
def sweep(
    spec: Path,
    changes: dict[str, Any],
    out: Path | None,
    address: str,
    resume: bool,
    mirror: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Run SPEC with many values, as its `sweep:` block says, and write the best as a spec.

    Each trial is a run folder below --out, which `llrflow run` can continue and `llrflow evaluate` attack. Finished
    trials are never run again; a killed sweep goes on with --resume.

    \b
    Examples:
      llrflow plan specs/digits_sweep.yaml
      llrflow sweep specs/digits_sweep.yaml --out sweeps/digits
      llrflow sweep specs/digits_sweep.yaml --out sweeps/digits --resume --set sweep.trials=48
      llrflow sweep specs/digits_sweep.yaml --out /tmp/digits --mirror s3://BUCKET/digits
    """
    ray_environment()
    from llrflow.spec.load import load_spec
    from llrflow.sweep.running.driver import run_sweep
    from llrflow.sweep.tracking.storage import folder_of

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # its errors are in the table
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    loaded = load_spec(str(spec), changes)
    record = run_sweep(loaded, out, address, resume, quiet=as_json, mirror=mirror)
    folder = folder_of(loaded, out)
    if as_json:
        print_json({"sweep": str(folder), **record.model_dump()})
    else:
        _print(loaded.sweep, folder, record)
    failed = len(record.of_state("failed"))
    if failed and (strict or failed == len(record.trials)):
        raise SystemExit(1)


def _print(sweep: Any, folder: Path, record: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from llrflow.sweep.tracking.live import cells

    table = Table(title=f"{record.name}: {len(record.trials)} trials, {record.state}", title_justify="left", box=None)
    headings = ("trial", "state", "step", *sweep.parameters, record.metric, "nominal", "gamma", "worst case", "seconds")
    stronger = [] if sweep.escalate is None else [sweep.escalate.attacks]
    for heading in (*headings, *stronger):
        table.add_column(heading, justify="left" if heading == "state" else "right", overflow="fold")
    for configuration in record.configurations:
        for trial in (record.trials[number] for number in configuration.trials):
            robust = "" if trial.robust is None else f"{trial.robust:.2%}"
            left = [f"{trial.escalated.robust:.2%}"] if trial.escalated is not None else [""] * len(stronger)
            table.add_row(*cells(sweep, trial), robust, f"{sum(trial.seconds.values()):.1f}", *left)
        if len(configuration.trials) > 1 and configuration.mean is not None and configuration.spread is not None:
            blank = [""] * (len(sweep.parameters) + 1)
            mean = f"{configuration.mean:.4g} +- {configuration.spread:.2g}"
            table.add_row("", f"{configuration.finished} seeds", *blank, mean)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    failed = record.of_state("failed")
    lines = [f"trial {trial.number} failed: {trial.error} (traceback: {folder}/sweep.json)" for trial in failed]
    lines += [f"trial {t.number} stopped at step {t.step}: {t.stopped}" for t in record.trials if t.stopped]
    for worker in record.workers:
        most = max(worker.step_compilations.values(), default=0)
        lines.append(
            f"worker {worker.worker}: {worker.trials} trials, {worker.busy:.1f} s busy, "
            f"training step compiled {most} time(s), {worker.compilations} compilations in all"
        )
    lines.append(f"{record.steps_trained:,} steps trained in all; {record.seconds:.1f} s")
    won = f"best: trial {record.best}, {record.chosen_on}; llrflow run {folder}/best.yaml"
    none = "no trial can win: none finished without signs of gradient masking"
    for line in (*lines, none if record.best is None else won):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
