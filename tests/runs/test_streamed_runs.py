"""Runs on streamed data: the numbers of resident data, images of any size, corrupt ones, a dataset that changed."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import llrflow
from llrflow.base.errors import CheckpointError, DataError
from llrflow.data.examples import of_files
from llrflow.data.writer import write_tfds

STREAMED = {"data.pipeline": "streaming"}


def write(directory, corrupt=(), train=64, name="pictures"):
    """A dataset of small JPEGs of many sizes in two classes: dark and light."""

    def file(number):
        height, width = (12, 16) if number % 3 else (20, 11)
        levels = np.random.default_rng(number).integers(0, 100, (height, width, 3)) + 150 * (number % 2)
        out = io.BytesIO()
        Image.fromarray(levels.astype(np.uint8)).save(out, "JPEG")
        return b"broken" if number in corrupt else out.getvalue()

    def examples(first, n):
        return of_files(n, n * 1000, lambda: ((file(i), i % 2) for i in range(first, first + n)))

    splits = {"train": examples(0, train), "test": examples(1000, 30)}
    directory.mkdir(exist_ok=True)
    shape = (None, None, 3)
    assert write_tfds(name, directory, splits, classes=2, description="", source={}, image_shape=shape)
    return {"data.name": name, "data.dir": str(directory), "data.image_size": 8, "train.batch_size": 16}


def test_a_streamed_run_has_the_numbers_of_a_resident_one(finished, load, tmp_path, numbers_of):
    run = llrflow.run(load(STREAMED), tmp_path / "run")
    assert numbers_of(run.path) == numbers_of(finished)
    assert run.record.spec_hash == json.loads((finished / "run.json").read_text())["spec_hash"]


def test_images_of_any_size_are_trained_on_and_evaluated(load, tmp_path):
    changes = write(tmp_path / "data")
    crop = {"data.augment.crop": {"type": "random_resized_crop", "scale": [0.3, 1.0]}}
    run = llrflow.run(load(changes | crop), tmp_path / "run")
    assert run.record.data.image_shape == (8, 8, 3) and run.evaluation.n == 30
    assert run.evaluation.nominal.accuracy == 1  # dark and light are told apart by any window
    plain = llrflow.run(load(changes), tmp_path / "plain")
    assert (run.path / "metrics.jsonl").read_bytes() != (plain.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_corrupt_test_images_are_never_counted_as_correct(load, tmp_path, pipeline):
    changes = write(tmp_path / "data", corrupt=(5, 1003, 1004)) | {"data.pipeline": pipeline}
    with pytest.raises(DataError, match=r"(train/5|test/3): cannot be decoded"):
        llrflow.run(load(changes), tmp_path / "run")
    run = llrflow.run(load(changes | {"data.corrupt": 0.1, "train.steps": 8}), tmp_path / "allowed")
    again = llrflow.run(load(changes | {"data.corrupt": 0.2, "train.steps": 8}), tmp_path / "allowed")
    assert again.record.corrupt == run.record.corrupt and again.evaluation == run.evaluation
    assert [name.split(":")[0] for name in run.record.corrupt] == ["train/5"]
    assert [name.split(":")[0] for name in run.evaluation.corrupt] == ["test/3", "test/4"]
    assert run.evaluation.n == 30 and run.evaluation.nominal.correct <= 28
    assert run.evaluation.worst_case.correct <= run.evaluation.nominal.correct


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_a_dataset_that_changed_since_the_run_began_is_refused(load, tmp_path, pipeline):
    changes = {"data.pipeline": pipeline, "train.steps": 4, "data.augment": {}}
    for place in ("before", "other", "fewer"):
        write(tmp_path / place, train=63 if place == "fewer" else 64, corrupt=(3,) if place == "other" else ())
    block = write(tmp_path / "spare") | changes | {"data.corrupt": 0.1}
    llrflow.run(load(block | {"data.dir": str(tmp_path / "before")}), tmp_path / "run")
    llrflow.run(load(block), tmp_path / "run")  # the same content elsewhere
    for place, says in (
        ("other", r"its content has \(fingerprint \w{12}, now \w{12}\)"),
        ("fewer", "train was 64, is 63"),
    ):
        message = rf"the dataset has changed since this run began: {says}; restore the dataset"
        with pytest.raises(CheckpointError, match=message):
            llrflow.run(load(block | {"data.dir": str(tmp_path / place)}), tmp_path / "run")


def test_plan_says_which_pipeline_and_why(command, tmp_path, tiny, write_spec):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"data.memory": "1 MB"})
    code, out, _ = command("plan", spec, "--estimate")
    assert code == 0
    assert "train images resident: 91968 bytes decoded fit in data.memory = " in re.sub(" +", " ", out)
    code, out, _ = command("plan", spec, "--estimate", "--set", "data.memory=50 kB")
    assert code == 2
    code, out, _ = command("plan", spec, "--estimate", "--set", "data.memory=50000", "--json")
    pipelines = json.loads(out)["pipelines"]
    assert [pipelines[role]["pipeline"] for role in ("train", "test")] == ["streaming", "resident"]
