"""Averaged parameters of networks with BatchNorm: their statistics are estimated once, kept, and used everywhere."""

import json
import shutil

import jax
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError
from llrflow.data.pipelines import open_split
from llrflow.program.compile import Program
from llrflow.runs.averages import estimated
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.classifier import hash_of
from llrflow.runs.export import export_model
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.reevaluate import evaluate_run

AVERAGED = {
    "model": {"type": "resnet", "widths": [8, 16], "norm": "batch"},
    "optimizer": {"type": "sgd", "learning_rate": 0.2, "momentum": 0.9},
    "objective.terms": None,
    "objective.perturbations": None,
    "train.ema": {"type": "equal_average", "begin": "50%"},
    "train.steps": 150,
    "checkpoint.every": 75,
    "evaluate.attacks": {"fgsm": {"type": "fgsm"}},
}


@pytest.fixture(scope="module")
def averaged(load, tmp_path_factory):
    """Folder of the finished run of a network with BatchNorm whose parameters were averaged at a high rate."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    llrflow.run(load(AVERAGED), folder)
    return folder


@pytest.fixture
def copy(averaged, tmp_path):
    return shutil.copytree(averaged, tmp_path / "run")


def certificate(folder, step=150):
    record = json.loads((folder / "evaluation" / f"{step}.json").read_text())
    del record["started"], record["sha256"]
    for attack in record["attacks"].values():
        del attack["seconds"]
    return record


def never(*arguments):
    raise AssertionError("it is estimated anew")


def test_the_average_is_as_good_as_with_the_statistics_of_the_whole_split(averaged, load):
    found, model = certificate(averaged), llrflow.load_model(averaged)
    assert found["parameters"] == "ema" and found["statistics_images"] == 1437 // 64 * 64
    data = llrflow.load_spec(averaged / "spec.yaml").data
    train, test = open_split(data, "train", 0), open_split(data, "test", 0)
    whole = train.read(np.arange(len(train))).images.astype(np.float32) / 255

    network = llrflow.compile(load(AVERAGED))._compiled.network

    def statistics(images):
        unused = jax.tree.map(np.zeros_like, model.variables[1])
        return network.apply(model.params, unused, None, images, True)[1]

    own = jax.tree.map(lambda leaf: leaf[0], jax.vmap(statistics, axis_name="devices")(whole[None]))
    images, labels, _ = test.read(np.arange(len(test)))
    predict = jax.jit(lambda x: model.network.predict((model.params, own), x))
    accuracy = float((np.asarray(predict(images.astype(np.float32) / 255)).argmax(-1) == labels).mean())
    assert found["nominal"]["accuracy"] > accuracy - 0.01 and accuracy > 0.9, (found["nominal"], accuracy)

    raw = Checkpoints(averaged / "checkpoints").restore(llrflow.compile(load(AVERAGED)).abstract_state(), 150)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), model.variables[1], raw.model_state)
    assert max(jax.tree.leaves(apart)) > 0.05  # as evaluated before


def test_load_model_and_export_need_no_training_images(averaged, copy, tmp_path):
    text = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(text.replace("name: digits\n  dir: ", "name: digits\n  dir: /nowhere"))
    model = llrflow.load_model(copy)
    _, record = export_model(copy, tmp_path / "export")
    assert hash_of(model.variables) == record.network_sha256 == certificate(averaged)["network_sha256"]


def test_statistics_are_estimated_once_and_anew_for_another_step(copy, monkeypatch):
    with pytest.raises(CheckpointError, match=r"has no BatchNorm statistics of checkpoint 75's .*--checkpoint 75"):
        llrflow.load_model(copy, step=75)
    assert llrflow.load_model(copy, step=75, parameters="raw").step == 75
    evaluate_run(copy, 75)
    sha256 = hash_of(llrflow.load_model(copy, step=75).variables)
    assert sha256 == certificate(copy, 75)["network_sha256"] != certificate(copy)["network_sha256"]
    monkeypatch.setattr(Program, "averaged_statistics", never)
    evaluate_run(copy, 75)
    evaluate_run(copy, 150)


def test_they_go_where_their_checkpoint_goes_and_are_sealed_with_it(copy, tmp_path):
    ours, other = Checkpoints(copy / "checkpoints"), Checkpoints(tmp_path / "pinned")
    ours.copy_to(other, 150)
    target = llrflow.load_model(copy).variables[1]
    statistics, images = other.statistics(150, target)
    jax.tree.map(np.testing.assert_array_equal, statistics, target)
    assert images == 1408 and other.problem(150) is None
    path = copy / "checkpoints" / "150" / "statistics.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert ours.problem(150) == "statistics.npz has changed"


def test_a_stopped_estimate_is_made_again_to_the_same_record(averaged, load, tmp_path, monkeypatch):
    folder, whole = tmp_path / "run", Program.averaged_statistics

    def stopped(program, state, batches, between):
        def noted(done):
            if done == 3:
                raise KeyboardInterrupt
            between(done)

        return whole(program, state, batches, noted)

    monkeypatch.setattr(Program, "averaged_statistics", stopped)
    with pytest.raises(KeyboardInterrupt):
        llrflow.run(load(AVERAGED), folder)
    monkeypatch.undo()
    assert not (folder / "checkpoints" / "150" / "statistics.npz").exists()
    llrflow.run(load(AVERAGED), folder)
    assert certificate(folder) == certificate(averaged)
    assert (folder / "metrics.jsonl").read_bytes() == (averaged / "metrics.jsonl").read_bytes()


def test_a_stop_request_ends_an_estimate(averaged, load):
    program, stop = llrflow.compile(load(AVERAGED)), StopRequest()
    state = Checkpoints(averaged / "checkpoints").restore(program.abstract_state(), 150)
    stop.signum = 15
    with pytest.raises(Interrupted, match="run the same command to continue"):
        estimated(program, state, lambda: open_split(program.spec.data, "train", 0), stop, True)


def test_without_training_images_it_says_what_to_do(copy, tmp_path, data_dir):
    shutil.copytree(data_dir / "digits", tmp_path / "data" / "digits")  # without what was decoded
    for path in (tmp_path / "data").rglob("*-train*"):
        path.unlink()
    text = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(text.replace(str(data_dir), str(tmp_path / "data")))
    with pytest.raises(llrflow.SpecError, match=r"train\.ema averages a network with BatchNorm, whose statistics need"):
        evaluate_run(copy, 75)
    assert evaluate_run(copy, 150).evaluation.statistics_images == 1408  # these are kept


@pytest.mark.parametrize("changes", [{"model.norm": "group"}, {"train.ema": None}, {"evaluate.parameters": "raw"}])
def test_other_networks_keep_what_training_left(load, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(Program, "averaged_statistics", never)
    run = llrflow.run(load({**AVERAGED, "train.steps": 4, "evaluate.attacks": {}, **changes}), tmp_path)
    assert run.evaluation.statistics_images is None
