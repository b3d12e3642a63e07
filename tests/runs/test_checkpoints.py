"""Checkpoints that were damaged, cut or left half-written are noticed, told, and never cost the numbers."""

import json
import re
import shutil
import time

import jax
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError
from llrflow.program.state import TrainState
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder


def largest(step):
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, position=None):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if position is None else position] ^= 0x40
    path.write_bytes(raw)


def flip_payload(checkpoints, step):
    flip(largest(checkpoints / step))


def truncate(checkpoints, step):
    path = largest(checkpoints / step)
    path.write_bytes(path.read_bytes()[:-20])


def lose_a_file(checkpoints, step):
    largest(checkpoints / step).unlink()


def lose_the_step(checkpoints, step):
    shutil.rmtree(checkpoints / step)


def cut_the_manifest(checkpoints, step):
    path = checkpoints / "manifests" / f"{step}.json"
    path.write_bytes(path.read_bytes()[:100])


def flip_in_manifest(word):
    def damage(checkpoints, step):
        path = checkpoints / "manifests" / f"{step}.json"
        flip(path, path.read_bytes().index(word) + 1)

    return damage


DAMAGES = {
    "flipped byte": flip_payload,
    "truncated": truncate,
    "file lost": lose_a_file,
    "step lost": lose_the_step,
    "cut manifest": cut_the_manifest,
    "flipped digest": flip_in_manifest(b'": "'),
    "flipped key of the manifest": flip_in_manifest(b"files"),
    "flipped structure in the manifest": flip_in_manifest(b"float32"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(
    damage, finished, copied, load, numbers_of, capsys
):
    damage(copied / "checkpoints", "12")
    result = llrflow.run(load(), copied)
    told = capsys.readouterr().err
    assert "checkpoint 12 is damaged: " in told and "continuing from step 8 of 12" in told
    assert numbers_of(copied) == numbers_of(finished)
    assert result.record.state == "finished" and Checkpoints(copied / "checkpoints").steps() == [4, 8, 12]


def test_an_evaluation_says_why_it_is_not_of_the_newest_checkpoint(copied, command, numbers_of):
    flip_payload(copied / "checkpoints", "12")
    code, out, _ = command("evaluate", copied)
    (why,) = (line for line in out.splitlines() if "not the newest" in line)
    assert code == 0 and ", step 8" in out.splitlines()[0] and why in out.splitlines()[-2]
    assert re.fullmatch(r"step 8 is not the newest: checkpoint 12 is damaged: default/.* has changed", why), why
    code, out, _ = command("evaluate", copied, "--json")
    shown = json.loads(out)
    assert (code, shown["why"], shown["evaluation"]["checkpoint"]) == (0, why, 8)
    shutil.rmtree(copied / "checkpoints" / "12")
    (copied / "checkpoints" / "manifests" / "12.json").unlink()
    for state in ("finished", "interrupted"):
        (record := RunFolder(copied).existing()).model_copy(update={"state": state}).write(copied / "run.json")
        _, out, err = command("evaluate", copied)
        assert "step 8 is not the newest: checkpoint 12 is missing" in out.splitlines() and record.step == 12
        assert "checkpoint 12 is missing" in err.splitlines()  # which what prints no `why` says too


def test_json_that_is_nested_too_deeply_is_a_damaged_checkpoint(copied):
    (copied / "checkpoints" / "manifests" / "8.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no readable manifest"):
        llrflow.load_model(copied, step=8)
    (copied / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"keep step 12 from being read: 4, 8; remove those"):
        llrflow.load_model(copied)


def test_best_says_of_how_many(copied, command):
    code, out, _ = command("evaluate", copied, "--checkpoint", "best")
    why = f"step 12 is the best by test images: 1 of 3 checkpoints evaluated, not 4, 8: llrflow evaluate {copied}"
    assert code == 0 and out.splitlines()[-2] == f"{why} --checkpoint 4"
    for step in (4, 8):
        code, out, _ = command("evaluate", copied, "--checkpoint", step)
        assert code == 0 and " is the best " not in out
    code, out, _ = command("evaluate", copied, "--checkpoint", "best", "--json")
    shown = json.loads(out)
    best = shown["evaluation"]["checkpoint"]
    assert code == 0 and shown["why"] == f"step {best} is the best by test images: 3 of 3 checkpoints evaluated"
    assert json.loads(command("evaluate", copied, "--checkpoint", "12", "--json")[1])["why"] is None


def test_when_all_are_damaged_training_starts_again(finished, copied, load, numbers_of, capsys):
    for step in ("4", "8", "12"):
        flip_payload(copied / "checkpoints", step)
    llrflow.run(load(), copied)
    told = capsys.readouterr().err
    assert [f"checkpoint {step} is damaged" in told for step in (4, 8, 12)] == [True] * 3 and "continuing" not in told
    assert numbers_of(copied) == numbers_of(finished)


def test_what_a_kill_left_half_written_is_removed(finished, copied, load, numbers_of):
    checkpoints = copied / "checkpoints"
    (checkpoints / "manifests" / "12.json").unlink()  # killed between a step and its manifest
    (checkpoints / "16.orbax-checkpoint-tmp").mkdir()
    with (copied / "metrics.jsonl").open("a") as log:
        log.write('{"step": 12, "obj')
    llrflow.run(load(), copied)
    assert numbers_of(copied) == numbers_of(finished)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["12", "4", "8", "manifests"]


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_checkpoints_are_kept_and_run_json_follows_them(keep, load, tmp_path, monkeypatch):
    save, told = Checkpoints.save, []

    def watched(*arguments):
        save(*arguments)
        told.append(RunFolder(tmp_path).record().step)

    monkeypatch.setattr(Checkpoints, "save", watched)
    llrflow.run(load({"checkpoint": {"every": 3, "keep": keep}, "evaluate.attacks": {}, "train.steps": 10}), tmp_path)
    steps = [3, 6, 9, 10][-keep:]
    assert told == [3, 6, 9, 10]
    assert Checkpoints(tmp_path / "checkpoints").steps() == steps
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"manifests", *map(str, steps)}


def test_a_finished_run_is_read_again_quickly_and_nothing_changes(finished, copied, load, numbers_of):
    files = ["spec.yaml", "metrics.jsonl", *(f"checkpoints/manifests/{step}.json" for step in (4, 8, 12))]
    before = {name: (copied / name).read_bytes() for name in files} | {
        "record": json.loads((copied / "run.json").read_text())
    }
    began = time.monotonic()
    result = llrflow.run(load(), copied)
    seconds = time.monotonic() - began
    assert seconds < 0.5 * sum(before["record"]["seconds"].values()) + 2
    assert numbers_of(copied) == numbers_of(finished)
    assert {name: (copied / name).read_bytes() for name in files} == {name: before[name] for name in files}
    assert result.record.state == "finished" and result.record.origins == before["record"]["origins"]


def test_another_spec_in_the_folder_is_refused_and_changes_nothing(copied, load):
    def contents():
        return {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    with pytest.raises(
        llrflow.SpecError,
        match=r"holds a run of another spec \(hash \w{12}, this one has \w{12}\); choose another --out",
    ):
        llrflow.run(load({"seed": 1}), copied)
    assert contents() == before


def test_fresh_needs_a_named_folder_and_starts_over_there(copied, load, finished, numbers_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        llrflow.SpecError, match=r"--fresh: deletes what a run folder holds; name the folder with --out DIR"
    ):
        llrflow.run(load(), fresh=True)
    assert not (tmp_path / "runs").exists()
    (copied / "mine.txt").write_text("not of a run")
    result = llrflow.run(load({"train.steps": 4}), copied, fresh=True)
    assert result.record.steps == 4 and sorted(p.name for p in (copied / "evaluation").glob("*.json")) == ["4.json"]
    assert [json.loads(line)["step"] for line in (copied / "metrics.jsonl").read_text().splitlines()] == [4]
    assert (copied / "mine.txt").exists()


@pytest.mark.parametrize("fresh", [False, True], ids=["", "fresh"])
def test_a_folder_that_holds_something_else_is_left_alone(load, tmp_path, fresh, monkeypatch):
    files = ["spec.yaml", "metrics.jsonl", "checkpoints/1/weights"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"step": 0} # mine\n')
    with pytest.raises(llrflow.SpecError):
        llrflow.run(load({"train.steps": 1, "evaluate.attacks": {}}), tmp_path, fresh=fresh)
    assert [(tmp_path / name).read_text() for name in files] == ['{"step": 0} # mine\n'] * 3


def state(width=3, kind=np.float32):
    params = {"w": np.zeros((2, width), kind)}
    return TrainState(params, {}, (), (), {}, np.asarray(7, np.int32))


def test_a_tree_that_does_not_fit_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(), "0" * 12)
    restored = checkpoints.restore(state(), 7)
    assert isinstance(restored, TrainState) and restored.step == 7
    for target, says in (
        (state(width=4), r"holds \.params\['w'\] as float32\[2, 3\], the spec wants float32\[2, 4\]"),
        (state(kind=np.float64), r"as float32\[2, 3\], the spec wants float64\[2, 3\]"),
        (state()._replace(ema={"w": np.zeros(1)}), r"holds \.ema\['w'\] as nothing, the spec wants float64\[1\]"),
    ):
        with pytest.raises(CheckpointError, match=says):
            checkpoints.restore(target, 7)
    with pytest.raises(CheckpointError, match="choose from 7"):
        checkpoints.restore(state(), 8)


def test_training_that_diverges_stops_with_the_step_and_the_last_finite_values(load, tmp_path):
    changes = {"optimizer": {"type": "sgd", "learning_rate": 1e12}, "train.log_every": 1, "checkpoint.every": 1}
    with pytest.raises(llrflow.base.errors.NonFiniteError) as caught:
        llrflow.run(load(changes), tmp_path)
    message, record = str(caught.value), json.loads((tmp_path / "run.json").read_text())
    assert "the objective is not finite at step " in message and "learning rate" in message
    assert record["state"] == "failed" and record["error"] == f"NonFiniteError: {message}"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = message.split(f"last finite values, step {lines[-1]['step']}: ")[1]
    assert f"objective {lines[-1]['objective']:.4g}" in last
    kept = Checkpoints(tmp_path / "checkpoints").steps()[-1]
    assert f"checkpoint {kept} is kept" in message
    parameters = jax.tree.leaves(llrflow.load_model(tmp_path).params)
    assert all(np.isfinite(leaf).all() for leaf in parameters), "the checkpoint it keeps is of no use"
