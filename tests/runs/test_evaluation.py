"""Evaluation: every example, whatever the batch; verdicts that are kept, and only for what they were found by."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import llrflow
from llrflow.attacks.program import AttackProgram
from llrflow.attacks.search import Findings
from llrflow.data.resident import load_split
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.records import EvaluationRecord
from llrflow.runs.reevaluate import evaluate_run
from llrflow.runs.sealed import read_record
from llrflow.runs.summaries import proportion

ATTACKS = {"fgsm": {"type": "fgsm"}, "pgd": {"type": "pgd", "steps": 5, "restarts": 2}}


@pytest.fixture
def evaluator(finished, load, tmp_path):
    """evaluator(changes, stop) -> an Evaluator of the finished run's newest checkpoint that writes below tmp_path."""

    def make(changes=None, stop=None, attacks=ATTACKS):
        named = {f"evaluate.attacks.{name}": attack for name, attack in attacks.items()}
        spec = load({"evaluate.attacks": None, **named, **(changes or {})})
        program = llrflow.compile(spec)
        state = Checkpoints(finished / "checkpoints").restore(program.abstract_state(), 12)
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        return Evaluator(program, state, load_split(spec.data, "test"), folder, "0" * 12, stop or StopRequest(), True)

    return make


def verdicts(folder):
    return {path.name.split(".")[1]: dict(np.load(path)) for path in sorted((folder / "evaluation").glob("*.*.npz"))}


def test_the_verdicts_do_not_depend_on_batch_size_or_devices(finished, load, tmp_path):
    base, splits = None, load_split(load().data, "test")
    for size, devices, cascade in ((360, 1, True), (7, 1, True), (64, 2, True)):
        attacks = {**ATTACKS, "targets": {"type": "multi_targeted", "steps": 3}}
        changes = {"evaluate.attacks": attacks, "evaluate.batch_size": size, "evaluate.cascade": cascade}
        spec = load({**changes, "devices.count": devices})
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
            assert (arrays["tried"] != base[name]["tried"]).mean() < 1e-2
            assert (arrays["gradients"] != base[name]["gradients"]).mean() < 3e-2  # as if runs followed one another
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
    assert read_record(EvaluationRecord, work.folder.evaluation / "12.json", "") == record


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


def classes_by_hand(record, arrays, cascade):
    """What `classes` must hold, image by image, from the verdict files."""
    labels, clean = arrays["random"]["label"].tolist(), arrays["random"]["clean"].tolist()
    taken = {"nominal": list(clean)}
    for name in record.attacks:
        before = list(taken["nominal"])
        if cascade and len(taken) > 1:
            before = list(taken[list(taken)[-1]])
        wrong, predicted = arrays[name]["wrong"].tolist(), arrays[name]["predicted"].tolist()
        taken[name] = [p if b == y and w else b for y, b, w, p in zip(labels, before, wrong, predicted, strict=True)]
    first = [next((t[i] for t in taken.values() if t[i] != y), y) for i, y in enumerate(labels)]
    taken["worst case"] = first
    matrices = {}
    for name, classes in taken.items():
        rows = {}
        for y, p in zip(labels, classes, strict=True):
            rows.setdefault(y, {}).setdefault(p, 0)
            rows[y][p] += 1
        matrices[name] = rows
    return labels, matrices


