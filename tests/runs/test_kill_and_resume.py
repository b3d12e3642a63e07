"""A run that is killed or asked to stop at any instant goes on to the numbers of an unbroken one, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

LONG = {
    "train.steps": 600,
    "train.log_every": 7,
    "checkpoint.every": 60,
    "devices.count": 2,
    "data.extra": {"name": "synthetic", "options": {"height": 8, "width": 8, "channels": 1}, "share": 0.3},
    "evaluate.batch_size": 60,
    # Terms of two plugins, one of which keeps a state.
    "objective.terms.lin": {"type": "elle_a", "sensitivity": 0.5, "decay": 0.9, "weight": 10.0},
    "objective.terms.align": {"type": "grad_align", "weight": 0.1},
    "objective.terms.slope": None,
    # Its verdicts must reach the disk before it ends.
    "evaluate.attacks.slow": {"type": "pgd", "steps": 40, "restarts": 25},
}
SAVING_OFTEN = "import llrflow.runs.verdicts as v; v.SAVE_SECONDS = 0.2; from llrflow.cli import main; main()"


@pytest.fixture(scope="module")
def long_spec(tmp_path_factory, tiny, write_spec, repository):
    """A spec file whose training and evaluation take seconds."""
    plugins = [str(repository / "plugins" / name / f"{name}.py") for name in ("elle", "grad_align")]
    return write_spec(tmp_path_factory.mktemp("spec") / "long.yaml", tiny(), {"plugins": plugins, **LONG})


@pytest.fixture(scope="module")
def unbroken(long_spec, tmp_path_factory, llrflow_command):
    """Folder of the spec's run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    code, _, err = llrflow_command("run", long_spec, "--out", folder, cwd=folder.parent)
    assert code == 0, err
    return folder


@pytest.fixture
def begin(long_spec, tmp_path, start):
    """begin() -> a process that runs the spec in the test's folder."""
    processes = []

    def run():
        program = [sys.executable, "-c", SAVING_OFTEN]
        processes.append(start(["run", long_spec, "--out", tmp_path / "run"], tmp_path, program))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(found, process, seconds=90):
    """Wait until `found()`, while the process lives."""
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def record(folder):
    return json.loads((folder / "run.json").read_text())


def finished_steps(folder):
    return sorted(int(path.stem) for path in (folder / "checkpoints" / "manifests").glob("*.json"))


def end_with(process, signum):
    process.send_signal(signum)
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


def test_killed_and_asked_to_stop_in_training_and_in_evaluation(begin, unbroken, tmp_path, numbers_of):
    folder, rng, trained = tmp_path / "run", random.Random(2), 0.0

    process = begin()
    wait_for((folder / "run.json").exists, process)
    time.sleep(rng.uniform(0, 0.2))
    assert end_with(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert finished_steps(folder) == [] and record(folder)["state"] == "training"

    process = begin()
    wait_for(lambda: finished_steps(folder), process)
    time.sleep(rng.uniform(0, 0.3))
    end_with(process, signal.SIGKILL)
    kept = finished_steps(folder)
    assert 0 < kept[-1] < 600 and record(folder)["state"] == "training"

    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = finished_steps(folder)
        process = begin()
        wait_for(lambda before=before: set(finished_steps(folder)) - set(before), process)
        time.sleep(rng.uniform(0, 0.2))
        returned, _, err = end_with(process, signum)
        assert returned == code, err
        assert f"continuing from step {before[-1]} of 600" in err
        step = record(folder)["step"]
        message = f"stopped at step {step} of 600 and saved; run the same command to continue"
        assert err.splitlines()[-1] == message and "Traceback" not in err
        assert finished_steps(folder)[-1] == step and record(folder)["state"] == "interrupted"
        assert record(folder)["error"] == message
        assert record(folder)["seconds"]["train"] > trained, "the time of a stopped attempt counts"
        trained = record(folder)["seconds"]["train"]

    process = begin()
    wait_for((folder / "evaluation" / "600.fgsm.npz").exists, process)
    returned, _, err = end_with(process, signal.SIGTERM)
    assert returned == 143 and err.splitlines()[-1] == "evaluation stopped and saved; run the same command to continue"
    assert record(folder)["state"] == "interrupted"

    process = begin()
    verdicts = folder / "evaluation" / "600.slow.npz"
    wait_for(verdicts.exists, process)
    _, _, err = end_with(process, signal.SIGKILL)
    assert "continuing from step 600 of 600" in err
    assert record(folder)["state"] == "trained" and not (folder / "evaluation" / "600.json").exists()
    with np.load(verdicts) as stored:
        assert 0 < stored["tried"].max() < 25  # killed halfway through its restarts

    process = begin()
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0 and "continuing from step 600 of 600" in err
    assert numbers_of(folder) == numbers_of(unbroken)
    for name in ("fgsm", "pgd", "slow", "random"):
        with (
            np.load(folder / f"evaluation/600.{name}.npz") as ours,
            np.load(unbroken / f"evaluation/600.{name}.npz") as other,
        ):
            for field in ("tried", "wrong", "value", "loss", "distance", "linearity"):
                np.testing.assert_array_equal(ours[field], other[field], err_msg=f"{name} {field}")
    factor = [json.loads(line)["lin.factor"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert min(factor[kept[-1] // LONG["train.log_every"] :]) > 0, "the state of the term would not matter"
    assert record(folder)["state"] == "finished" and record(folder)["step"] == 600 and not record(folder)["error"]
    assert record(folder)["seconds"].keys() == {"compile", "train", "evaluate"}
    assert not [path for path in folder.rglob("*tmp*") if "orbax" in path.name or path.name.endswith(".tmp")]


def test_a_folder_belongs_to_one_process_at_a_time(begin, tmp_path, command, long_spec):
    folder = tmp_path / "run"
    process = begin()
    wait_for((folder / "run.json").exists, process)
    for arguments in (["run", long_spec, "--out", folder], ["run", long_spec, "--fresh", "--out", folder]):
        code, out, err = command(*arguments)
        assert code == 2 and out == ""
        assert err == f"error: {folder}: is in use by another llrflow process; wait for it, or choose another --out\n"
    assert process.poll() is None, "the second process disturbed the first"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(signum, tmp_path):
    code = (
        "import os, signal, time\n"
        "from llrflow.runs.interrupt import stop_requests\n"
        "with stop_requests() as stop:\n"
        f"    os.kill(os.getpid(), {int(signum)})\n"
        f"    assert stop.signum == {int(signum)}\n"
        f"    os.kill(os.getpid(), {int(signum)})\n"
        "    time.sleep(5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signum and "AssertionError" not in done.stderr
