"""A sweep on a named cluster of several nodes (processes of this machine): one dies, then the driver."""

import json
import time

import psutil
import pytest

pytestmark = pytest.mark.long


def steps_of(folder):
    """The newest checkpoint of each run."""
    found = {}
    for path in folder.glob("runs/*/checkpoints/manifests/*.json"):
        found[path.parents[2].name] = max(found.get(path.parents[2].name, 0), int(path.stem))
    return found


def wait_until(holds, process=None, seconds=240):
    end = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def workers():
    return [p for p in psutil.process_iter(["name"]) if (p.info["name"] or "").startswith("ray::TrialRunn")]


def test_a_node_and_then_the_driver_die_and_every_trial_ends(
    cluster, wait_for, sweeping, write_spec, start, tmp_path, llrflow_command
):
    changes = {"evaluate.attacks.pgd": None, "train.steps": 200, "checkpoint.every": 20, "sweep.rung.every": 100}
    path = write_spec(tmp_path / "spec.yaml", sweeping(trials=4, concurrency=None), changes)
    folder, (address, control) = tmp_path / "out", cluster(cpus=1)
    arguments = ["sweep", path, "--out", folder, "--address", address, "--json"]
    process = start(arguments, tmp_path)
    try:
        wait_until(lambda: steps_of(folder), process)
        (control / "kill").touch()
        wait_for(control / "killed", process)
        wait_until(lambda: list(folder.glob("runs/*/evaluation/200.json")), process)  # one has finished
        wait_until(lambda: any(20 <= step < 200 for step in steps_of(folder).values()), process)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not workers(), seconds=60)  # those of a dead driver end by themselves
    finished = {run: (run / "evaluation/200.json").stat().st_mtime_ns for run in folder.glob("runs/*")
                if (run / "evaluation/200.json").exists()}  # fmt: skip
    code, out, err = llrflow_command(*arguments, "--resume", cwd=tmp_path)
    assert code == 0, err
    trials = json.loads(out)["trials"]
    assert [(trial["state"], trial["step"]) for trial in trials] == [("finished", 200)] * 4
    assert finished and {run: (run / "evaluation/200.json").stat().st_mtime_ns for run in finished} == finished
    for trial in trials:
        mine, alone = folder / "runs" / trial["run"], tmp_path / trial["run"]
        code, _, err = llrflow_command("run", mine / "spec.yaml", "--out", alone, cwd=tmp_path)
        assert code == 0, err
        assert (mine / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
        ours, theirs = (json.loads((run / "evaluation/200.json").read_text()) for run in (mine, alone))
        assert ours["network_sha256"] == theirs["network_sha256"]
