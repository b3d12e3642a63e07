"""Evaluation: every example, whatever the batch; verdicts that are kept, and only for what they were found by."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import llrflow
from llrflow.attacks.run import AttackProgram
from llrflow.data.resident import load_split
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator, Verdicts, proportion
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.pipeline import evaluate_run
from llrflow.runs.records import EvaluationRecord, RunFolder

ATTACKS = {"fgsm": {"type": "fgsm"}, "pgd": {"type": "pgd", "steps": 5, "restarts": 2}}


@pytest.fixture
def evaluator(finished, load, tmp_path):
    """evaluator(changes, stop) -> an Evaluator of the finished run's newest checkpoint that writes below tmp_path."""

    def make(changes=None, stop=None):
        spec = load({"evaluate.attacks": ATTACKS, **(changes or {})})
        program = llrflow.compile(spec)
        state = Checkpoints(finished / "checkpoints").restore(program.abstract_state(), 12)
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        return Evaluator(program, state, load_split(spec.data, "test"), folder, "0" * 12, stop or StopRequest(), True)

    return make


def verdicts(folder):
    return {path.name.split(".")[1]: dict(np.load(path)) for path in sorted((folder / "evaluation").glob("*.npz"))}


def test_the_verdicts_do_not_depend_on_batch_size_or_devices(finished, load, tmp_path):
    base, splits = None, load_split(load().data, "test")
    for size, devices in ((360, 1), (7, 1), (64, 2)):
        spec = load({"evaluate": {"attacks": ATTACKS, "batch_size": size}, "devices.count": devices})
        program = llrflow.compile(spec)
        state = Checkpoints(finished / "checkpoints").restore(program.abstract_state(), 12)
        folder = RunFolder(tmp_path / f"{size}-{devices}")
        folder.path.mkdir()
        record = Evaluator(program, state, splits, folder, "0" * 12, StopRequest(), True).evaluate()
        assert record.n == record.nominal.n == record.worst_case.n == 360
        assert all(attack.n == 360 for attack in record.attacks.values())
        found = verdicts(folder.path)
        base = base or found
        for name, arrays in found.items():
            assert (arrays["wrong"] != base[name]["wrong"]).mean() < 1e-3, (name, size, devices)
            assert (arrays["tried"] != base[name]["tried"]).mean() < 1e-3
            close = np.isclose(arrays["linearity"], base[name]["linearity"], rtol=1e-3, atol=1e-4)
            assert close.mean() > 0.97  # a sign of a gradient near zero may fall either way


def test_the_record_adds_up(evaluator):
    work = evaluator()
    record = work.evaluate()
    arrays, n = verdicts(work.folder.path), 360
    correct = arrays["random"]["tried"] > 0
    assert record.nominal.correct == correct.sum() and 0 < record.nominal.correct < n
    standing = correct.copy()
    for name, attack in record.attacks.items():
        robust = correct & ~arrays[name]["wrong"]
        standing &= robust
        assert attack.correct == robust.sum() and attack.accuracy == attack.correct / n
        assert attack.kills == correct.sum() - robust.sum() > 0
        assert not arrays[name]["tried"][~correct].any()  # wrong from the start: not attacked, not robust
        assert arrays[name]["distance"].max() <= 0.15 * (1 + 1e-5)
    assert record.worst_case.correct == standing.sum() <= min(a.correct for a in record.attacks.values())
    assert record.gamma.keys() == {"fgsm", "pgd", "random"}
    values = arrays["pgd"]["linearity"][correct]
    assert record.gamma["pgd"].n == correct.sum() and record.gamma["pgd"].mean == pytest.approx(values.mean())
    assert record.gamma["pgd"].quantiles["0.5"] == pytest.approx(np.median(values))
    written = json.loads((work.folder.evaluation / "12.json").read_text())
    assert {"n", "nominal", "attacks", "worst_case", "gamma", "threat", "checkpoint", "parameters"} <= written.keys()
    assert written["attacks"].keys() == {"fgsm", "pgd"} and written["attacks"]["pgd"]["attack"]["restarts"] == 2
    assert EvaluationRecord.model_validate(written) == record


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0), (275, 360, 0.71734, 0.80489)],
)
def test_wilson_intervals(correct, n, low, high):
    share = proportion(np.arange(n) < correct)
    z = 1.959963984540054
    centre, half = correct / n + z * z / 2 / n, z * np.sqrt(correct / n * (1 - correct / n) / n + z * z / 4 / n / n)
    assert share.interval == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)), abs=1e-9
    )
    assert share.interval == pytest.approx((low, high), abs=2e-3) and share.accuracy == correct / n


