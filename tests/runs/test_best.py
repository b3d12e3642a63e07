"""`checkpoint.best`: looks at images that are never trained on choose a checkpoint, whenever the run is killed."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import llrflow
from llrflow.program.compile import Program
from llrflow.report.read import read
from llrflow.report.tables import best_checkpoints
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.export import export_model
from llrflow.runs.folder import RunFolder
from llrflow.runs.looks import WORST, chosen, is_look
from llrflow.runs.reevaluate import evaluate_run
from llrflow.runs.train import Log

# A rate that is far too large from step 9 on: the network is best at one of the first looks.
BEST = {
    "data.validation": 0.2,
    "train.steps": 20,
    "optimizer.learning_rate": {"type": "piecewise", "pieces": {0: 0.02, 9: 3.0}},
    "threat.epsilon": 0.03,
    "checkpoint": {"every": 3, "keep": 1, "best": {"every": 4, "images": 60}},
    "evaluate.attacks.pgd": None,
}


@pytest.fixture(scope="module")
def kept(load, tmp_path_factory):
    """Folder of a finished run that kept its best checkpoint."""
    folder = tmp_path_factory.mktemp("best") / "run"
    llrflow.run(load(BEST), folder)
    return folder


def looks_of(folder):
    return {line["step"]: line[WORST] for line in RunFolder(folder).metric_lines() if is_look(line)}


def steps_of(folder):
    return Checkpoints(folder / "checkpoints").steps()


def records_of(folder, place):
    """What evaluations found, without times."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / place).glob("*.json")}
    for record in found.values():
        del record["started"], record["sha256"]
        for attack in record["attacks"].values():
            del attack["seconds"]
    return found


def same(folder, other):
    """Whether two runs have the same metrics, choice, checkpoints and verdicts, bit for bit."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert steps_of(folder) == steps_of(other)
    for place in ("validation", "evaluation"):
        assert records_of(folder, place) == records_of(other, place)
    for path in other.glob("evaluation/*.*.npz"):
        with np.load(path) as theirs, np.load(folder / "evaluation" / path.name) as ours:
            for name in set(theirs) - {"seconds"}:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{path.name} {name}")


def test_the_best_is_kept_evaluated_loaded_and_exported(kept, tmp_path):
    looks = looks_of(kept)
    assert list(looks) == [4, 8, 12, 16, 20]
    best = min(step for step in looks if looks[step] == max(looks.values()))
    assert best in (4, 8) and looks[best] > looks[20] + 0.1
    assert steps_of(kept) == [best, 20]
    assert [path.name for path in kept.glob("evaluation/*.json")] == [f"{best}.json"]
    for path in kept.glob("validation/*.json"):
        record = json.loads(path.read_text())
        assert (record["images"], record["n"], record["checked"]) == ("validation", 60, 0)
    copy = shutil.copytree(kept, tmp_path / "copy")
    assert llrflow.load_model(copy).step == llrflow.load_model(copy, "best").step == best
    assert llrflow.load_model(copy, "last").step == 20
    assert export_model(copy, tmp_path / "export")[1].step == best
    assert evaluate_run(copy).evaluation.checkpoint == best
    last = evaluate_run(copy, "last").evaluation
    assert last.checkpoint == 20 and evaluate_run(copy, 20).evaluation == last
    assert next(iter(RunFolder(copy).last_evaluations().values())).checkpoint == best


def test_the_curve_is_in_events_tail_and_report(kept, command, events_in):
    looks = looks_of(kept)
    numbers, _, _ = events_in(kept / "events")
    assert [(s, v) for s, tag, v in numbers if tag == "validation/worst_case.accuracy"] == list(looks.items())
    code, out, _ = command("tail", kept, "--no-follow", "-n", "100")
    told = [line for line in out.splitlines() if "validation: worst_case" in line]
    assert code == 0 and len(told) == 5 and f"{looks[20]:.2%}" in told[-1]
    runs, _, _ = read([kept])
    (table,) = best_checkpoints(runs)
    best = max(looks, key=lambda step: (looks[step], -step))
    gap = f"{100 * (looks[best] - looks[20]):.2f}"
    assert table.rows == [[runs[0].name, str(best), f"{looks[best]:.2%}", "20", f"{looks[20]:.2%}", gap]]
    assert not list(runs[0].missing())


def test_patience_ends_training_and_a_finished_run_stays_finished(kept, load, tmp_path):
    spec = load(BEST | {"checkpoint.best.patience": 1})
    run = llrflow.run(spec, tmp_path / "run")
    looks = looks_of(tmp_path / "run")
    best = max(looks, key=lambda step: (looks[step], -step))
    assert max(looks) == best + 4 == run.record.step < 20 and run.record.state == "finished"
    assert run.evaluation.checkpoint == best and steps_of(tmp_path / "run") == [best, best + 4]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (kept / "metrics.jsonl").read_text().startswith(lines)
    assert llrflow.run(spec, tmp_path / "run").record.step == best + 4
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


class Killed(BaseException):
    """In the place of a kill: nothing of the run's own handles it."""


