"""`llrflow sweep`."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llrflow.commands.environment import ray_environment
from llrflow.commands.options import json_option, spec_argument
from llrflow.commands.printing import console, print_json


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
    on: Path | None,
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
    loaded = load_spec(str(spec), changes, on)
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
    from rich.table import Table

    from llrflow.base.shown import measured, named
    from llrflow.sweep.tracking.live import cells, headings, tellers

    table = Table(title=f"{record.name}: {len(record.trials)} trials, {record.state}", title_justify="left", box=None)
    stronger = [] if sweep.escalate is None else [sweep.escalate.attacks]
    before = headings(sweep)
    for heading in (*before, "worst case", "seconds", *stronger):
        table.add_column(heading, justify="left" if heading == "state" else "right", overflow="fold")
    for configuration in record.configurations:
        for trial in (record.trials[number] for number in configuration.trials):
            robust = "" if trial.robust is None else f"{trial.robust:.2%}"
            left = [f"{trial.escalated.robust:.2%}"] if trial.escalated is not None else [""] * len(stronger)
            table.add_row(*cells(sweep, trial), robust, f"{sum(trial.seconds.values()):.1f}", *left)
        if len(configuration.trials) > 1 and configuration.mean is not None and configuration.spread is not None:
            blank = [""] * (before.index(record.metric) - 2)
            mean = measured(record.metric, configuration.mean, configuration.spread)
            table.add_row("", f"mean of {configuration.finished} seeds", *blank, mean)
    out = console(200)
    out.print(table)
    _print_methods(out, folder, record)
    failed = record.of_state("failed")
    tell = tellers(sweep)
    given = {t.number: ", ".join(filter(None, (t.variant, named(t.parameters, tell)))) for t in failed}
    given = {t.number: given[t.number] or f"seed {t.seed}" for t in failed}
    lines = [f"trial {t.number} ({given[t.number]}) failed: {t.error} (traceback: {folder}/sweep.json)" for t in failed]
    lines += [f"trial {t.number} stopped at step {t.step}: {t.stopped}" for t in record.trials if t.stopped]
    for worker in record.workers:
        most = max(worker.step_compilations.values(), default=0)
        lines.append(
            f"worker {worker.worker}: {worker.trials} trials, {worker.busy:.1f} s busy, "
            f"training step compiled {most} time(s), {worker.compilations} compilations in all"
        )
    lines.append(f"{record.steps_trained:,} steps trained in all; {record.seconds:.1f} s")
    for line in (*lines, *_won(folder, record)):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_methods(out: Any, folder: Path, record: Any) -> None:
    """Methods by attacks, as in the report, where there are variants or seeds."""
    from rich.table import Table

    from llrflow.report.methods import methods, table, tests
    from llrflow.report.read import ReadSweep

    sweep = ReadSweep(folder, record)
    if not (found := methods(sweep)):
        return
    for made in filter(None, (table(sweep, "sweep", found), tests("sweep", found))):
        shown = Table(title=made.title, title_justify="left", caption=made.note, caption_justify="left", box=None)
        for number, heading in enumerate(made.headings):
            shown.add_column(heading, justify="right" if number else "left", overflow="fold")
        for row in made.rows:
            shown.add_row(*row)
        out.print(shown)


def _won(folder: Path, record: Any) -> Iterator[str]:
    """Who won, of all and of each variant, and the spec that runs it again."""
    from llrflow.base.shown import measured

    if record.best is None:
        yield "no trial can win: none finished without signs of gradient masking"
        return
    winners = {name: record.configuration(number) for name, number in record.winners.items()}
    for name, one in ({"": record.configurations[0]} | winners).items():
        value = measured(record.metric, one.mean, one.spread)
        many = f"s {', '.join(map(str, one.trials))}, mean of {len(one.trials)} seeds" if len(one.trials) > 1 else ""
        of, file = (f" of {name}", f"best-{name}.yaml") if name else ("", "best.yaml")
        again = f"llrflow run {shlex.quote(f'{folder}/{file}')}"
        yield f"best{of}: trial{many or f' {one.trials[0]}'}, {record.metric} {value}, {record.chosen_on}; {again}"