@pytest.mark.parametrize("cascade", [False, True])
def test_who_is_taken_for_whom(evaluator, finished, cascade):
    attacks = {**ATTACKS, "near": {"type": "deepfool", "steps": 3}}
    work = evaluator({"evaluate.cascade": cascade, "threat.epsilon": 0.05}, attacks=attacks)
    record, arrays = work.evaluate(), verdicts(work.folder.path)
    labels, matrices = classes_by_hand(record, arrays, cascade)
    found = record.classes
    assert found.taken == matrices and found.names == [str(digit) for digit in range(10)]
    assert found.n == np.bincount(labels).tolist()
    shares = {"nominal": record.nominal, **record.attacks, "worst case": record.worst_case}
    assert found.accuracy.keys() == shares.keys()
    for name, share in shares.items():
        assert [a * n for a, n in zip(found.accuracy[name], found.n, strict=True)] == pytest.approx(
            [matrices[name][y].get(y, 0) for y in range(10)]
        )
        assert sum(matrices[name][y].get(y, 0) for y in range(10)) == share.correct
    model, split = llrflow.load_model(finished), load_split(work.program.spec.data, "test")
    np.testing.assert_array_equal(labels, split.labels)
    clean = np.asarray(model.predict(split.images / np.float32(255)))
    for name, stored in arrays.items():
        np.testing.assert_array_equal(stored["label"], split.labels)
        np.testing.assert_array_equal(stored["clean"], clean)
        attacked = stored["tried"] > 0
        assert (stored["predicted"][~attacked] == -1).all() and (stored["predicted"][attacked] >= 0).all()
        changed = stored["predicted"] != split.labels
        if name != "near":
            np.testing.assert_array_equal(changed[attacked], stored["wrong"][attacked])
        else:  # the class at the nearest image that it found, which may lie outside the ball
            assert changed[stored["wrong"]].all() and changed[attacked].sum() > stored["wrong"].sum()


def test_one_without_classes_is_still_read_and_an_older_verdict_file_made_anew(copied, rewrite, load, numbers_of):
    path = copied / "evaluation" / "12.json"
    record = json.loads(path.read_text())
    rewrite(path, classes=None)
    again = evaluate_run(copied).evaluation
    assert again.classes is None and again.worst_case.correct == record["worst_case"]["correct"]
    path.unlink()
    verdict = copied / "evaluation" / "12.pgd.npz"
    with np.load(verdict) as stored:
        arrays = {name: stored[name] for name in stored.files if name not in ("predicted", "label", "clean")}
    np.savez(verdict, **arrays)
    assert json.loads(evaluate_run(copied).evaluation.classes.model_dump_json()) == record["classes"]


def test_a_cascade_attacks_what_still_stands(evaluator):
    """The cheaper attack first, whatever the order in the spec; kills add up to what was lost."""
    attacks = {"strong": {"type": "pgd", "steps": 5, "restarts": 2}, "weak": {"type": "fgsm"}}
    work = evaluator({"evaluate.cascade": True}, attacks=attacks)
    record, arrays = work.evaluate(), verdicts(work.folder.path)
    assert list(record.attacks) == ["weak", "strong"]
    weak, strong = record.attacks.values()
    assert weak.attacked == record.nominal.correct and strong.attacked == weak.correct == weak.attacked - weak.kills
    assert record.worst_case.correct == strong.correct == strong.attacked - strong.kills
    assert not arrays["strong"]["tried"][arrays["weak"]["wrong"]].any()
    assert weak.gradients == weak.attacked and 0 < strong.gradients < 10 * strong.attacked
    apart = evaluator(attacks=attacks).evaluate()
    assert apart.worst_case == record.worst_case and apart.attacks["strong"].attacked == record.nominal.correct


