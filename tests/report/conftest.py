"""Two runs with every study and a sweep's folder, for reports to read."""

import datetime
import shutil

import pytest

import llrflow
from llrflow.runs.folder import RunFolder
from llrflow.runs.reevaluate import evaluate_run
from llrflow.sweep.tracking.outcome import outcome
from llrflow.sweep.tracking.records import SweepRecord, TrialRecord

STUDIES = {
    "evaluate.strength": {"examples": 20, "steps": [1, 2], "restarts": [1, 2], "epsilons": [0.5, 1.0]},
    "evaluate.linearity": {"examples": 20, "radii": [1.0], "steps": 2},
    "evaluate.surface": {"examples": 2, "points": 3},
}


@pytest.fixture(scope="session")
def studied(load, tmp_path_factory):
    """Folder of a run of the tiny spec with every study, and besides an evaluation with a minimum-norm attack."""
    folder = tmp_path_factory.mktemp("studied") / "one"
    llrflow.run(load(STUDIES), folder)
    evaluate_run(folder, attacks={"near": {"type": "deepfool", "steps": 3}})
    return folder


@pytest.fixture
def runs(studied, rewrite, tmp_path):
    """Two such folders, the second with another name and term weight and without its studies."""
    first, second = (shutil.copytree(studied, tmp_path / "runs" / name) for name in ("one", "two"))
    for path in [*second.glob("evaluation/*.s*.json"), *second.glob("evaluation/*.linearity.json")]:
        path.unlink()
    changed = RunFolder(second)
    changed.spec.write_text(changed.spec.read_text().replace("weight: 0.2", "weight: 0.3"))
    rewrite(second / "run.json", name="other")
    return first, second


@pytest.fixture
def swept(studied, load, tmp_path):
    """A sweep's folder: four trials, of which one is masked and one was stopped; the runs of the others are there."""
    from llrflow.sweep.tracking.storage import Storage

    parameters = {
        "lambda": {"type": "loguniform", "low": 0.1, "high": 10.0, "path": "objective.terms.gamma.weight"},
        "model": {"type": "choice", "values": [{"type": "mlp", "widths": [8]}, {"type": "mlp", "widths": [16]}]},
    }
    block = {"parameters": parameters, "trials": 4, "decide_on": "test"}
    spec, storage = load({"sweep": block}), Storage(tmp_path / "sweep")
    for number in (0, 1):
        shutil.copytree(studied, storage.runs / f"trial-{number}")
    trials = [_trial(*row) for row in TRIALS]
    began = datetime.datetime.now(datetime.UTC)
    made = outcome(spec, trials, "finished", began, [])
    assert isinstance(made, SweepRecord)
    made.write(storage.record)
    return storage.path


TRIALS = [
    # number, lambda, nominal, robust, state, masked
    (0, 0.2, 0.90, 0.40, "finished", []),
    (1, 2.0, 0.80, 0.60, "finished", []),
    (2, 9.0, 0.95, 0.70, "finished", ["loss_flat"]),
    (3, 0.3, 0.70, 0.30, "stopped", []),
]


def _trial(number, weight, nominal, robust, state, masked):
    widths = [8] if number % 2 else [16]
    return TrialRecord(
        number=number,
        configuration=number,
        seed=0,
        run=f"trial-{number}",
        parameters={"lambda": weight, "model": {"type": "mlp", "widths": widths}},
        state=state,
        step=12 if state == "finished" else 8,
        steps=12,
        rungs=[{"step": 4, "worst_case.accuracy": robust / 2}, {"step": 8, "worst_case.accuracy": robust}],
        value=robust,
        nominal=nominal,
        robust=robust,
        gamma=0.1,
        masked=masked,
        seconds={"train": 1.0},
        error=None,
        traceback=None,
    )
