"""Trackers: what they are shown, what goes wrong, and MLflow and Weights & Biases where they are installed."""

import json
import socket
import struct
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.data.facts import describe
from llrflow.runs.trackers import Tracker
from llrflow.spec.sweep_schema import TensorBoard, Trackers
from llrflow.sweep.running.agenda import Agenda
from llrflow.sweep.running.budget import Budget
from llrflow.sweep.running.task import WORST
from llrflow.sweep.running.tune import TrialCallback
from llrflow.sweep.space.trials import trials_of
from llrflow.sweep.tracking.outcome import trial_record
from llrflow.sweep.tracking.publisher import Publisher
from llrflow.sweep.tracking.storage import Storage
from llrflow.sweep.tracking.trackers import TrialTracker, trackers_of

LOOK = {"step": 4, "worst_case.accuracy": 0.25, "nominal.accuracy": 0.5, "gamma.pgd.mean": 0.1}


TENSORBOARD = Trackers(tensorboard=TensorBoard())


class Listener:
    """Takes down what a tracker would be told."""

    def __init__(self, fails=()):
        self.told, self._fails = [], fails

    def _note(self, what, *values):
        self.told.append((what, *values))
        if what in self._fails:
            raise OSError("the disk is full\nand more")

    def start(self, shown):
        self._note("start", shown.name, shown.config)

    def log(self, shown, numbers):
        self._note("result", shown.name, numbers)

    def end(self, shown, failed):
        self._note("end", shown.name, failed)

    def close(self):
        self._note("close")


@pytest.fixture
def watched(sweeping, tmp_path):
    """watched(listener) -> (watch, publisher, trials): a sweep's callback, as Tune calls it, and its one tracker's."""

    def make(listener, **fields):
        spec = llrflow.load_spec(sweeping(**fields))
        trials, storage = trials_of(spec, describe), Storage(tmp_path / "sweep")
        stack.enter_context(storage.owned())
        tracker = TrialTracker(Tracker("sweep.trackers.mlflow", listener), storage, spec.sweep.metrics)
        agenda = Agenda(spec, storage, trials)
        publisher = Publisher(spec, storage, agenda.records.values(), True, trackers=[tracker])
        return TrialCallback(spec.sweep, storage, agenda, publisher, Budget(spec.sweep)), publisher, trials

    with ExitStack() as stack:
        yield make


def of_tune(trial, **last):
    error = ValueError("it died")
    return SimpleNamespace(
        config={"trial": {"number": trial.number, "name": trial.name}}, last_result=last, get_error=lambda: error
    )


def result(**more):
    return {**LOOK, "worker": "a:1", "busy": 1.0, "compilations": 0, "step_compilations": 0, "pid": 3, **more}


def test_a_tracker_is_shown_parameters_by_name_and_what_looks_measured(watched):
    listener = Listener()
    watch, publisher, trials = watched(listener, seeds=2)
    first, second = trials[0], trials[1]
    for trial in (first, second):
        watch.on_trial_start(0, [], of_tune(trial))
    watch.on_trial_result(0, [], of_tune(first), result(run=first.name, objective=-WORST))
    watch.on_trial_error(0, [], of_tune(first))
    failed = {key: value for key, value in result().items() if key not in LOOK}
    watch.on_trial_result(
        0, [], of_tune(second), {**failed, "run": second.name, "step": 0, "worst_case.accuracy": -WORST}
    )
    for tracker in publisher.trackers:
        tracker.close()
    expected = [
        ("start", trial.name, {"seed": trial.seed, "lambda": trial.parameters["lambda"], "mu": trial.parameters["mu"]})
        for trial in (first, second)
    ]
    assert listener.told == [
        *expected,
        ("result", first.name, LOOK),
        ("end", first.name, True),
        ("end", second.name, False),
        ("close",),
    ]


def test_a_trial_that_finished_is_shown_with_its_evaluation(watched):
    listener = Listener()
    watch, publisher, (trial, *_) = watched(listener)
    watch.on_trial_start(0, [], of_tune(trial))
    waiting = trial_record(publisher._spec, publisher._storage, trial)
    publisher.trackers[0].end(
        waiting.model_copy(update={"state": "finished", "step": 12, "nominal": 0.9, "robust": 0.4})
    )
    numbers = {"step": 12, "evaluation.nominal.accuracy": 0.9, "evaluation.worst_case.accuracy": 0.4}
    assert listener.told[1:] == [("result", trial.name, numbers),
                                 ("end", trial.name, False)]  # fmt: skip


@pytest.mark.parametrize("where", ["start", "result", "end", "close"])
def test_one_that_fails_is_left_out_and_said_once(watched, capsys, where):
    listener = Listener({where})
    watch, publisher, trials = watched(listener)
    for trial in trials[:2]:
        watch.on_trial_start(0, [], of_tune(trial))
        watch.on_trial_result(0, [], of_tune(trial), result(run=trial.name))
        watch.on_trial_complete(0, [], of_tune(trial, state="running", step=4))
    publisher.trackers[0].close()
    assert [what for what, *_ in listener.told].count(where) == 1 and listener.told[-1][0] == where
    assert capsys.readouterr().err == "sweep.trackers.mlflow is left out from now on: OSError: the disk is full\n"


