"""Experiment trackers: Ray's callbacks for MLflow and Weights & Biases, with the names of the spec; and TensorBoard.

Tune's own view of a trial is one mapping for a worker. A tracker is shown the swept parameters and what each look
measured instead. One that fails is left out for the rest of the sweep: the truth is in the sweep's folder.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llrflow.base.errors import SpecError, line_of
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Mlflow, TensorBoard, Wandb
from llrflow.sweep.space.trials import Trial, sweep_of
from llrflow.sweep.tracking.records import TrialRecord
from llrflow.sweep.tracking.storage import Storage

UPLOAD = 120
"""Seconds that Weights & Biases has at the end to send what is left."""

FIXES = {
    "mlflow": "give a `tracking_uri` that can be written, such as sqlite:///mlflow.db, or that of a server that runs",
    "wandb": "set WANDB_API_KEY, or `mode: offline`",
}
"""What to do when a tracker cannot write, of those that need a package of their own."""


@dataclass(frozen=True, eq=False)
class TrackedTrial:
    """A trial as Ray's callbacks for trackers look at it."""

    name: str
    """Of its run folder."""
    trial_id: str
    config: dict[str, Any]
    """The seed and the swept values, by the parameter's name."""
    local_path: str
    experiment_dir_name: str

    def __str__(self) -> str:
        return self.name


class Tracker:
    """Passes on to a callback of Ray what there is to show. It is called for nothing else, so Tune need not know it."""

    def __init__(self, label: str, callback: Any, storage: Storage, metrics: list[str]) -> None:
        self._label, self._callback, self._storage, self._metrics = label, callback, storage, metrics
        self._shown: dict[str, TrackedTrial] = {}
        """Those that have not ended."""

    def start(self, trial: Trial) -> None:
        """A trial begins, or begins again."""
        config = {"seed": trial.seed, **trial.parameters}
        folder, runs = self._storage.path.name, str(self._storage.runs)
        tracked = TrackedTrial(trial.name, f"{folder}-{trial.name}", config, runs, folder)
        shown = self._shown.setdefault(trial.name, tracked)
        self._call(lambda callback: callback.log_trial_start(shown))

    def look(self, name: str, result: dict[str, Any]) -> None:
        """What a look measured: `step` and the metrics of the sweep, of those that it has."""
        if "nominal.accuracy" in result:
            self._log(name, {key: result[key] for key in ("step", *self._metrics) if key in result})

    def end(self, record: TrialRecord) -> None:
        """A trial has ended; where it finished, its evaluation is shown too."""
        if record.state == "finished":
            final = {"evaluation.nominal.accuracy": record.nominal, "evaluation.worst_case.accuracy": record.robust}
            self._log(record.run, {"step": record.step, **final})
        if shown := self._shown.pop(record.run, None):
            self._call(lambda callback: callback.log_trial_end(shown, failed=record.state == "failed"))

    def close(self) -> None:
        """Wait for what is left to be sent, also of trials that were left where they are."""
        while self._shown:
            _, shown = self._shown.popitem()
            self._call(lambda callback, shown=shown: callback.log_trial_end(shown))
        self._call(lambda callback: callback.on_experiment_end([]))

    def _log(self, name: str, numbers: dict[str, Any]) -> None:
        if shown := self._shown.get(name):
            # Weights & Biases takes this for the step; Tune would have the number of the look there.
            result = {**numbers, "training_iteration": numbers["step"]}
            self._call(lambda callback: callback.log_trial_result(0, shown, result))

    def _call(self, function: Callable[[Any], None]) -> None:
        if self._callback is None:
            return
        try:
            function(self._callback)
        except Exception as error:
            self._callback = None
            print(f"{self._label} is left out from now on: {type(error).__name__}: {line_of(error)}", file=sys.stderr)


