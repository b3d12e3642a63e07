"""Run folders that were edited, mixed up or half deleted: what is believed, what is refused, what is said."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError, LlrflowError
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.export import export_model
from llrflow.runs.folder import RunFolder
from llrflow.runs.reevaluate import evaluate_run

EDITS = {
    "epsilon": ("epsilon: 0.15", "epsilon: 0.05"),
    "activation": ("activation: softplus", "activation: relu"),
    "label smoothing": ("label_smoothing: 0.0", "label_smoothing: 0.1"),
    "steps of an attack": ("steps: 5", "steps: 1"),
}


@pytest.mark.parametrize(("old", "new"), EDITS.values(), ids=EDITS)
def test_an_edited_spec_is_refused_by_whatever_opens_the_folder(command, copied, old, new):
    spec = copied / "spec.yaml"
    text = spec.read_text()
    assert old in text
    spec.write_text(text.replace(old, new))
    says = f"{spec}: is not the spec of this run any more"
    for arguments in (["evaluate", copied], ["export", copied]):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    for load in (llrflow.load_model, evaluate_run, export_model):
        with pytest.raises(CheckpointError, match="put the original back"):
            load(copied)
    code, out, _ = command("compare", copied, copied, "--json")
    assert code == 0 and any("was edited after the run" in line for line in json.loads(out)["missing"])


def test_what_changes_no_number_may_be_edited(copied, data_dir):
    spec, step = copied / "spec.yaml", llrflow.load_model(copied).step
    text = spec.read_text().replace("name: tiny", "name: renamed").replace("count: 1", "count: 2")
    spec.write_text(f"# a note\n{text.replace(str(data_dir), 'elsewhere')}")
    model = llrflow.load_model(copied)
    assert (model.name, model.step) == ("renamed", step)


def test_an_older_folder_without_seals_is_read_and_its_spec_is_checked_all_the_same(copied, command):
    for path in (copied / "run.json", copied / "evaluation" / "12.json"):
        record = json.loads(path.read_text())
        for name in ("sha256", "spec_sha256", "metrics", "found_changed"):
            record.pop(name, None)
        path.write_text(json.dumps(record))
    assert llrflow.load_model(copied).step == 12
    assert command("runs", copied)[0] == 0
    spec = copied / "spec.yaml"
    spec.write_text(spec.read_text().replace("epsilon: 0.15", "epsilon: 0.05"))
    with pytest.raises(CheckpointError, match="is not the spec of this run any more"):
        llrflow.load_model(copied)


def test_what_a_network_computes_is_part_of_an_evaluations_identity(copied, finished):
    """Two networks with the same parameters are two evaluations."""
    from llrflow.data.pipelines import open_split
    from llrflow.program.compile import compile_spec
    from llrflow.runs.evaluate import Evaluator
    from llrflow.runs.interrupt import StopRequest
    from llrflow.runs.model import stored_run

    record, spec = stored_run(RunFolder(finished))
    found = set()
    for activation in ("relu", "softplus"):
        changed = spec.model_copy(update={"model": spec.model.model_copy(update={"activation": activation})})
        program = compile_spec(changed, training=False)
        state = Checkpoints(finished / "checkpoints").restore(program.abstract_state(), 12)
        split = open_split(spec.data, "test", spec.seed)
        made = Evaluator(program, state, split, RunFolder(copied), record.spec_hash, StopRequest(), True)
        found.add(made._identity("pgd"))
    assert len(found) == 2


def test_an_edited_certificate_is_refused_by_all_and_made_again_by_evaluate(copied, command):
    path = copied / "evaluation" / "12.json"
    before = json.loads(path.read_text())
    edited = json.dumps({**before, "worst_case": {**before["worst_case"], "accuracy": 0.9861}})
    for text in (edited, path.read_text().replace('"cascade": false', '"cascade": true')):
        path.write_text(text)
        code, out, _ = command("runs", copied, "--json")
        (row,) = json.loads(out)
        assert code == 0 and row["worst_case"] is None and "it is not what was written there" in row["error"]
        for arguments in (["compare", copied, copied], ["report", copied]):
            code, out, err = command(*arguments)
            assert (code, out) == (2, "") and f"{path}: is damaged" in err and err.count("\n") == 1
    again = evaluate_run(copied).evaluation
    assert again.worst_case.accuracy == before["worst_case"]["accuracy"]
    unsealed = {key: value for key, value in json.loads(edited).items() if key != "sha256"}
    path.write_text(json.dumps(unsealed))  # one of an earlier version has no seal, but must hold together
    assert "an accuracy of 0.9861 is not" in json.loads(command("runs", copied, "--json")[1])[0]["error"]


def test_certificates_that_changed_places_or_runs_are_refused(copied, finished, rewrite):
    evaluate_run(copied, 8)
    place = copied / "evaluation"
    shutil.copy(place / "8.json", place / "12.json")
    with pytest.raises(CheckpointError, match="has changed, or is another file"):
        RunFolder(copied).evaluations()
    shutil.copy(finished / "evaluation" / "12.json", place / "12.json")
    rewrite(place / "12.json", spec_hash="0" * 12)
    with pytest.raises(CheckpointError, match="another spec's run"):
        RunFolder(copied).evaluations()


def test_checkpoints_of_another_run_and_swapped_steps_are_not_gone_on_from(load, copied, tmp_path, capsys):
    llrflow.run(load({"seed": 1}), tmp_path / "other")
    for path in (tmp_path / "other" / "checkpoints").iterdir():
        shutil.rmtree(copied / "checkpoints" / path.name)
        shutil.copytree(path, copied / "checkpoints" / path.name)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        llrflow.load_model(copied)
    assert "it is of another spec's run" in capsys.readouterr().err
    llrflow.run(load(), copied)  # trains anew
    checkpoints = copied / "checkpoints"
    for one, other in ((checkpoints, ""), (checkpoints / "manifests", ".json")):
        (one / f"8{other}").rename(one / "x")
        (one / f"12{other}").rename(one / f"8{other}")
        (one / "x").rename(one / f"12{other}")
    with pytest.raises(CheckpointError, match="its manifest is that of step 12"):
        llrflow.load_model(copied, 8)


def test_a_copied_manifest_is_no_step(copied, command):
    manifests = copied / "checkpoints" / "manifests"
    shutil.copy(manifests / "12.json", manifests / "12 (copy).json")
    assert Checkpoints(copied / "checkpoints").steps() == [4, 8, 12]
    assert command("evaluate", copied)[0] == 0


HARM = {
    "deleted": (lambda path: path.unlink(), "holds 0 of 2 lines up to step 8"),
    "cut": (lambda path: path.write_bytes(path.read_bytes().splitlines(keepends=True)[0]), "holds 1 of 2 lines"),
    "altered": (lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 4, "', b'"step": 4, "x": 9, "')),
                "has changed since it was written"),
    "step as text": (lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"step": "4"')),
                     "holds 1 of 2 lines"),
    "null": (lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 4,', b'"step": 4, "y": null,')),
             "holds 1 of 2 lines"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "says"), HARM.values(), ids=HARM)
def test_metrics_that_are_not_as_they_were_are_said_and_stay_said(load, copied, command, capsys, rewrite, harm, says):
    folder = RunFolder(copied)
    Checkpoints(folder.checkpoints).discard_after(8)
    rewrite(folder.run, state="interrupted", step=8)
    harm(folder.metrics)
    code, _, err = command("tail", copied, "--no-follow")
    assert code == 0 and str(folder.metrics) in err
    run = llrflow.run(load(), copied)
    told = capsys.readouterr().err
    assert run.record.state == "finished" and says in told and told.count("goes on without what is missing") == 1
    (kept,) = run.record.found_changed
    assert says in kept
    assert kept in json.loads(command("compare", copied, copied, "--json")[1])["missing"]
    assert folder.metrics_problem(run.record) is None


def test_a_run_that_is_finished_again_says_nothing(load, copied, capsys):
    for _ in range(2):
        assert llrflow.run(load(), copied).record.found_changed == []
    assert "metrics" not in capsys.readouterr().err


def test_spec_without_data_and_markup_in_names_are_one_line_or_text(copied, command, rewrite):
    path = copied / "evaluation" / "12.json"
    rewrite(path, lambda r: {**r, "attacks": {"[/x]": next(iter(r["attacks"].values()))}})
    assert command("runs", copied)[0] == 0
    spec = copied / "spec.yaml"
    text = spec.read_text()
    spec.write_text("name: tiny\n" + text[text.index("model:") :])
    code, out, err = command("report", copied)
    assert (code, out) == (2, "") and f"{spec}: has no data.name" in err and err.count("\n") == 1


@pytest.mark.parametrize("harm", ["method", "huge", "flips", "fifo", "directory"])
def test_verdicts_that_cannot_be_read_are_made_again(copied, harm):
    path = copied / "evaluation" / "12.pgd.npz"
    before, content = evaluate_run(copied).evaluation, path.read_bytes()
    variants = [content]
    if harm == "method":
        at = content.index(b"PK\x01\x02") + 10  # compression method in the directory
        variants = [content[:at] + bytes([99]) + content[at + 1 :]]
    elif harm == "huge":
        variants = [content.replace(b"(360,)", b"(9" + b"0" * 3 + b",)", 1)]
        assert variants[0] != content
    elif harm == "flips":
        places = np.random.default_rng(0).integers(0, len(content), 25)
        variants = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in places]
    for variant in variants:
        path.write_bytes(variant)
        if harm in ("fifo", "directory"):
            path.unlink()
            os.mkfifo(path) if harm == "fifo" else path.mkdir()
        (copied / "evaluation" / "12.json").unlink()
        try:
            again = evaluate_run(copied).evaluation
        except LlrflowError:
            continue
        except IsADirectoryError:
            assert harm == "directory"
            path.rmdir()
            continue
        assert again.worst_case == before.worst_case
        for name, made in before.attacks.items():
            assert again.attacks[name].correct == made.correct


@pytest.mark.parametrize("where", ["checkpoint", "metrics", "events", "verdicts"])
def test_a_full_disk_is_one_line_and_a_failed_run_that_goes_on(
    command, load, tiny, write_spec, numbers_of, monkeypatch, finished, tmp_path, where
):
    from llrflow.runs import events, train, verdicts

    calls = []

    def full(real, after):
        def write(*arguments, **options):
            calls.append(where)
            if len(calls) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return write

    target, name, after = {
        "checkpoint": (Checkpoints, "save", 1),
        "metrics": (train.Log, "write", 1),
        "events": (events.Events, "add", 10),
        "verdicts": (verdicts.Verdicts, "save", 0),
    }[where]
    monkeypatch.setattr(target, name, full(getattr(target, name), after))
    spec, out = write_spec(tmp_path / "spec.yaml", tiny()), tmp_path / "run"
    code, printed, err = command("run", spec, "--out", out, "--json")
    last = {"checkpoint": 4, "metrics": 4, "events": 4, "verdicts": 12}[where]
    assert (code, printed) == (1, "")
    line = f"error: {out}: No space left on device; step {last} is the last that was saved; make room"
    assert err.splitlines()[-1].startswith(line) and err.count("\n") == 1
    record = RunFolder(out).existing()
    assert (record.state, record.error) == ("failed", "No space left on device")
    monkeypatch.undo()
    llrflow.run(load(), out)
    assert numbers_of(out) == numbers_of(finished)


def test_what_a_kill_leaves_is_gone_after_the_next_start(load, copied):
    folder = RunFolder(copied)
    (folder.path / ".run.json.0a1b2c3d.tmp").write_text("{")
    (folder.evaluation / ".12.json.0a1b2c3d.tmp").write_text("{")
    (folder.checkpoints / "manifests" / ".12.json.0a1b2c3d.tmp").write_text("{")
    shutil.copytree(folder.checkpoints / "8", folder.checkpoints / "6")  # dropped but for its folder
    shutil.copytree(folder.checkpoints / "8", folder.checkpoints / "9.orbax-checkpoint-tmp")
    (folder.checkpoints / "mine").mkdir()
    llrflow.run(load(), copied)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["12", "4", "8", "manifests", "mine"]
    assert not list(folder.path.rglob("*.tmp"))