def test_tensorboard_has_the_looks_and_the_parameters(watched, events_in, tmp_path):
    model = {"type": "choice", "values": [{"type": "mlp", "widths": [8]}]}
    rate = {"type": "uniform", "low": 0.001, "high": 0.1}
    watch, publisher, trials = watched(Listener(), parameters={"model": model, "optimizer.learning_rate": rate})
    spec = publisher._spec.model_copy(update={"sweep": watch._sweep.model_copy(update={"trackers": TENSORBOARD})})
    publisher.trackers = trackers_of(spec, publisher._storage)
    for trial in trials[:2]:
        watch.on_trial_start(0, [], of_tune(trial))
        for step in (4, 8):
            watch.on_trial_result(
                0, [], of_tune(trial), result(run=trial.name, step=step, **{"nominal.accuracy": step / 16})
            )
    watch.on_trial_error(0, [], of_tune(trials[0]))
    publisher.trackers[0].close()
    for trial in trials[:2]:
        numbers, parameters, metrics = events_in(tmp_path / "sweep" / "tensorboard" / trial.name)
        looks = [number for number in numbers if number[1] == "nominal.accuracy"]
        assert looks == [(4, "nominal.accuracy", 0.25), (8, "nominal.accuracy", 0.5)]
        assert {tag for _, tag, _ in numbers} == LOOK.keys() - {"step"} == metrics
        assert parameters == {"seed": 0, "model": '{"type": "mlp", "widths": [8]}',
                              "optimizer.learning_rate": trial.parameters["optimizer.learning_rate"]}  # fmt: skip


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_without_its_package_it_says_what_to_install(sweeping, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spec = llrflow.load_spec(sweeping(trackers={kind: {}}))
    with pytest.raises(SpecError, match=rf"sweep\.trackers\.{kind}: needs {kind}; pip install 'llrflow\[{kind}\]'"):
        trackers_of(spec, Storage(tmp_path))
    assert trackers_of(llrflow.load_spec(sweeping(trackers={kind: None})), Storage(tmp_path)) == []


def test_wrong_blocks(sweeping):
    with pytest.raises(SpecError, match="did you mean 'wandb'"):
        llrflow.load_spec(sweeping(trackers={"wandbb": {}}))
    with pytest.raises(SpecError, match=r"sweep\.trackers\.wandb\.mode = 'off'"):
        llrflow.load_spec(sweeping(trackers={"wandb": {"mode": "off"}}))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_that_cannot_write_is_one_line(sweeping, tmp_path):
    pytest.importorskip("mlflow")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        (tmp_path / "file").touch()
        for uri in (
            f"http://127.0.0.1:{taken.getsockname()[1]}",
            f"sqlite:///{tmp_path}/file/mlflow.db",
            "nonsense://x",
        ):
            spec = llrflow.load_spec(sweeping(trackers={"mlflow": {"tracking_uri": uri}}))
            with pytest.raises(SpecError, match=r"sweep\.trackers\.mlflow: .*; give a `tracking_uri` that can be"):
                trackers_of(spec, Storage(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_key_is_one_line(sweeping, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    spec = llrflow.load_spec(sweeping(trackers={"wandb": {}}))
    with pytest.raises(SpecError, match=r"sweep\.trackers\.wandb: .*API key.*; set WANDB_API_KEY, or `mode: offline`"):
        trackers_of(spec, Storage(tmp_path / "sweep"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_in_mlflow(sweeping, write_spec, tmp_path, llrflow_command, record_of):
    """And again, after it has grown: the same run for the same trial, no number twice."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spec = sweeping(trials=2, trackers={"mlflow": {"tracking_uri": uri, "tags": {"of": "me"}}}, scheduler="asha")
    path = write_spec(tmp_path / "spec.yaml", spec, {"evaluate.attacks.pgd": None})
    for more in ([], ["--resume", "--set", "sweep.trials=3"]):
        code, _, err = llrflow_command("sweep", path, "--out", tmp_path / "out", *more, "--json", cwd=tmp_path)
        assert code == 0 and "left out" not in err, err
    trials = {trial["run"]: trial for trial in record_of(tmp_path / "out")["trials"]}
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.info.run_name for run in found) == sorted(trials) and len(trials) == 3
    for run in found:
        trial = trials[run.info.run_name]
        values = {"seed": trial["seed"], **trial["parameters"]}
        assert run.data.params == {name: str(value) for name, value in values.items()}
        assert run.info.status == "FINISHED" and run.data.tags["of"] == "me"
        looks = client.get_metric_history(run.info.run_id, "gamma.pgd.mean")
        assert [(at.step, at.value) for at in looks] == [(at["step"], at["gamma.pgd.mean"]) for at in trial["rungs"]]
        if trial["state"] == "finished":
            assert run.data.metrics["evaluation.worst_case.accuracy"] == trial["robust"]


def records_in(file):
    """The records of a file of Weights & Biases: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, parts = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


@pytest.mark.long
def test_a_sweep_in_wandb_offline(sweeping, write_spec, tmp_path, llrflow_command, record_of):
    pytest.importorskip("wandb")
    spec = sweeping(trials=2, trackers={"wandb": {"mode": "offline"}})
    path = write_spec(tmp_path / "spec.yaml", spec, {"evaluate.attacks.pgd": None})
    code, _, err = llrflow_command("sweep", path, "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert code == 0 and "left out" not in err, err
    trials = {trial["run"]: trial for trial in record_of(tmp_path / "out")["trials"]}
    files = list((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        lines = records_in(file)
        run = next(line.run for line in lines if line.WhichOneof("record_type") == "run")
        trial = trials[run.display_name]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert run.project == "tiny" and run.run_group == "out" and run.run_id == f"out-{trial['run']}"
        assert config["lambda"] == trial["parameters"]["lambda"] and config["seed"] == trial["seed"]
        history = [
            {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.history.item}
            for line in lines
            if line.WhichOneof("record_type") == "history"
        ]
        assert [at["worst_case.accuracy"] for at in history] == [at["worst_case.accuracy"] for at in trial["rungs"]]
        assert history[-1]["evaluation.worst_case.accuracy"] == trial["robust"]
