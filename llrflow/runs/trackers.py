"""Experiment trackers: MLflow, Weights & Biases and TensorBoard, for a run and for the trials of a sweep alike.

One that fails is left out from then on: the truth is in the folder.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llrflow.base.errors import SpecError, line_of
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.records import EvaluationRecord
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Mlflow, RunTrackers, TensorBoard, Wandb

UPLOAD = 120
"""Seconds that Weights & Biases has at the end to send what is left."""

LONGEST, MOST = 6000, 100
"""Characters of a parameter, and parameters at a time, that MLflow takes."""

FIXES = {
    "mlflow": "give a `tracking_uri` that can be written, such as sqlite:///mlflow.db, or that of a server that runs",
    "wandb": "set WANDB_API_KEY, or `mode: offline`",
}
"""What to do when a tracker cannot write, of those that need a package of their own."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a tracker has a run for: a plain run, or a trial."""

    name: str
    """Of its run folder."""
    id: str
    config: Mapping[str, Any]
    """The seed and the values of the spec, by path, or the swept ones by the parameter's name."""


class Tracker:
    """Passes on what there is to show, until the tracker fails; then it says so and is left out."""

    def __init__(self, label: str, sink: Any) -> None:
        """`label` is its place in the spec; `sink` has start, log, end and close, as here."""
        self._label, self._sink = label, sink

    def start(self, shown: Shown) -> None:
        """It begins, or begins again."""
        self._call(lambda sink: sink.start(shown))

    def log(self, shown: Shown, numbers: Mapping[str, float]) -> None:
        """Numbers by name, with the `step` that they belong to."""
        self._call(lambda sink: sink.log(shown, numbers))

    def end(self, shown: Shown, failed: bool = False) -> None:
        """It has ended."""
        self._call(lambda sink: sink.end(shown, failed))

    def close(self) -> None:
        """Nothing more is shown."""
        self._call(lambda sink: sink.close())

    def _call(self, function: Callable[[Any], None]) -> None:
        if self._sink is None:
            return
        try:
            function(self._sink)
        except Exception as error:
            self._sink = None
            print(f"{self._label} is left out from now on: {type(error).__name__}: {line_of(error)}", file=sys.stderr)


def require_trackers(blocks: RunTrackers, path: str, spec: Spec) -> None:
    """Raise SpecError where the package of a tracker that the spec asks for is not installed."""
    for kind, block in blocks:
        if block is not None and kind in FIXES and importlib.util.find_spec(kind) is None:
            place = f"{path}.{kind}"
            where = spec.where(tuple(place.split(".")))
            raise SpecError(where, f"{place}: needs {kind}", f"pip install 'llrflow[{kind}]'")


def open_trackers(blocks: RunTrackers, path: str, spec: Spec, folder: Path) -> list[Tracker]:
    """The trackers of a block at a dotted path of the spec, each having shown that it can write. Raises SpecError."""
    require_trackers(blocks, path, spec)
    makers = {"mlflow": _Mlflow, "wandb": _Wandb, "tensorboard": _TensorBoard}
    found = []
    for kind, block in blocks:
        if block is None:
            continue
        place = f"{path}.{kind}"
        where = spec.where(tuple(place.split(".")))
        try:
            sink = makers[kind](block, spec.name, folder)
        except Exception as error:
            raise SpecError(where, f"{place}: {type(error).__name__}: {line_of(error)}", FIXES.get(kind, "")) from None
        found.append(Tracker(place, sink))
    return found


