"""Sweeps on a real Ray of their own: tiny runs on digits."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from damages import Damaging, cases_of, report

import llrflow
from llrflow.spec.resolve import spec_hash

pytestmark = pytest.mark.slow

COMMON = {"evaluate.attacks.pgd": None}


def listed(folder):
    return sorted(path.name for path in (folder / "runs").iterdir())


@pytest.fixture(scope="module")
def swept(sweeping, write_spec, tmp_path_factory, llrflow_command, record_of):
    """(folder, its record, standard error) of a sweep of four trials, one of which diverges, with two finalists."""
    rates = {"type": "choice", "values": [0.01, 0.02, 0.03, 1e30], "path": "optimizer.learning_rate"}
    stronger = {"top": 2, "attacks": "quick"}
    block = {"search": {"type": "grid"}, "trials": None, "escalate": stronger, "trackers": {"tensorboard": {}}}
    spec = sweeping(parameters={"rate": rates}, decide_on="validation", **block)
    changes = COMMON | {"data.validation": 300}
    path = write_spec(tmp_path_factory.mktemp("sweep") / "spec.yaml", spec, changes)
    code, out, err = llrflow_command("sweep", path, "--out", path.parent / "out", cwd=path.parent)
    assert code == 0, err
    assert "best: trial" in out
    assert re.search(r"^trial 3 \(rate 1e\+30\) failed: NonFiniteError: .*\(traceback: ", out, re.MULTILINE), out
    return path.parent / "out", record_of(path.parent / "out"), err


def test_every_trial_is_accounted_for(swept):
    folder, record, err = swept
    assert record["state"] == "finished" and len(record["trials"]) == 4
    assert [trial["state"] for trial in record["trials"]] == ["finished"] * 3 + ["failed"]
    assert [trial["parameters"]["rate"] for trial in record["trials"]] == [0.01, 0.02, 0.03, 1e30]
    for trial in record["trials"][:3]:
        assert [look["step"] for look in trial["rungs"]] == [4, 8, 12] and trial["step"] == 12
        assert trial["value"] == trial["rungs"][-1]["worst_case.accuracy"]
        evaluation = json.loads((folder / "runs" / trial["run"] / "evaluation" / "12.json").read_text())
        assert trial["robust"] == evaluation["worst_case"]["accuracy"]
        assert trial["nominal"] == evaluation["nominal"]["accuracy"]
        assert 0 <= trial["gamma"] == trial["rungs"][-1]["gamma.pgd.mean"]
    failed = record["trials"][3]
    assert "not finite at step" in failed["error"] and "NonFiniteError" in failed["traceback"]
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [trial["state"] for trial in record["trials"]]
    assert float(rows[0]["value"]) == record["trials"][0]["value"]
    lines = err.splitlines()
    assert len([line for line in lines if re.match(r"\d of 4: trial \d (finished|failed)", line)]) == 4
    assert len([line for line in lines if re.match(r"trial \d: quick leaves \d+\.\d\d%$", line)]) == 2
    assert len(lines) == 6, "Ray is to be silent"


def test_the_best_two_are_attacked_with_the_preset(swept):
    folder, record, _ = swept
    finished = sorted(record["trials"][:3], key=lambda trial: -trial["value"])
    assert [trial["escalated"] is not None for trial in finished] == [True, True, False]
    for trial in finished[:2]:
        (path,) = (
            path
            for path in (folder / "runs" / trial["run"] / "validation").glob("12-*.json")
            if set(json.loads(path.read_text())["attacks"]) == {"fgsm", "pgd"}
        )
        evaluation = json.loads(path.read_text())
        assert evaluation["attacks"]["pgd"]["attack"]["steps"] == 20
        assert trial["escalated"]["robust"] == evaluation["worst_case"]["accuracy"]
    table = (folder / "trials.csv").read_text()
    assert str(finished[0]["escalated"]["robust"]) in table


def test_validation_images_decide_and_test_images_are_for_the_evaluation(swept):
    folder, record, _ = swept
    assert record["decided_on"] == "validation"
    assert "chosen on the validation images" in (folder / "best.yaml").read_text().splitlines()[0]
    for trial in record["trials"][:3]:
        run = folder / "runs" / trial["run"]
        looks = [json.loads(path.read_text()) for path in run.glob("validation/*.json")]
        assert {(look["images"], look["n"]) for look in looks} == {("validation", 300)}
        assert {look["checkpoint"] for look in looks} == {4, 8, 12}
        assert [path.name for path in run.glob("evaluation/*.json")] == ["12.json"]
        evaluation = json.loads((run / "evaluation" / "12.json").read_text())
        assert (evaluation["images"], evaluation["n"]) == ("test", 360)
        assert json.loads((run / "run.json").read_text())["data"]["train"] == 1137


def test_trackers_are_shown_looks_evaluations_and_parameters(swept, events_in):
    folder, record, _ = swept
    for trial in record["trials"]:
        numbers, parameters, _ = events_in(folder / "tensorboard" / trial["run"])
        assert parameters["rate"] == trial["parameters"]["rate"]
        looks = [(step, value) for step, tag, value in numbers if tag == "gamma.pgd.mean"]
        assert looks == [(look["step"], look["gamma.pgd.mean"]) for look in trial["rungs"]]
        final = [(step, value) for step, tag, value in numbers if tag == "evaluation.worst_case.accuracy"]
        assert final == ([(12, trial["robust"])] if trial["state"] == "finished" else [])


def test_one_compilation_a_worker(swept):
    _, record, _ = swept
    assert 1 <= len(record["workers"]) <= 2  # a trial that failed leaves its worker to others
    for worker in record["workers"]:
        assert set(worker["step_compilations"].values()) <= {1}
    assert max(worker["trials"] for worker in record["workers"]) >= 2


def test_the_best_is_the_best_and_a_whole_spec(swept, command):
    folder, record, _ = swept
    values = [trial["escalated"]["robust"] for trial in record["trials"] if trial["escalated"]]
    assert record["trials"][record["best"]]["escalated"]["robust"] == max(values)
    assert record["configurations"][0]["trials"] == [record["best"]]
    program = llrflow.compile(llrflow.load_spec(folder / "best.yaml", {"devices.count": 1}))
    assert record["trials"][record["best"]]["run"] == f"tiny-{spec_hash(program.spec)}"
    assert "sweep" not in (folder / "best.yaml").read_text().split("llrflow: 1")[1]


def test_a_trial_is_the_run_that_llrflow_run_makes(swept, tmp_path):
    folder, record, _ = swept
    mine = folder / "runs" / record["trials"][1]["run"]
    llrflow.run(llrflow.load_spec(mine / "spec.yaml"), tmp_path / "alone")
    alone = tmp_path / "alone"
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (mine, alone)]
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    robust = [json.loads((path / "evaluation" / "12.json").read_text())["worst_case"] for path in (mine, alone)]
    assert robust[0]["accuracy"] == pytest.approx(robust[1]["accuracy"], abs=0.01)


def test_a_finished_sweep_is_refused_and_resumed_without_running_anything(swept, command, tmp_path):
    folder = swept[0]
    spec = folder.parent / "spec.yaml"
    code, _, err = command("sweep", spec, "--out", folder)
    assert code == 2 and "holds a sweep; continue it with --resume" in err
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("*") if path.is_file()}
    fewer = ["--set", "sweep.parameters.rate.values=[0.01, 0.02]", "--set", "sweep.escalate=null", "--json"]
    code, out, err = command("sweep", spec, "--out", copy, "--resume", *fewer)
    assert code == 0, err
    assert "1 finished trial(s) are not in the space any more, and in no table; their runs stay: " in err
    assert [t["state"] for t in json.loads(out)["trials"]] == ["finished"] * 2 and json.loads(out)["workers"] == []
    assert {path: path.stat().st_mtime_ns for path in (copy / "runs").rglob("*") if path.is_file()} == before


ON_SWEEP = {
    "runs": lambda folder, command: command("runs", folder, "--json"),
    "report": report,
    "resume": lambda folder, command: command(
        "sweep", folder.parent / "spec.yaml", "--out", folder, "--resume", "--json"
    ),
}


@pytest.fixture
def damaged(swept, command, capsys, tmp_path):
    return Damaging(swept[0].parent, "out", ON_SWEEP, tmp_path / "case", capsys, command)


def test_a_sample_of_damage_is_told_or_changes_nothing(damaged):
    cases = [case for case in cases_of(damaged.whole / "out", ON_SWEEP) if case[0].parts[0] != "runs"]
    codes = damaged.all([case for case in cases if case[2] != "resume"][:25])
    assert 0 < codes.count(2) < 20


@pytest.mark.long
def test_all_damage_is_told_or_changes_nothing(damaged):
    cases = cases_of(damaged.whole / "out", ON_SWEEP)
    reading = [case for case in cases if case[2] != "resume" and "checkpoints" not in case[0].parts]
    resumed = [case for case in cases if case[2] == "resume" and len(case[0].parts) == 1]  # each starts Ray
    codes = damaged.all(reading[:: max(1, len(reading) // 120)] + resumed[:8])
    assert len(codes) >= 120 and codes.count(2) > 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--address", "127.0.0.1:1"], "nobody listens at 127.0.0.1:1"),
        (["--address", "nonsense"], "'nonsense' is no address; give local, auto or HOST:PORT"),
        (["--resume"], "holds no sweep"),
        (["--set", "sweep.metric=robust"], "is not measured at a rung"),
        (["--set", "sweep=null"], "has no `sweep` block"),
    ],
)
def test_bad_input(arguments, says, sweeping, write_spec, command, tmp_path):
    path = write_spec(tmp_path / "spec.yaml", sweeping())
    code, out, err = command("sweep", path, *arguments)
    assert code == 2 and out == "" and says in err and len(err.splitlines()) == 1


@pytest.mark.long
def test_more_than_the_machine_has(sweeping, write_spec, llrflow_command, tmp_path):
    path = write_spec(tmp_path / "spec.yaml", sweeping(resources={"cpu": 1, "gpu": 1000}))
    code, _, err = llrflow_command("sweep", path, cwd=tmp_path)
    assert code == 2 and "sweep.resources: 1000 GPU a trial, the largest node has 0; ask for less" in err


LONG = {
    **COMMON,
    "train.steps": 400,
    "train.log_every": 10,
    "checkpoint.every": 20,
    "sweep.rung.every": 100,
    "sweep.trials": 3,
    "sweep.scheduler": {"type": "asha", "grace_period": 2, "reduction_factor": 2},
}


def wait_for(found, process, seconds=200):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


def steps_of(folder):
    """The newest checkpoint of each run."""
    manifests = folder.glob("runs/*/checkpoints/manifests/*.json")
    found = {}
    for path in manifests:
        name = path.parts[-4]
        found[name] = max(found.get(name, 0), int(path.stem))
    return found


def workers_of(folder):
    """Processes that hold the lock of a run folder."""
    found = {}
    for lock in folder.glob("runs/*/.lock"):
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in line and fields[5].endswith(f":{inode}"):
                found[lock.parent.name] = int(fields[4])
    return found


@pytest.mark.long
def test_a_killed_worker_and_a_killed_driver_lose_at_most_a_checkpoint_interval(
    sweeping, write_spec, start, tmp_path, llrflow_command, numbers_of, record_of
):
    path = write_spec(tmp_path / "spec.yaml", sweeping(), LONG)
    folder = tmp_path / "out"
    process = start(["sweep", path, "--out", folder], tmp_path)
    try:
        name = wait_for(lambda: next((n for n, s in steps_of(folder).items() if 20 <= s < 300), None), process)
        worker = wait_for(lambda: workers_of(folder).get(name), process)
        os.kill(worker, signal.SIGKILL)
        before = steps_of(folder)
        # Another process goes on with the trial, from its checkpoint.
        wait_for(lambda: workers_of(folder).get(name, worker) != worker, process)
        wait_for(lambda: steps_of(folder).get(name, 0) > before[name], process)
    finally:
        process.kill()
        process.communicate()
    wait = time.monotonic() + 60
    while workers_of(folder) and time.monotonic() < wait:
        time.sleep(0.1)  # the workers of a dead driver end by themselves
    before = steps_of(folder)
    code, out, err = llrflow_command("sweep", path, "--out", folder, "--resume", "--json", cwd=tmp_path)
    assert code == 0, err
    record = json.loads(out)
    assert {trial["state"] for trial in record["trials"]} <= {"finished", "stopped"} and record["best"] is not None
    for trial in record["trials"]:
        assert trial["step"] >= before.get(trial["run"], 0)
    done = next(trial for trial in record["trials"] if trial["state"] == "finished")
    alone = llrflow_command(
        "run", folder / "runs" / done["run"] / "spec.yaml", "--out", tmp_path / "alone", cwd=tmp_path
    )
    assert alone[0] == 0, alone[2]
    mine, undisturbed = ((f / "metrics.jsonl").read_text() for f in (folder / "runs" / done["run"], tmp_path / "alone"))
    assert mine == undisturbed
    assert record == {"sweep": str(folder), **record_of(folder)}

    stopped = [trial for trial in record["trials"] if trial["state"] == "stopped"]
    for trial in stopped[:1]:  # what a scheduler stopped is an ordinary run, which `llrflow run` finishes
        run = folder / "runs" / trial["run"]
        code, _, err = llrflow_command("run", run / "spec.yaml", "--out", run, cwd=tmp_path)
        assert code == 0 and f"continuing from step {trial['step']} of 400" in err


@pytest.mark.long
def test_hyperband_lets_trials_wait_and_go_on(sweeping, write_spec, tmp_path, llrflow_command):
    spec = sweeping(trials=5, scheduler={"type": "hyperband"})  # brackets of 2 trials for 3 rungs, and of 3 for 1
    path = write_spec(tmp_path / "spec.yaml", spec, COMMON)
    code, out, err = llrflow_command("sweep", path, "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert code == 0, err
    trials = json.loads(out)["trials"]
    steps = [trial["step"] for trial in trials]
    assert [trial["state"] for trial in trials[:2]] == ["finished"] * 2
    assert sorted(steps[2:])[:2] == [4, 4] and max(steps[2:]) > 4, steps
    assert all(len(trial["rungs"]) == trial["step"] // 4 for trial in trials), "a rung is reported once"


@pytest.mark.long
def test_ctrl_c_keeps_everything_and_says_how_to_go_on(sweeping, write_spec, start, tmp_path, record_of):
    path = write_spec(tmp_path / "spec.yaml", sweeping(), {**COMMON, "train.steps": 100_000, "sweep.rung.every": 20})
    folder = tmp_path / "out"
    process = start(["sweep", path, "--out", folder], tmp_path)
    try:
        wait_for(lambda: steps_of(folder), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "the sweep was stopped; the same command with --resume continues it"
    record = record_of(folder)
    assert record["state"] == "interrupted" and record["best"] is None
    assert {trial["state"] for trial in record["trials"]} == {"unfinished", "waiting"}
    assert max(trial["step"] for trial in record["trials"]) >= 4


@pytest.mark.long
def test_a_budget_of_failures_ends_the_sweep(sweeping, write_spec, tmp_path, llrflow_command):
    rates = {"type": "choice", "values": [1e30, 2e30, 3e30, 4e30], "path": "optimizer.learning_rate"}
    block = {"parameters": {"rate": rates}, "search": {"type": "grid"}, "trials": None, "concurrency": 1}
    path = write_spec(tmp_path / "spec.yaml", sweeping(**block, budget={"failures": 1}), COMMON)
    code, out, err = llrflow_command("sweep", path, "--out", tmp_path / "out", "--json", cwd=tmp_path)
    record = json.loads(out)
    states = [trial["state"] for trial in record["trials"]]
    assert code == 0 and record["state"] == "out of budget", err
    assert 2 <= states.count("failed") < 4 and record["best"] is None
    code, out, err = llrflow_command("sweep", path, "--resume", "--strict", "--out", tmp_path / "out", "--set",
                                     "sweep.budget.failures=null", cwd=tmp_path)  # fmt: skip
    assert code == 1 and "no trial can win" in out, err
    assert len(re.findall(r"trial \d \(rate .*\) failed: NonFiniteError", out)) == 4