def test_an_interrupted_evaluation_tries_nothing_twice(evaluator, monkeypatch, tmp_path):
    calls, limits, original = [], [], AttackProgram.run

    def counted(self, *arguments):
        calls.append(self.attack.registered_as)
        if len(calls) in limits:
            work.stop.signum = signal.SIGTERM
        return original(self, *arguments)

    monkeypatch.setattr(AttackProgram, "run", counted)
    work = evaluator()
    whole, complete = work.evaluate(), verdicts(work.folder.path)
    total = len(calls)
    for path in work.folder.evaluation.iterdir():
        path.unlink()
    calls.clear()
    limits.extend((2, 5))
    for _ in limits:
        work = evaluator()
        with pytest.raises(Interrupted) as caught:
            work.evaluate()
        assert caught.value.exit_code == 143
    limits.clear()
    work = evaluator()
    again = work.evaluate()
    assert len(calls) == total > 5
    for name, arrays in verdicts(work.folder.path).items():
        for field in Verdicts.FIELDS:
            np.testing.assert_array_equal(arrays[field], complete[name][field])
    assert again.worst_case == whole.worst_case and again.gamma == whole.gamma
    before = len(calls)
    evaluator().evaluate()
    assert len(calls) == before  # all verdicts are there
    evaluator({"evaluate.attacks.pgd.steps": 4}).evaluate()
    assert len(calls) == before + sum(name == ("attack", "pgd") for name in calls[:total])
    evaluator({"threat.epsilon": 0.1}).evaluate()
    assert len(calls) > before + total


def test_a_damaged_verdict_file_is_made_again(copied, load, numbers_of, finished):
    path = copied / "evaluation" / "12.pgd.npz"
    path.write_bytes(path.read_bytes()[:-30])
    llrflow.run(load(), copied)
    assert numbers_of(copied) == numbers_of(finished)


def test_a_run_is_evaluated_with_other_attacks_and_checkpoints(copied):
    attacks = {"strong": {"type": "pgd", "steps": 20, "maximize": {"type": "cross_entropy"}}}
    result = evaluate_run(copied, attacks=attacks)
    assert result.evaluation.attacks.keys() == {"strong"} and result.evaluation.gamma.keys() == {"strong", "random"}
    early = evaluate_run(copied, 4, attacks=attacks)
    assert early.evaluation.checkpoint == 4 and len(list((copied / "evaluation").glob("4-*.json"))) == 1
    assert early.evaluation.nominal.correct < result.evaluation.nominal.correct
    with pytest.raises(llrflow.SpecError, match=r"evaluate\.attacks\.strong\.stepz.*did you mean 'step"):
        evaluate_run(copied, attacks={"strong": {"type": "pgd", "stepz": 20}})


def test_the_model_of_a_run_is_a_jax_function_that_needs_no_dataset(finished, load, data_dir):
    model, split = llrflow.load_model(finished), load_split(load().data, "test")
    images = split.images[:64] / np.float32(255)
    assert (model.step, model.classes) == (12, 10)
    logits = np.asarray(model.logits(images))
    for devices in (1, 4):
        program = llrflow.compile(load({"devices.count": devices}))
        state = Checkpoints(finished / "checkpoints").restore(program.abstract_state(), 12)
        ours = program.logits(program.devices.replicate((state.params, state.model_state)), images)
        np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)
    threat, config = {"norm": "linf", "epsilon": 0.15}, {"type": "pgd", "steps": 5, "restarts": 2}
    result = llrflow.attack(model.logits, images, split.labels[:64], threat, config, jax.random.key(0))
    assert result.x_adv.shape == images.shape and float(result.distance.max()) <= 0.15 * (1 + 1e-5)
    wrong = np.asarray(model.logits(result.x_adv)).argmax(-1) != split.labels[:64]
    np.testing.assert_array_equal(np.asarray(result.success), wrong)
    assert wrong.mean() > (logits.argmax(-1) != split.labels[:64]).mean()
    with pytest.raises(llrflow.errors.CheckpointError, match="choose from 12, 4, 8"):
        llrflow.load_model(finished, step=5)


def test_evaluation_uses_the_moving_average_unless_told_otherwise(load, tmp_path):
    llrflow.run(load({"train.ema": 0.9, "evaluate.attacks": {}, "train.steps": 4}), tmp_path)
    average, raw = llrflow.load_model(tmp_path), llrflow.load_model(tmp_path, parameters="raw")
    assert json.loads((tmp_path / "evaluation" / "4.json").read_text())["parameters"] == "ema"
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), average.params, raw.params)
    assert any(jax.tree.leaves(differs))


def test_a_run_is_evaluated_where_its_training_batch_does_not_divide(copied):
    text = (copied / "spec.yaml").read_text()
    assert "batch_size: 64" in text and "count: 1" in text
    (copied / "spec.yaml").write_text(
        text.replace("batch_size: 64", "batch_size: 66").replace("count: 1", "count: null")
    )
    assert evaluate_run(copied).evaluation.n == 360  # on four devices


def test_loading_a_model_does_not_settle_the_number_of_devices(finished):
    code = (
        "import os, jax, llrflow\n"
        f"llrflow.load_model({str(finished)!r})\n"
        "assert jax.local_device_count() == len(os.sched_getaffinity(0)), jax.devices()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