def test_an_interrupted_evaluation_tries_nothing_twice(evaluator, monkeypatch, tmp_path):
    calls, limits, original = [], [], AttackProgram.run

    def counted(self, variables, examples, *rest):
        calls.append((self.attack.registered_as[1], len(examples.y)))
        if len(calls) in limits:
            work.stop.signum = signal.SIGTERM
        yield from original(self, variables, examples, *rest)

    monkeypatch.setattr(AttackProgram, "run", counted)
    small = {"evaluate.batch_size": 12}  # 96 images in flight
    work = evaluator(small)
    whole, complete = work.evaluate(), verdicts(work.folder.path)
    rows = sum(count for _, count in calls)
    for path in work.folder.evaluation.iterdir():
        path.unlink()
    calls.clear()
    limits.extend((3, 7))
    for _ in limits:
        work = evaluator(small)
        with pytest.raises(Interrupted) as caught:
            work.evaluate()
        assert caught.value.exit_code == 143
    in_flight = sum(calls[limit - 1][1] for limit in limits)
    assert 0 < in_flight < rows / 2
    limits.clear()
    work = evaluator(small)
    again = work.evaluate()
    assert rows <= sum(count for _, count in calls) <= rows + in_flight
    for name, arrays in verdicts(work.folder.path).items():
        for field in Findings.FIELDS:
            np.testing.assert_array_equal(arrays[field], complete[name][field])
    assert again.worst_case == whole.worst_case and again.gamma == whole.gamma
    before = len(calls)
    evaluator().evaluate()
    assert len(calls) == before  # all verdicts are there
    evaluator({"evaluate.attacks.pgd.steps": 4}).evaluate()
    assert {name for name, _ in calls[before:]} == {"pgd"}
    before = len(calls)
    evaluator({"threat.epsilon": 0.1}).evaluate()
    assert {name for name, _ in calls[before:]} == {"noise", "fgsm", "pgd"}


def test_a_damaged_verdict_file_is_made_again(copied, load, numbers_of, finished):
    (copied / "evaluation" / "12.json").unlink()
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
    with pytest.raises(llrflow.base.errors.CheckpointError, match="choose from 12, 4, 8"):
        llrflow.load_model(finished, step=5)


def test_evaluation_uses_the_moving_average_unless_told_otherwise(load, tmp_path):
    llrflow.run(load({"train.ema": 0.9, "evaluate.attacks": {}, "train.steps": 4}), tmp_path)
    average, raw = llrflow.load_model(tmp_path), llrflow.load_model(tmp_path, parameters="raw")
    assert json.loads((tmp_path / "evaluation" / "4.json").read_text())["parameters"] == "ema"
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), average.params, raw.params)
    assert any(jax.tree.leaves(differs))


def test_a_run_is_evaluated_where_its_training_batch_does_not_divide(copied, as_trained):
    text = (copied / "spec.yaml").read_text()
    assert "batch_size: 64" in text and "count: 1" in text
    as_trained(copied, text.replace("batch_size: 64", "batch_size: 66").replace("count: 1", "count: null"))
    assert evaluate_run(copied).evaluation.n == 360  # on four devices


