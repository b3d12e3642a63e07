"""A sweep of a thousand trials: what its driver takes. The trials leave the records of one that was really run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRIALS, RUNGS = 1000, 10
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def figures(sweeping, write_spec, tmp_path_factory, llrflow_command, record_of):
    """(figures of idle_trials.py, the record) of a thousand trials with ten looks each."""
    folder = tmp_path_factory.mktemp("thousand")
    changes = {"train.steps": RUNGS, "train.log_every": 1, "sweep.rung.every": 1}
    spec = write_spec(folder / "spec.yaml", sweeping(trials=TRIALS), changes)
    code, _, err = llrflow_command("sweep", spec, "--set", "sweep.trials=1", "--out", folder / "one", cwd=folder)
    assert code == 0, err
    (real,) = (folder / "one" / "runs").iterdir()
    command = [sys.executable, HERE / "idle_trials.py", folder / "figures.json", real, "sweep", spec]
    done = subprocess.run([*map(str, command), "--out", str(folder / "out")], capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"}, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "figures.json").read_text())
    print(found)
    return found, record_of(folder / "out")


def test_all_of_them_are_on_record(figures):
    _, record = figures
    assert [trial["state"] for trial in record["trials"]] == ["finished"] * TRIALS
    assert {len(trial["rungs"]) for trial in record["trials"]} == {RUNGS} and record["best"] is not None


def test_the_driver_starts_in_seconds_and_stays_small(figures):
    found, _ = figures
    assert found["ready_cpu"] <= 8, "CPU seconds until Ray is asked to start"
    assert found["started_cpu"] - found["ray_cpu"] <= 3, "CPU seconds between Ray's start and the first trial's"
    assert found["driver_peak_mib"] <= 1536


def test_the_driver_does_not_read_every_look_at_each_of_them(figures):
    """Once when it is made and once when the trial has ended, which makes two; and each evaluation."""
    found, _ = figures
    assert found["evaluations_read"] <= TRIALS * (2 * RUNGS + 2)
    assert (found["end_cpu"] - found["ray_cpu"]) / (TRIALS * RUNGS) <= 0.02, "CPU seconds for a look"