def trackers_of(spec: Spec, storage: Storage) -> list[Tracker]:
    """The trackers of a spec's sweep, each having shown that it can write. Raises SpecError."""
    sweep, found = sweep_of(spec), []
    makers = {"mlflow": _mlflow, "wandb": _wandb, "tensorboard": _TensorBoard}
    for kind, block in sweep.trackers:
        if block is None:
            continue
        place = f"sweep.trackers.{kind}"
        where = spec.where(tuple(place.split(".")))
        if kind in FIXES and importlib.util.find_spec(kind) is None:
            raise SpecError(where, f"{place}: needs {kind}", f"pip install 'llrflow[{kind}]'")
        try:
            callback = makers[kind](block, spec.name, storage)
        except Exception as error:
            raise SpecError(where, f"{place}: {type(error).__name__}: {line_of(error)}", FIXES.get(kind, "")) from None
        found.append(Tracker(place, callback, storage, sweep.metrics))
    return found


def _mlflow(block: Mlflow, name: str, storage: Storage) -> Any:
    import mlflow  # pyright: ignore[reportMissingImports]
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Callback(MLflowLoggerCallback):
        """One MLflow run for each run folder, also when the sweep goes on later."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                for run in self._client.search_runs([self._experiment], f"tags.trial_name = '{trial}'"):
                    if run.data.tags.get("llrflow_sweep") == str(storage.path):
                        self._trial_runs[trial], self._known[trial] = run.info.run_id, run.data.metrics
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            numbers = {key: value for key, value in result.items() if key != "training_iteration"}
            known = self._known.get(trial, {})
            if numbers["step"] > known.get("step", 0) or numbers.keys() - known.keys():
                self.mlflow_util.log_metrics(int(numbers["step"]), numbers, self._trial_runs[trial])

        def setup(self, *args: Any, **info: Any) -> None:
            super().setup(*args, **info)
            self._client, self._known = self.mlflow_util._get_client(), {}
            self._experiment = str(self.mlflow_util.experiment_id)
            self._client.set_experiment_tag(self._experiment, "llrflow", name)  # to see that it can write

    address = urlsplit(block.tracking_uri or mlflow.get_tracking_uri())
    if address.scheme in ("http", "https"):  # it would try for minutes
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    tags = {"llrflow_sweep": str(storage.path), **block.tags}
    callback = Callback(block.tracking_uri, experiment_name=block.experiment or name, tags=tags)
    callback.setup()
    return callback


def _wandb(block: Wandb, name: str, storage: Storage) -> Any:
    import ray
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Callback(WandbLoggerCallback):
        """One that says when the process of a trial failed."""

        def _cleanup_logging_actors(self, timeout: int = 0, kill_on_timeout: bool = False) -> None:
            futures = list(self._trial_logging_futures.values())
            ended, _ = ray.wait(futures, num_returns=len(futures), timeout=timeout)
            super()._cleanup_logging_actors(0, kill_on_timeout)
            ray.get(ended)

    where = {"project": block.project or name, "group": block.group or storage.path.name, "entity": block.entity}
    # Ray would keep the files in its folder of the trial, which goes with the sweep.
    callback = Callback(**where, upload_timeout=UPLOAD, mode=block.mode, dir=str(storage.path), resume="allow")
    if block.mode != "offline":
        callback.setup()  # asks for a key, and does nothing else where there is a project
    return callback


class _TensorBoard:
    """The looks of each trial below the sweep's folder, and at its end its parameters, for the page HParams."""

    def __init__(self, block: TensorBoard, name: str, storage: Storage) -> None:
        self._path = storage.path / "tensorboard"
        self._writers: dict[Any, tuple[Any, dict[str, float]]] = {}

    def log_trial_start(self, trial: Any) -> None:
        from tensorboardX import SummaryWriter

        if trial not in self._writers:
            self._writers[trial] = SummaryWriter(str(self._path / str(trial))), {}

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        writer, last = self._writers[trial]
        for name in result.keys() - {"step", "training_iteration"}:
            writer.add_scalar(name, result[name], result["step"])
            last[name] = result[name]
        writer.flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        from tensorboardX.summary import hparams

        writer, last = self._writers.pop(trial)
        plain = (bool, int, float, str)
        values = {name: v if isinstance(v, plain) else json.dumps(v) for name, v in trial.config.items()}
        for part in hparams(hparam_dict=values, metric_dict=last):
            writer.file_writer.add_summary(part)
        writer.close()

    def on_experiment_end(self, trials: Any) -> None:
        """Nothing is left: each trial has closed its file."""