@pytest.mark.parametrize(("owner", "name"), [(Log, "write"), (Evaluator, "evaluate")], ids=["recording", "looking"])
@pytest.mark.parametrize("at", [4, 8, 12])
def test_killed_before_a_look_or_between_it_and_its_line(kept, load, tmp_path, monkeypatch, owner, name, at):
    original = getattr(owner, name)

    def killed(self, *arguments):
        step = self.step if owner is Evaluator else arguments[0] if is_look(arguments[1]) else None
        if step == at:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(Killed):
        llrflow.run(load(BEST), tmp_path / "run")
    monkeypatch.setattr(owner, name, original)
    assert at in steps_of(tmp_path / "run") and at not in looks_of(tmp_path / "run")
    llrflow.run(load(BEST), tmp_path / "run")
    same(tmp_path / "run", kept)


@pytest.mark.parametrize("devices", [1, 2])
def test_no_batch_of_an_epoch_holds_a_validation_image(load, tmp_path, monkeypatch, devices):
    seen, place = [], Program.place

    def spied(self, batch, number):
        seen.append(batch)
        return place(self, batch, number)

    monkeypatch.setattr(Program, "place", spied)
    spec = load(BEST | {"train.steps": None, "train.epochs": 1, "devices.count": devices})
    with llrflow.runs.pipeline.session(spec, tmp_path / "run") as opened:
        opened.train()
        whole = opened._splits["validation"]
        held = set(whole.ids.tolist())
    ids = [int(i) for batch in seen for i in np.asarray(batch.ids)]
    assert len(seen) == 1150 // 64 and len(set(ids)) == len(ids) == 17 * 64
    assert len(held) == 287 and not held & set(ids)
    images = {image.tobytes() for image in whole.read(np.arange(287)).images}
    assert sum(image.tobytes() in images for batch in seen for image in np.asarray(batch.images)) == 0


def test_the_earliest_of_equals_is_the_best():
    lines = [{"step": step, WORST: robust} for step, robust in ((2, 0.1), (4, 0.3), (6, 0.3), (8, 0.2))]
    assert chosen([{"step": 1, "loss": 0.9}, *lines]) == (4, 0.3, 8, 0.2, 2)
    assert chosen([{"step": 1, "loss": 0.9}]) is None


LONG = BEST | {"train.steps": 400, "train.log_every": 7, "optimizer.learning_rate": 0.01, "devices.count": 2}
LONG |= {"checkpoint": {"every": 30, "keep": 2, "best": {"every": 20}}, "evaluate.attacks.pgd": {"type": "pgd"}}
LONG["data.extra"] = {"name": "synthetic", "options": {"height": 8, "width": 8, "channels": 1}, "share": 0.3}


@pytest.fixture(scope="module")
def unbroken(load, tmp_path_factory):
    """Folder of the longer run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    llrflow.run(load(LONG), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(10, marks=pytest.mark.long),
        pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
    ],
)
def test_killed_at_random_moments(unbroken, tiny, write_spec, start, tmp_path, kills):
    """In training, looks, retention and evaluation; a run that ended before it was killed is followed by another."""
    spec, rng, killed = write_spec(tmp_path / "spec.yaml", tiny(), LONG), random.Random(kills), 0
    stamps = [Path("run.json"), Path("metrics.jsonl"), Path("validation"), Path("evaluation"), Path("checkpoints")]
    stamps.append(Path("checkpoints/manifests"))
    while killed < kills:
        folder = tmp_path / f"run{killed}"

        def changed(folder=folder):
            return [(folder / path).stat().st_mtime_ns if (folder / path).exists() else 0 for path in stamps]

        state = ""
        while killed < kills and state != "finished":
            process, before = start(["run", spec, "--out", folder], tmp_path), changed()
            end = time.monotonic() + 100
            while changed() == before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.choice([rng.uniform(0, 0.05), rng.expovariate(0.5)]))  # amid what it writes, or later
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            state = json.loads((folder / "run.json").read_text())["state"]
        process = start(["run", spec, "--out", folder], tmp_path)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        same(folder, unbroken)
        for place in (Path(), Path("checkpoints"), Path("checkpoints/manifests")):
            assert {path.name for path in (folder / place).iterdir()} == {p.name for p in (unbroken / place).iterdir()}
        assert not [path for path in folder.rglob("*") if "tmp" in path.relative_to(folder).as_posix()]
