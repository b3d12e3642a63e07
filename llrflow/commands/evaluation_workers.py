"""One evaluation by workers under Ray: each attacks a share of the images, and one of them writes the certificate.

A worker keeps its verdicts in the run folder as it goes, so that whoever takes its place goes on from there, and a
certificate is written from the verdicts of all by the code that writes that of a single process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from llrflow.base.errors import LlrflowError, line_of
from llrflow.base.progress import progress, say
from llrflow.commands.under_ray import asked_of_ray, driving
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.model import checkpoints_of, chosen_step
from llrflow.runs.pipeline import Run
from llrflow.runs.presets import evaluate_block
from llrflow.runs.records import EvaluationRecord
from llrflow.runs.reevaluate import attack_share, changed_run, evaluate_elsewhere, evaluate_run
from llrflow.runs.surrogates import check_consent
from llrflow.spec.schema import Spec
from llrflow.sweep.running.cluster import check_room, patience

PAUSE = 0.5
"""Seconds between two looks for a signal to stop."""


def evaluate_on_workers(
    path: Path,
    step: Step | None,
    on_data: Sequence[str],
    address: str,
    workers: int | None,
    retries: int,
    quiet: bool,
    attacks: str | None,
    stop_after: int | None,
    trust_plugins: bool = False,
    **how: Any,
) -> list[Run]:
    """As `evaluate_run`, or `evaluate_elsewhere` with `on_data`, by `workers` (default one a node) of the Ray at
    `address`, each with the spec's `devices.resources`.

    A worker that is lost is replaced, up to `retries` times for a share. Raises as these do, SpecError where no node
    has room for a worker or sees the run folder, Interrupted after Ctrl-C or SIGTERM, LlrflowError when Ray does not
    start or too much was lost.
    """
    folder = RunFolder(path.absolute())
    record, spec, _ = changed_run(folder, attacks, stop_after, trust_plugins=trust_plugins)
    chosen = chosen_step(folder, checkpoints_of(folder, record), step)
    how |= {"step": chosen.step, "stop_after": stop_after}
    how |= {"attacks": attacks and evaluate_block(attacks)}  # from here: workers may lack the file
    check_consent([spec], trust_plugins)
    how |= {"trust_plugins": True}  # decided here: workers may have another home
    with driving(spec, address, workers or 1) as stop:
        check_room(spec, "devices.resources", spec.devices.wanted, "a worker", patience=patience(address))
        of = workers or _nodes(spec)
        pool = _Pool(spec, retries, stop)
        job = (str(folder.path), list(on_data), how)
        with folder.owned(), progress("shares of the images", of, quiet) as report:
            pool.run({f"share {i + 1} of {of}": (*job, (i, of)) for i in range(of)}, report)
        (found,) = pool.run({"the certificate": (*job, None)}, lambda done: None)
    return [Run(path, record, evaluation, chosen.why) for evaluation in found]


def _nodes(spec: Spec) -> int:
    """Nodes with room for a worker."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(all(node.get(name, 0) >= amount for name, amount in spec.devices.wanted.items()) for node in found)


class _Pool:
    """Tasks of Ray, each started again when its worker is lost."""

    def __init__(self, spec: Spec, retries: int, stop: StopRequest) -> None:
        self._start = ray.remote(**asked_of_ray(spec), max_retries=0, scheduling_strategy="SPREAD")(_work).remote
        self._retries, self._stop = retries, stop

    def run(self, jobs: dict[str, tuple[Any, ...]], report: Any) -> list[list[EvaluationRecord]]:
        """What the jobs found, each named by what it does. Raises LlrflowError, and Interrupted."""
        waiting, lost, found = {self._start(*job): name for name, job in jobs.items()}, dict.fromkeys(jobs, 0), {}
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=PAUSE)
            if self._stop.signum is not None:
                raise Interrupted(self._stop.signum, "evaluation stopped and saved; run the same command to continue")
            for ref in ready:
                name = waiting.pop(ref)
                try:
                    found[name], problem, code = ray.get(ref)
                except RayTaskError as error:
                    raise LlrflowError(f"{name} failed: {line_of(error.cause)}") from error
                except RayError as error:
                    lost[name] += 1
                    gone = f"{name}: its worker was lost ({line_of(error)})"
                    if lost[name] > self._retries:
                        used = f"--retries {self._retries} are used up; run the same command to continue"
                        raise LlrflowError(f"{gone}; {used}") from None
                    say(f"{gone}; starting another, {lost[name]} of {self._retries}")
                    waiting[self._start(*jobs[name])] = name
                    continue
                if problem:
                    failed = LlrflowError(problem)
                    failed.exit_code = code
                    raise failed
                report(len(found))
        return [found[name] for name in jobs]


def _work(
    path: str, on_data: Sequence[str], how: dict[str, Any], share: tuple[int, int] | None
) -> tuple[list[EvaluationRecord], str, int]:
    """In a worker: attack a share, or write the certificates of all. (What was found, what is wrong, exit code)."""
    if not Path(path).exists():
        return [], f"{path}: is not there on this node; it must be shared by all nodes under one path", 2
    try:
        if share is not None:
            attack_share(path, share, on_data, **how)
            return [], "", 0
        runs = evaluate_elsewhere(path, on_data, **how) if on_data else [evaluate_run(path, **how)]
    except LlrflowError as error:  # by value: it would not survive the way as an exception
        return [], str(error), error.exit_code
    return [run.evaluation for run in runs], "", 0
