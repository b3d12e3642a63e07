"""A sweep on a named cluster of several nodes (processes of this machine), one of which dies."""

import json
import time

import pytest

pytestmark = pytest.mark.long


def test_a_node_dies_and_every_trial_ends(cluster, wait_for, sweeping, write_spec, start, tmp_path, llrflow_command):
    changes = {"evaluate.attacks.pgd": None, "train.steps": 200, "checkpoint.every": 20, "sweep.rung.every": 100}
    path = write_spec(tmp_path / "spec.yaml", sweeping(trials=3, concurrency=None), changes)
    folder, (address, control) = tmp_path / "out", cluster(cpus=1)
    process = start(["sweep", path, "--out", folder, "--address", address, "--json"], tmp_path)
    wait_for(folder / "runs", process)
    while not list(folder.glob("runs/*/checkpoints/manifests/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (control / "kill").touch()
    wait_for(control / "killed", process)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert [(trial["state"], trial["step"]) for trial in trials] == [("finished", 200)] * 3
    for trial in trials:
        mine, alone = folder / "runs" / trial["run"], tmp_path / trial["run"]
        code, _, err = llrflow_command("run", mine / "spec.yaml", "--out", alone, cwd=tmp_path)
        assert code == 0, err
        assert (mine / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
