"""Stronger attacks on the best trials of a sweep, as tasks of Ray: each is an evaluation of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import ray
from ray.exceptions import RayError, RayTaskError

from llrflow.base.errors import line_of
from llrflow.runs.records import Images
from llrflow.runs.reevaluate import evaluate_run
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.running.agenda import Agenda
from llrflow.sweep.running.budget import Budget
from llrflow.sweep.running.cluster import trial_resources
from llrflow.sweep.space.trials import Trial
from llrflow.sweep.tracking.publisher import Publisher
from llrflow.sweep.tracking.storage import Storage

PAUSE = 2.0
"""Seconds between two looks at the clock."""


def escalate(
    sweep: Sweep, storage: Storage, agenda: Agenda, publisher: Publisher, budget: Budget, address: str
) -> None:
    """Attack the finalists with the preset of `escalate`, and publish what is left of each as it ends.

    Ends early when the budget is spent. An attack that fails is said, and is no error.
    """
    if sweep.escalate is None:
        return
    attacks, wanted, trials = sweep.escalate.attacks, trial_resources(sweep, address), agenda.finalists()
    for trial, problem in _attacked(sweep, storage, trials, wanted, budget.stop_all):
        record = agenda.look_again(trial.number)
        left = f"failed: {problem}" if record.escalated is None else f"leaves {record.escalated.robust:.2%}"
        publisher.copy(trial.name)
        publisher.view.say(f"trial {trial.number}: {attacks} {left}")


def _attacked(
    sweep: Sweep,
    storage: Storage,
    trials: Sequence[Trial],
    wanted: dict[str, float],
    late: Callable[[], bool],
) -> Iterator[tuple[Trial, str]]:
    """Attack the runs of `trials` with the preset of `escalate`, and yield each as it ends, with what went wrong if
    anything did.

    Ends early when it is `late`. A task asks for what a trial `wanted`. What it finds is in the run folder, and an
    evaluation that was interrupted goes on there.
    """
    custom = {name: amount for name, amount in wanted.items() if name not in ("cpu", "gpu")}
    options = {"num_cpus": wanted["cpu"], "num_gpus": wanted["gpu"], "resources": custom}
    assert sweep.escalate is not None
    attack, preset = ray.remote(**options, max_retries=sweep.budget.retries)(_attack), sweep.escalate.attacks
    cache, waiting = str(storage.cache), {}
    for trial in trials:
        run, devices = str(storage.run(trial.name).path), trial.spec.devices.count
        waiting[attack.remote(run, preset, sweep.decide_on, devices, cache)] = trial
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=PAUSE)
        if late():
            return
        if not ended:
            continue
        (ready,) = ended
        trial = waiting.pop(ready)
        try:
            ray.get(ready)
        except RayError as error:
            yield trial, line_of(error.cause if isinstance(error, RayTaskError) else error)
        else:
            yield trial, ""


def _attack(run: str, attacks: str, images: Images, devices: int | None, cache: str) -> None:
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", cache)
    # A run of this sweep, whose plugins its driver was told to import; this node may be another than it was trained on.
    evaluate_run(run, attacks=attacks, devices=devices, images=images, trust_plugins=True)