def test_loading_a_model_does_not_settle_the_number_of_devices(finished):
    code = (
        "import os, jax, llrflow\n"
        f"llrflow.load_model({str(finished)!r})\n"
        "assert jax.local_device_count() == len(os.sched_getaffinity(0)), jax.devices()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_the_best_checkpoint_is_that_of_the_highest_worst_case(copied, rewrite):
    assert evaluate_run(copied, "best").evaluation.checkpoint == 12  # the only one evaluated
    early = evaluate_run(copied, 4).evaluation
    path = copied / "evaluation" / "12.json"
    lower = early.worst_case.model_copy(update={"correct": 0, "accuracy": 0.0})
    rewrite(path, worst_case=lower.model_dump())
    assert evaluate_run(copied, "best").evaluation.checkpoint == 4
    for path in (copied / "evaluation").glob("*.json"):
        path.unlink()
    with pytest.raises(llrflow.base.errors.CheckpointError, match="no evaluation to choose the best"):
        evaluate_run(copied, "best")


def test_a_few_images_are_kept_with_what_changed_them(copied):
    evaluate_run(copied, attacks={"noise": {"type": "noise"}, "square": {"type": "square", "queries": 4}})
    model, split = llrflow.load_model(copied), load_split(llrflow.load_spec(copied / "spec.yaml").data, "test")
    (path,) = (path for path in (copied / "evaluation").glob("12-*.npz") if path.name.count(".") == 1)
    with np.load(path, allow_pickle=False) as stored:
        kept = dict(stored)
    assert len(kept["ids"]) == 8 and 0 < kept["changed"].sum() < 8
    np.testing.assert_array_equal(kept["labels"], split.labels[kept["ids"]])
    np.testing.assert_array_equal(kept["images"], split.images[kept["ids"]] / np.float32(255))
    assert np.abs(kept["delta"]).max(axis=(1, 2, 3)) == pytest.approx(0.15, rel=1e-5)
    for name, images in (("clean", kept["images"]), ("attacked", kept["images"] + kept["delta"])):
        np.testing.assert_allclose(kept[name], jax.nn.softmax(model.logits(images)), atol=1e-5)
    assert (kept["clean"].argmax(-1) == kept["labels"]).all()
    np.testing.assert_array_equal(kept["attacked"].argmax(-1) != kept["labels"], kept["changed"])
    for name in ("noise", "square"):
        (path,) = (copied / "evaluation").glob(f"12-*.{name}.npz")
        by_this = kept["attacks"] == name
        with np.load(path, allow_pickle=False) as stored:
            np.testing.assert_array_equal(stored["wrong"][kept["ids"]][by_this], kept["changed"][by_this])


@pytest.mark.parametrize("few", [None, 60])
def test_exported_images_are_what_the_verdicts_say(copied, few, monkeypatch):
    monkeypatch.setattr(
        "llrflow.runs.verdicts.SAVE_SECONDS", 0.0
    )  # so that the last batch is on disk before the attack ends
    attacks = {"deepfool": {"type": "deepfool", "steps": 5}, "pgd": {"type": "pgd", "steps": 5}}
    record = evaluate_run(copied, attacks=attacks, export=True, stop_after=few).evaluation
    model, split = llrflow.load_model(copied), load_split(llrflow.load_spec(copied / "spec.yaml").data, "test")
    for name, made in record.attacks.items():
        (path,) = (copied / "evaluation").glob(f"12-*.{name}.adversarial.npz")
        with np.load(path, allow_pickle=False) as stored:
            assert stored["x_adv"].dtype == np.float32 and len(stored["ids"]) == made.attacked
            wrong = np.asarray(model.logits(stored["x_adv"])).argmax(-1) != split.labels[stored["ids"]]
            assert stored["x_adv"].min() >= 0 and stored["x_adv"].max() <= 1
            np.testing.assert_array_equal(wrong | ~stored["success"], True)
            np.testing.assert_array_equal(wrong, stored["predicted"] != stored["labels"])
            if name == "pgd":
                np.testing.assert_array_equal(wrong, stored["success"])
                delta = stored["x_adv"] - split.images[stored["ids"]] / np.float32(255)
                assert np.abs(delta).max() <= 0.15 * (1 + 1e-5) and made.kills == wrong.sum()
    minimum = record.attacks["deepfool"].minimum
    accuracies = [point.accuracy for point in minimum.curve]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] <= record.nominal.accuracy
    at_epsilon = next(p for p in minimum.curve if p.epsilon == pytest.approx(0.15))
    assert at_epsilon.accuracy == pytest.approx(minimum.beyond_epsilon)
    assert 0 < minimum.median < 0.15


@pytest.mark.parametrize("preset", ["quick", "standard", "document", "auto_attack"])
def test_presets_are_valid(preset, load):
    from llrflow.runs.presets import evaluate_block

    block = evaluate_block(preset)
    spec = load({f"evaluate.{name}": value for name, value in block.items()} | {"evaluate.attacks": None} | {
        f"evaluate.attacks.{name}": attack for name, attack in block["attacks"].items()
    })  # fmt: skip
    assert list(spec.evaluate.attacks) == list(block["attacks"]) and spec.evaluate.cascade == block.get(
        "cascade", False
    )


def test_an_unknown_preset_is_refused(copied):
    with pytest.raises(llrflow.SpecError, match=r"'standart' is no preset; choose from auto_attack, .*, none, quick"):
        evaluate_run(copied, attacks="standart")


