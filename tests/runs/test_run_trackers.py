"""Trackers of a plain run: what they are shown, also when it goes on later, and that they change nothing."""

import json
import signal

import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.program.compile import Program
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.trackers import Tracker
from llrflow.spec.resolve import spec_hash

EVALUATED = {f"evaluation.{name}.accuracy" for name in ("nominal", "worst_case", "attacks.fgsm", "attacks.pgd")}


class Listener:
    """Takes down what a tracker is told."""

    def __init__(self, fails=""):
        self.told, self._fails = [], fails

    def __getattr__(self, what):
        def note(shown=None, more=None):
            self.told.append((what, shown and shown.name, more))
            if what == self._fails:
                raise OSError("no network")

        return note


@pytest.fixture
def listening(monkeypatch):
    """listening(listener): every run from here on is shown to it."""

    def listen(listener):
        monkeypatch.setattr("llrflow.runs.trackers.open_trackers", lambda *a: [Tracker("train.trackers.x", listener)])
        return listener

    return listen


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_shown_what_it_logs_and_how_it_was_evaluated(listening, load, tmp_path, numbers_of, finished):
    listener = listening(Listener())
    done = llrflow.run(load(), tmp_path / "run")
    whats, names, tolds = zip(*listener.told, strict=True)
    assert whats == ("start", "log", "log", "log", "log", "end", "close") and set(names[:-1]) == {"run"}
    assert list(tolds[1:4]) == logged(tmp_path / "run") and tolds[5] is False
    assert tolds[4].keys() == {"step", *EVALUATED}
    assert tolds[4]["evaluation.attacks.pgd.accuracy"] == done.evaluation.attacks["pgd"].accuracy
    assert numbers_of(tmp_path / "run") == numbers_of(finished)


@pytest.mark.parametrize("where", ["start", "log", "end", "close"])
def test_one_that_fails_is_left_out_and_the_run_goes_on(listening, load, tmp_path, capsys, where):
    listener = listening(Listener(where))
    assert llrflow.run(load({"evaluate.attacks": None}), tmp_path / "run").record.state == "finished"
    assert [what for what, *_ in listener.told].count(where) == 1 and listener.told[-1][0] == where
    assert "train.trackers.x is left out from now on: OSError: no network\n" in capsys.readouterr().err


def test_a_run_that_failed_or_was_stopped_says_so(listening, load, tmp_path, monkeypatch):
    listener, original = listening(Listener()), Program.place
    for error, failed in ((ValueError("broken"), True), (Interrupted(signal.SIGTERM, "stopped"), False)):

        def broken(self, batch, step, error=error):
            if step == 6:
                raise error
            return original(self, batch, step)

        monkeypatch.setattr(Program, "place", broken)
        with pytest.raises(type(error)):
            llrflow.run(load(), tmp_path / "run")
        assert listener.told[-2] == ("end", "run", failed)


def test_they_count_for_no_hash_and_are_missed_before_anything_is_written(load, tmp_path, monkeypatch):
    shown = load({"train.trackers": {"wandb": {"project": "p", "mode": "offline"}}})
    assert spec_hash(llrflow.compile(shown).spec) == spec_hash(llrflow.compile(load()).spec)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"train\.trackers\.wandb: needs wandb; pip install 'llrflow\[wandb\]'"):
        llrflow.run(shown, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SpecError, match="did you mean 'mlflow'"):
        load({"train.trackers": {"mlflo": {}}})


@pytest.mark.filterwarnings("ignore")
def test_a_run_in_mlflow(load, tmp_path):
    """And again when it goes on: one run, no number twice."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spec = load({"train.trackers": {"mlflow": {"tracking_uri": uri, "tags": {"of": "me"}}}, "model.widths": [9]})
    for _ in range(2):
        done = llrflow.run(spec, tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["of"]) == ("run", "FINISHED", "me")
    assert run.data.params["model.widths"] == "[9]" and run.data.params["train.steps"] == "12"
    lines = [(line["step"], line["loss"]) for line in logged(tmp_path / "run")]
    assert [(at.step, at.value) for at in client.get_metric_history(run.info.run_id, "loss")] == lines
    assert run.data.metrics["evaluation.worst_case.accuracy"] == done.evaluation.worst_case.accuracy
    assert run.data.metrics.keys() >= EVALUATED


def test_a_run_in_wandb_offline(load, tmp_path):
    pytest.importorskip("wandb")
    spec = load({"train.trackers": {"wandb": {"mode": "offline"}}, "evaluate.attacks": None})
    llrflow.run(spec, tmp_path / "run")
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1
