"""One model over several processes: the numbers of one process, also after one of them was killed."""

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest

import llrflow
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.looks import WORST, is_look

pytestmark = [pytest.mark.slow, pytest.mark.long]

CHANGES = {
    "model": {"type": "cnn", "channels": [4, 8], "dense": 16},
    "optimizer": {"type": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    # The neighbours that examples are mixed with cross from one process to the other.
    "data.mix.mixup": {"type": "mixup", "alpha": 0.5},
    "train.steps": 20,
    "evaluate.attacks.pgd": None,
}


@pytest.fixture(scope="module")
def group(tmp_path_factory, tiny, write_spec, start):
    """group(folder, changes of all, changes by process) -> two processes of 2 devices that train one model."""
    started = []

    def run(folder, changes, own=({}, {})):
        with socket.socket() as found:
            found.bind(("", 0))
            place = f"127.0.0.1:{found.getsockname()[1]}"
        for index in (0, 1):
            path = tmp_path_factory.mktemp("spec") / "spec.yaml"
            write_spec(path, tiny(), {**CHANGES, "devices.count": 2, **changes, **own[index]})
            options = ["--coordinator", place, "--process", index, "--processes", 2, "--out", folder]
            started.append(start(["run", path, *options], path.parent))
        return started[-2:]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ends(processes):
    """(exit code, stdout, stderr) of each, in time for every promise."""
    texts = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def trained(folder):
    """The last checkpoint's state."""
    program = llrflow.compile(llrflow.load_spec(f"{folder}/spec.yaml", {"devices.count": 1}))
    checkpoints = Checkpoints(folder / "checkpoints")
    return checkpoints.restore(program.abstract_state(), checkpoints.steps()[-1])


def manifests(folder):
    return {int(path.stem) for path in (folder / "checkpoints" / "manifests").glob("*.json")}


def wait_for_a_checkpoint(folder, processes):
    before, end = manifests(folder), time.monotonic() + 100
    while not manifests(folder) - before:
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_of_two_devices_train_as_one_of_four(group, load, tmp_path):
    (code, out, err), other = ends(group(tmp_path / "two", {}))
    assert (code, other) == (0, (0, "", "")), err
    assert "worst case" in out and "Gloo" not in out + err
    one = llrflow.run(load({**CHANGES, "devices.count": 4}), out=tmp_path / "one")
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["state"] == "finished" and len(record["devices"]) == 4

    state, single = (trained(tmp_path / name) for name in ("two", "one"))
    assert state.step == single.step == 20
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    evaluation = json.loads((tmp_path / "two" / "evaluation" / "20.json").read_text())
    assert evaluation["attacks"]["fgsm"]["correct"] == one.evaluation.attacks["fgsm"].correct


def test_a_group_that_loses_a_process_or_is_asked_to_stop_continues_to_the_same_numbers(group, tmp_path, numbers_of):
    changes = {"train.steps": 600, "checkpoint.every": 30, "train.log_every": 30}
    for code, _, err in ends(group(tmp_path / "unbroken", changes)):
        assert code == 0, err
    folder = tmp_path / "broken"
    for victim in (1, 0):
        processes = group(folder, changes)
        wait_for_a_checkpoint(folder, processes)
        processes[victim].kill()
        killed, began = ends([processes[victim]])[0], time.monotonic()
        (code, _, err) = ends([processes[1 - victim]])[0]
        assert killed[0] == -signal.SIGKILL and code == 1
        assert time.monotonic() - began < 60
        assert err.splitlines()[-1].startswith(f"error: process {1 - victim} of 2: ") and "Traceback" not in err
        assert "start the same commands again" in err.splitlines()[-1]

    processes = group(folder, changes)
    wait_for_a_checkpoint(folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    stopped = ends(processes)
    assert [code for code, _, _ in stopped] == [143, 143]
    lines = [err.splitlines()[-1] for _, _, err in stopped]
    assert lines[0] == lines[1] and "and saved; run the same command to continue" in lines[0]
    assert f"stopped at step {max(manifests(folder))} of 600" in lines[0]

    for code, _, err in ends(group(folder, changes)):
        assert code == 0, err
    assert numbers_of(folder) == numbers_of(tmp_path / "unbroken")


def test_processes_with_different_specs(group, tmp_path):
    ended = ends(group(tmp_path / "run", {}, own=({}, {"seed": 1})))
    says = "error: --process: = 1 has another spec than process 0; give every process the same spec, --set values"
    for code, _, err in ended:
        assert code == 2 and err.startswith(says) and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_group_looks_at_what_it_trains_and_stops_together(group, tmp_path):
    best = {"every": 5, "patience": 1, "images": 60, "attacks": {"fgsm": "fgsm"}}
    collapses = {"type": "piecewise", "pieces": {0: 0.05, 11: 1e4}}
    changes = {"data.validation": 0.2, "checkpoint.best": best, "train.steps": 100, "threat.epsilon": 0.03}
    (code, out, err), other = ends(group(tmp_path / "run", {**changes, "optimizer.learning_rate": collapses}))
    assert (code, other) == (0, (0, "", "")), err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    looks = [line for line in RunFolder(tmp_path / "run").metric_lines() if is_look(line)]
    assert record["state"] == "finished" and looks[-1]["step"] == record["step"] < 100
    assert max(looks, key=lambda look: look[WORST]) == looks[-2]
    assert f"step {looks[-2]['step']}" in out