def test_a_transfer_attack_searches_on_the_other_model(copied, finished, load, tmp_path):
    other = llrflow.run(load({"seed": 1, "model.widths": [24], "evaluate.attacks": None}), tmp_path / "other").path
    white = {"type": "pgd", "steps": 5}
    attacks = {"itself": {"type": "transfer", "run": str(finished), "attack": white},
               "other": {"type": "transfer", "run": str(other), "attack": white}, "pgd": white}  # fmt: skip
    record = evaluate_run(copied, attacks={"cascade": False, "attacks": attacks}).evaluation
    assert record.attacks["itself"].correct == pytest.approx(record.attacks["pgd"].correct, abs=1)
    assert record.attacks["pgd"].correct < record.attacks["other"].correct < record.nominal.correct - 36
    for wrong, message in (({"run": ""}, "names no run"), ({"run": str(tmp_path)}, "is not a run folder")):
        with pytest.raises((llrflow.SpecError, llrflow.base.errors.CheckpointError), match=message):
            evaluate_run(copied, attacks={"x": {"type": "transfer", "attack": white, **wrong}})


def test_batches_shrink_to_the_memory_that_is_declared(evaluator):
    whole = evaluator().evaluate()
    small = evaluator({"evaluate.memory": "3 MB"}).evaluate()
    assert small.worst_case == whole.worst_case
    with pytest.raises(llrflow.SpecError, match=r"evaluate.memory: 1,000 bytes.*needs [\d,]+ for one example"):
        evaluator({"evaluate.memory": 1000, "seed": 7}).evaluate()
    with pytest.raises(llrflow.SpecError, match=r"memory.*'3 QB'.*write `2 GiB`"):
        evaluator({"evaluate.memory": "3 QB"})


def test_studies_are_written_beside_the_evaluation(copied):
    block = {
        "attacks": {"fgsm": {"type": "fgsm"}},
        "strength": {"examples": 60, "steps": [1, 4, 12], "restarts": [1, 3], "epsilons": [0.5, 1, 2],
                     "attack": {"type": "pgd", "steps": 4}},
        "linearity": {"examples": 60, "radii": [0.5, 1.0], "steps": 15},
        "surface": {"examples": 2, "points": 5, "attack": {"type": "pgd", "steps": 4}},
    }  # fmt: skip
    evaluate_run(copied, attacks=block)
    folder = copied / "evaluation"
    strength, linearity, surface = (
        json.loads(next(folder.glob(f"12-*.{name}.json")).read_text()) for name in ("strength", "linearity", "surface")
    )
    for curve in (strength["steps"], strength["restarts"], strength["epsilon"]):
        values = [point["accuracy"] for point in curve]
        assert values[0] >= values[-1] and all(0 <= value <= 1 for value in values)
    assert strength["epsilon"][0]["accuracy"] > strength["epsilon"][-1]["accuracy"]
    assert strength["restarts"][0]["accuracy"] == next(p["accuracy"] for p in strength["steps"] if p["steps"] == 4)
    found = linearity["perturbations"]
    assert found.keys() == {"random", "fgsm", "pgd", "gamma"}
    for half, full in found.values():
        assert full["epsilon"] == 2 * half["epsilon"] and full["gamma"]["mean"] > half["gamma"]["mean"]
    assert found["gamma"][1]["gamma"]["mean"] >= max(
        found[name][1]["gamma"]["mean"] for name in ("random", "fgsm", "pgd")
    )
    model, split = llrflow.load_model(copied), load_split(llrflow.load_spec(copied / "spec.yaml").data, "test")
    for image in surface["images"]:
        loss = np.array(image["loss"])
        assert loss.shape == (5, 5) and surface["axis"][2] == 0
        logits = jax.nn.log_softmax(model.logits(split.images[image["id"]][None] / np.float32(255)))[0]
        assert loss[2, 2] == pytest.approx(-float(logits[image["label"]]), abs=1e-4)
        assert loss[4, 2] > loss[2, 2]
    assert next(folder.glob("12-*.surface.svg")).read_text().lstrip().startswith("<?xml")