class RunShower:
    """Shows a plain run: what is logged in training, then its evaluation."""

    def __init__(self, trackers: list[Tracker], shown: Shown) -> None:
        self._trackers, self._shown = trackers, shown

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a training step."""
        for tracker in self._trackers:
            tracker.log(self._shown, {"step": step, **values})

    def evaluation(self, record: EvaluationRecord) -> None:
        """Nominal accuracy, that under each attack and the worst case; and of how many images, if not of all.

        The worst case also within each of several threats.
        """
        shares = {"nominal": record.nominal, "worst_case": record.worst_case}
        shares |= {f"attacks.{name}": made for name, made in record.attacks.items()}
        shares |= {f"threats.{name}.worst_case": made.worst_case for name, made in record.threats.items()}
        drawn = {} if record.subset is None else {"evaluation.images": record.n}
        accuracies = {f"evaluation.{name}.accuracy": share.accuracy for name, share in shares.items()}
        self.metrics(record.checkpoint, {**accuracies, **drawn})


@contextmanager
def run_shown(spec: Spec, folder: Path, digest: str) -> Iterator[RunShower]:
    """Show the run of a spec in `folder` to the trackers of `train.trackers` while the block runs. Raises SpecError."""
    trackers = open_trackers(spec.train.trackers, "train.trackers", spec, folder)
    shown = Shown(folder.name, f"{folder.name}-{digest}", {"seed": spec.seed, **_written(spec)})
    for tracker in trackers:
        tracker.start(shown)
    failed = True
    try:
        yield RunShower(trackers, shown)
        failed = False
    except Interrupted:
        failed = False
        raise
    finally:
        for tracker in trackers:
            tracker.end(shown, failed)
            tracker.close()


def _written(spec: Spec) -> dict[str, Any]:
    """The values that someone wrote, resolved, by dotted path: no defaults, a list as a whole, nothing of a sweep."""
    data, found = json.loads(json.dumps(spec.model_dump(exclude={"sweep"}))), {}
    for path in spec.origins():
        value, parts = data, []
        for part in path.split("."):
            if not isinstance(value, Mapping):
                break
            value = value.get(part)
            parts.append(part)
        if value is not None:
            found[".".join(parts)] = value
    return found


class _Mlflow:
    """One MLflow run for each run folder, also when it goes on later."""

    def __init__(self, block: Mlflow, name: str, folder: Path) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        address = urlsplit(block.tracking_uri or mlflow.get_tracking_uri())
        if address.scheme in ("http", "https"):  # it would try for minutes
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), timeout=5).close()
        self._client = mlflow.MlflowClient(tracking_uri=block.tracking_uri)
        experiment = block.experiment or name
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = known.experiment_id if known else self._client.create_experiment(experiment)
        self._client.set_experiment_tag(self._experiment, "llrflow", name)  # to see that it can write
        self._folder, self._tags = str(folder.absolute()), block.tags
        self._runs: dict[Shown, str] = {}
        self._known: dict[Shown, dict[str, float]] = {}

    def start(self, shown: Shown) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        if shown not in self._runs:
            found = self._client.search_runs([self._experiment], f"tags.llrflow_run = '{shown.id}'")
            mine = next((run for run in found if run.data.tags.get("llrflow_folder") == self._folder), None)
            if mine is None:
                tags = {"llrflow_run": shown.id, "llrflow_folder": self._folder, **self._tags}
                mine = self._client.create_run(self._experiment, tags=tags, run_name=shown.name)
            self._runs[shown], self._known[shown] = mine.info.run_id, dict(mine.data.metrics)
        self._client.update_run(self._runs[shown], status="RUNNING")
        params = [Param(name, str(value)[:LONGEST]) for name, value in shown.config.items()]
        for first in range(0, len(params), MOST):
            self._client.log_batch(self._runs[shown], params=params[first : first + MOST])

    def log(self, shown: Shown, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        known, step, now = self._known[shown], int(numbers["step"]), int(time.time() * 1000)
        if step > known.get("step", 0) or numbers.keys() - known.keys():
            metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()]
            self._client.log_batch(self._runs[shown], metrics=metrics)

    def end(self, shown: Shown, failed: bool) -> None:
        self._client.set_terminated(self._runs.pop(shown), "FAILED" if failed else "FINISHED")

    def close(self) -> None:
        """Every number was written when it came."""


class _Wandb:
    """One run of Weights & Biases for each run folder."""

    def __init__(self, block: Wandb, name: str, folder: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        where = {"project": block.project or name, "group": block.group or folder.name, "entity": block.entity}
        # Its files would lie where the process was started.
        self._where = {**where, "mode": block.mode, "dir": str(folder)}
        self._settings = wandb.Settings(console="off", silent=True, finish_timeout=UPLOAD)
        online = (block.mode or wandb.setup().settings.mode) == "online"
        if online and not wandb.login(prompt=False):
            raise ValueError("there is no API key")
        self._runs: dict[Shown, Any] = {}

    def start(self, shown: Shown) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        names = {"name": shown.name, "id": shown.id, "config": dict(shown.config)}
        if shown not in self._runs:
            how = {"resume": "allow", "reinit": "create_new", "settings": self._settings}
            self._runs[shown] = wandb.init(**self._where, **names, **how)

    def log(self, shown: Shown, numbers: Mapping[str, float]) -> None:
        self._runs[shown].log(dict(numbers), step=int(numbers["step"]))

    def end(self, shown: Shown, failed: bool) -> None:
        self._runs.pop(shown).finish(exit_code=int(failed))

    def close(self) -> None:
        """Each run has sent what it had."""


class _TensorBoard:
    """The numbers of each below the folder, and at its end its values, for the page HParams."""

    def __init__(self, block: TensorBoard, name: str, folder: Path) -> None:
        self._path = folder / "tensorboard"
        self._writers: dict[Any, tuple[Any, dict[str, float]]] = {}

    def start(self, shown: Shown) -> None:
        from tensorboardX import SummaryWriter

        if shown not in self._writers:
            self._writers[shown] = SummaryWriter(str(self._path / shown.name)), {}

    def log(self, shown: Shown, numbers: Mapping[str, float]) -> None:
        writer, last = self._writers[shown]
        for name in numbers.keys() - {"step"}:
            writer.add_scalar(name, numbers[name], int(numbers["step"]))
            last[name] = numbers[name]
        writer.flush()

    def end(self, shown: Shown, failed: bool) -> None:
        from tensorboardX.summary import hparams

        writer, last = self._writers.pop(shown)
        plain = (bool, int, float, str)
        values = {name: v if isinstance(v, plain) else json.dumps(v) for name, v in shown.config.items()}
        for part in hparams(hparam_dict=values, metric_dict=last):
            writer.file_writer.add_summary(part)
        writer.close()

    def close(self) -> None:
        """Each has closed its file."""
