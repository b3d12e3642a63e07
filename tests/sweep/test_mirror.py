"""A sweep's copy elsewhere: valid at every moment, brought back whole, and no reason for a sweep to end."""

import json
import shutil
import signal
import time

import pytest

import llrflow
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.pipeline import session
from llrflow.sweep.tracking import mirror as mirrors
from llrflow.sweep.tracking import remote
from llrflow.sweep.tracking.mirror import SWEEP, Mirror
from llrflow.sweep.tracking.storage import Ended, Storage

NAME = "tiny-0123456789ab"


def files_of(folder):
    """Content by name, without what a mirror leaves out."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if not name.name.startswith(".")}


@pytest.fixture(scope="module")
def stages(load, tmp_path_factory):
    """Two folders of a sweep with one run: looked at after 4 steps, and later, after 8; one checkpoint is kept."""
    folder = tmp_path_factory.mktemp("stages")
    storage = Storage(folder / "now")
    spec = load({"checkpoint.keep": 1, "checkpoint.every": 4, "evaluate.attacks.pgd": None})
    with storage.owned():
        storage.spec.write_text("name: tiny\n")
        with session(spec, storage.run(NAME).path) as opened:
            for step in (4, 8):
                opened.train(step)
                opened.look(spec.evaluate, "-00000000", "test")
                shutil.copytree(storage.path, folder / f"step-{step}")
    return folder / "step-4", folder / "step-8"


def opened(uri_of, folder):
    return Mirror(uri_of.as_uri(), Storage(folder))


def whole(mirror):
    mirror._copy_sweep()
    mirror._copy_run(NAME)
    return mirror


def test_what_is_copied_comes_back(stages, tmp_path):
    earlier, later = stages
    whole(opened(tmp_path / "mirror", earlier))
    whole(opened(tmp_path / "mirror", later))
    assert files_of(tmp_path / "mirror") == files_of(later), "and the earlier checkpoint is deleted"
    mirror = opened(tmp_path / "mirror", tmp_path / "back")
    assert mirror.holds_sweep()
    mirror.fetch()
    assert files_of(tmp_path / "back") == files_of(later)


def test_the_mirror_is_valid_whenever_copying_stops(stages, tmp_path, monkeypatch):
    """After each write and deletion: what is fetched trains on from an intact checkpoint with the metrics up to it."""
    earlier, later = stages
    whole(opened(tmp_path / "first", earlier))
    found, left = set(), 0
    while True:
        here = shutil.copytree(tmp_path / "first", tmp_path / f"mirror-{left}")
        mirror, allowed = opened(here, later), iter(range(left))

        def counted(act, allowed=allowed):
            def call(*arguments):
                if next(allowed, None) is None:
                    raise OSError("stopped here")
                return act(*arguments)

            return call

        for name in ("_write", "delete"):
            monkeypatch.setattr(mirror._there, name, counted(getattr(mirror._there, name)))
        try:
            mirror._copy_run(NAME)
            ended = True
        except OSError:
            ended = False
        back = Storage(tmp_path / f"back-{left}")
        Mirror(here.as_uri(), back).fetch()
        run = back.run(NAME)
        step = Checkpoints(run.checkpoints).newest_intact(pytest.fail)
        assert step in (4, 8) and run.record().step in (4, 8)
        assert [line["step"] for line in run.metric_lines() if line["step"] <= step] == list(range(4, step + 1, 4))
        found.add((step, run.record().step))
        if ended:
            break
        left += 1
    assert {(4, 4), (8, 4), (8, 8)} == found and left > 8


def test_a_run_whose_first_copy_was_cut_short_is_not_fetched(stages, tmp_path):
    whole(opened(tmp_path / "mirror", stages[0]))
    (tmp_path / "mirror" / "runs" / NAME / "run.json").unlink()
    opened(tmp_path / "mirror", tmp_path / "back").fetch()
    assert list(files_of(tmp_path / "back")) == ["sweep.yaml"]


def test_what_is_taken_back_is_deleted(stages, tmp_path):
    storage = Storage(shutil.copytree(stages[0], tmp_path / "out"))
    mirror = Mirror((tmp_path / "mirror").as_uri(), storage)
    storage.end(NAME, Ended(state="failed", step=4))
    storage.best.write_text("name: tiny\n")
    whole(mirror)
    assert files_of(tmp_path / "mirror") == files_of(tmp_path / "out")
    storage.forget_end(NAME)
    storage.best.unlink()
    whole(Mirror((tmp_path / "mirror").as_uri(), storage))
    assert files_of(tmp_path / "mirror") == files_of(tmp_path / "out")


def test_what_a_worker_writes_after_the_last_look_is_copied_at_the_end(stages, tmp_path):
    storage, there = Storage(shutil.copytree(stages[0], tmp_path / "out")), tmp_path / "mirror"
    run = storage.run(NAME)
    with Mirror(there.as_uri(), storage):
        end = time.monotonic() + 60
        while not (there / "runs" / NAME / "run.json").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        run.record().model_copy(update={"state": "interrupted", "error": "left at step 4"}).write(run.run)
    assert files_of(there) == files_of(storage.path)


def test_a_failure_is_said_once_and_tried_again(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "FIRST", 0.02)
    storage, there, said = Storage(shutil.copytree(stages[0], tmp_path / "out")), tmp_path / "mirror", []
    mirror = Mirror(there.as_uri(), storage)
    mirror.say = said.append
    there.rmdir()
    there.write_text("no folder any more")
    with mirror:
        end = time.monotonic() + 60
        while not said:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.3)
        there.unlink()
        mirror.touch(SWEEP)
    assert files_of(there) == files_of(storage.path)
    assert [line.split(" ", 3)[3].split(":")[0] for line in said] == ["cannot be written", "can be written again"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://host/folder", "'ftp://host/folder' names no file system that is known; write file:///FOLDER, s3://"),
        ("/mirror", "'/mirror' names no file system that is known; write file:///FOLDER"),
        ("file:///proc/mirror", "cannot be used: "),
        ("s3://KEY:SECRET@bucket/sweep?endpoint_override=127.0.0.1%3A1&region=x", "s3://bucket/sweep "),
        ("s3://KEY:SECRET@bucket/sweep?region=x&nothing=1", "s3://bucket/sweep cannot be used: "),
    ],
)
def test_bad_input(uri, says, sweeping, write_spec, command, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ANSWER", 5.0)
    path = write_spec(tmp_path / "spec.yaml", sweeping())
    code, out, err = command("sweep", path, "--mirror", uri)
    assert code == 2 and out == "" and "--mirror: " in err and says in err and len(err.splitlines()) == 1
    assert "KEY" not in err and "SECRET" not in err
    assert not (tmp_path / "cwd" / "sweeps").exists(), "nothing is half written"


def test_a_mirror_of_another_sweep_is_not_overwritten(stages, sweeping, write_spec, command, tmp_path):
    whole(opened(tmp_path / "mirror", stages[0]))
    path = write_spec(tmp_path / "spec.yaml", sweeping())
    code, _, err = command("sweep", path, "--mirror", (tmp_path / "mirror").as_uri())
    assert code == 2 and "holds a sweep; continue it with --resume, or choose another --mirror" in err
    code, _, err = command("sweep", path, "--mirror", (tmp_path / "none").as_uri(), "--resume")
    assert code == 2 and "holds no sweep" in err


@pytest.mark.long
def test_a_killed_driver_whose_folder_is_gone_goes_on_from_the_mirror(
    sweeping, write_spec, start, tmp_path, llrflow_command, record_of, numbers_of
):
    changes = {"train.steps": 120, "train.log_every": 10, "checkpoint.every": 20, "sweep.rung.every": 20,
               "evaluate.attacks.pgd": None, "sweep.trials": 5, "sweep.concurrency": 2}  # fmt: skip
    path, folder, there = write_spec(tmp_path / "spec.yaml", sweeping(), changes), tmp_path / "out", tmp_path / "mirror"
    arguments = ["sweep", path, "--out", folder, "--mirror", there.as_uri()]
    process = start(arguments, tmp_path)
    try:
        end = time.monotonic() + 300
        while True:  # one trial has finished and another is under way
            records = [json.loads(p.read_text()) for p in there.glob("runs/*/run.json")]
            finished = [record for record in records if record["state"] == "finished"]
            if finished and any(0 < record["step"] < 120 for record in records):
                break
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    time.sleep(5)  # the workers of a dead driver end by themselves
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    before = {p.parent.name: RunFolder(p.parent).record() for p in there.glob("runs/*/run.json")}
    untouched = {p: p.stat().st_mtime_ns for name, record in before.items() if record.state == "finished"
                 for p in (there / "runs" / name).rglob("metrics.jsonl")}  # fmt: skip
    code, out, err = llrflow_command(*arguments, "--resume", "--json", cwd=tmp_path)
    assert code == 0, err
    record = json.loads(out)
    assert [trial["state"] for trial in record["trials"]] == ["finished"] * 5
    trained = {trial for worker in record["workers"] for trial in worker["step_compilations"]}
    done = {name for name, run in before.items() if run.state == "finished"}
    assert done and trained == {trial["run"] for trial in record["trials"]} - done, "finished trials are not run again"
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    assert files_of(there) == {
        name: content for name, content in files_of(folder).items() if name.split("/")[0] not in ("cache", "ray")
    }
    for name in (min(done), min(set(before) - done)):
        llrflow.run(llrflow.load_spec(folder / "runs" / name / "spec.yaml"), tmp_path / name)
        lines = [(f / name / "metrics.jsonl").read_bytes() for f in (folder / "runs", tmp_path)]
        assert lines[0] == lines[1]
