import json
import os
import socket
import sys
import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from llrflow.base.errors import DataError
from llrflow.data import resident
from llrflow.data.catalog import prepared, summaries
from llrflow.data.facts import describe
from llrflow.data.metadata import SOURCE_FILE
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.data.writer import write_tfds


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def digits(tmp_path):
    return Data(name="digits", dir=str(tmp_path))


def toy(tmp_path, labels=(0, 1, 2, 0, 1, 2), shape=(4, 5, 3), name="toy"):
    """A prepared dataset with random pixels; returns its images."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), np.uint8)
    splits = {"train": (images, np.array(labels)), "test": (images[:2], np.array(labels[:2]))}
    assert write_tfds(name, tmp_path, splits, classes=3, description="toy", source={})
    return images


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    file.with_name(SOURCE_FILE).unlink(missing_ok=True)  # as TFDS leaves a dataset


def cache_of(tmp_path, split):
    return tmp_path / ".llrflow" / split.fingerprint


def test_digits_prepare_themselves_with_every_pixel_of_scikit_learn(digits, tmp_path):
    facts = describe(digits)
    assert (facts.image_shape, facts.classes, facts.train, facts.test) == ((8, 8, 1), 10, 1437, 360)
    assert facts.splits == {"train": 1437, "test": 360} and facts.directory == tmp_path / "digits" / "1.0.0"
    assert not list(tmp_path.glob(".llrflow/*/images.npy"))  # describing decodes nothing
    raw = load_digits()
    held_out = np.arange(1797) % 5 == 0
    for split, rows in ((digits.train, ~held_out), (digits.test, held_out)):
        got = load_split(digits, split)
        assert got.images.dtype == np.uint8 and got.labels.dtype == np.int32 and got.classes == 10
        np.testing.assert_array_equal(np.rint(got.images[..., 0] * (16 / 255)), raw.images[rows])
        np.testing.assert_array_equal(got.labels, raw.target[rows])
        assert set(np.unique(got.images)) <= {round(level * 255 / 16) for level in range(17)}
    assert "tensorflow" not in sys.modules


def test_the_second_load_reads_the_cache(digits, monkeypatch):
    first = load_split(digits, "test")
    monkeypatch.setattr(resident, "_decode", lambda *args: pytest.fail("decoded again"))
    second = load_split(digits, "test")
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("images.npy", lambda path: os.truncate(path, path.stat().st_size - 100)),
        ("images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07")),
        ("labels.npy", lambda path: path.unlink()),
        ("sha256.json", lambda path: path.write_text("[]")),
        ("sha256.json", lambda path: path.write_text("{")),
    ],
    ids=["truncated", "flipped bits", "labels gone", "list for sums", "cut sums"],
)
def test_a_damaged_cache_is_rebuilt(tmp_path, file, damage):
    images = toy(tmp_path)
    data = Data(name="toy", dir=str(tmp_path))
    cache = cache_of(tmp_path, load_split(data, "train"))
    (cache / ".images.npy.dead.tmp").write_bytes(b"left by a killed process")
    damage(cache / file)
    np.testing.assert_array_equal(load_split(data, "train").images, images)
    assert sorted(p.name for p in cache.iterdir()) == ["images.npy", "labels.npy", "lock", "sha256.json"]


def test_without_a_place_for_the_cache_the_split_is_decoded_into_memory(tmp_path):
    images = toy(tmp_path)
    data = Data(name="toy", dir=str(tmp_path))
    fingerprint = load_split(data, "test").fingerprint
    private = tmp_path / ".llrflow"
    private.rename(tmp_path / "elsewhere")
    private.write_text("a file in the way, since root may write everywhere")
    split = load_split(data, "test")
    assert not isinstance(split.images, np.memmap) and split.fingerprint == fingerprint
    np.testing.assert_array_equal(split.images, images[:2])
    np.testing.assert_array_equal(split.labels, [0, 1])


def test_split_expressions_select_rows_of_the_whole_split(digits):
    whole = load_split(digits, "train")
    sliced = {e: load_split(digits, e) for e in ("train[:80%]", "train[80%:]", "train[5:9]", "train+test")}
    halves = [sliced["train[:80%]"].images, sliced["train[80%:]"].images]
    np.testing.assert_array_equal(np.concatenate(halves), whole.images)
    np.testing.assert_array_equal(sliced["train[5:9]"].labels, whole.labels[5:9])
    assert len(sliced["train+test"].labels) == 1797
    assert len({whole.fingerprint, *(s.fingerprint for s in sliced.values())}) == 5
    block = digits.model_copy(update={"train": "train[:80%]", "test": "train[80%:]"})
    assert describe(block).train + describe(block).test == 1437


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    prints = []
    for place, labels in (("a", (0, 1, 2)), ("b", (0, 1, 2)), ("c", (0, 2, 2))):
        (tmp_path / place).mkdir()
        toy(tmp_path / place, labels)
        prints.append(load_split(Data(name="toy", dir=str(tmp_path / place)), "train").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_more_examples_than_one_chunk_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, "_CHUNK", 4)
    images = toy(tmp_path, labels=(0, 1, 2) * 3)
    split = load_split(Data(name="toy", dir=str(tmp_path)), "train")
    np.testing.assert_array_equal(split.images, images)
    assert split.labels.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (
            {"name": "toi"},
            r"data\.name: dataset 'toi' is not prepared in .*usable there: digits, synthetic, toy.*mean 'toy'",
        ),
        (
            {"name": "cifar10"},
            r"run `llrflow data import cifar10 --format .*idx, cifar-python.*`llrflow data prepare cifar10`",
        ),
        ({"name": "../toy"}, r"data\.name: dataset '\.\./toy' is not prepared"),
        ({"version": "2.0.0"}, r"data\.version: version '2\.0\.0' of toy is not prepared.*mean '1\.0\.0'"),
        ({"config": "plain"}, r"data\.config: toy has no config 'plain'"),
        ({"train": "trian[:50%]"}, r"data\.train: toy has no split 'trian'; did you mean 'train'\?"),
        ({"test": "validation"}, r"data\.test: toy has no split 'validation'; choose from test, train"),
        ({"train": "train["}, r"data\.train: 'train\[' is not a split of toy"),
        ({"train": "train[:99]"}, r"data\.train: 'train\[:99\]' is not a split of toy: .*6 examples"),
        ({"test": "test[:0]"}, r"data\.test: 'test\[:0\]' selects no examples"),
    ],
)
def test_a_block_that_does_not_fit_is_refused_at_once(tmp_path, block, says):
    toy(tmp_path)
    start = time.perf_counter()
    with pytest.raises(DataError, match=says) as caught:
        describe(Data(**{"name": "toy", "dir": str(tmp_path)} | block))
    assert time.perf_counter() - start < 30  # a search of the network would take a minute
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("dataset_info.json", lambda c: c.update(fileFormat="parquet"), "parquet, which ignores split slices"),
        (
            "dataset_info.json",
            lambda c: c.update(fileFormat="tfrecord"),
            "tfrecord, which needs TensorFlow.*array_record",
        ),
        ("dataset_info.json", lambda c: c.pop("fileFormat"), "tfrecord, which needs TensorFlow"),
        ("features.json", lambda c: c["featuresDict"]["features"].pop("label"), "no feature 'label' for the labels"),
        ("features.json", lambda c: c["featuresDict"]["features"]["image"]["image"].update(dtype="uint16"), "uint16"),
        (
            "features.json",
            lambda c: c["featuresDict"]["features"].update(label=c["featuresDict"]["features"]["image"]),
            "'label' of toy is not a class label",
        ),
    ],
)
def test_datasets_that_cannot_be_used_are_refused(tmp_path, file, change, says):
    toy(tmp_path)
    edit(tmp_path / "toy" / "1.0.0" / file, change)
    with pytest.raises(DataError, match=rf"data\.name: .*{says}"):
        load_split(Data(name="toy", dir=str(tmp_path)), "train")


def test_damaged_metadata_and_records_are_one_line_errors(tmp_path):
    toy(tmp_path)
    directory, data = tmp_path / "toy" / "1.0.0", Data(name="toy", dir=str(tmp_path))
    records = next(directory.glob("toy-train*"))
    os.truncate(records, records.stat().st_size // 2)
    with pytest.raises(DataError, match=r"train cannot be decoded: .*remove it and prepare it again"):
        load_split(data, "train")
    assert len(load_split(data, "test").labels) == 2
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json:? cannot be read"):
        load_split(data, "test")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", SOURCE_FILE])
def test_metadata_that_llrflow_wrote_is_believed_as_it_was_written(tmp_path, name):
    toy(tmp_path)
    file = tmp_path / "toy" / "1.0.0" / name
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": "1.0.1"}))
    with pytest.raises(DataError, match=f"{name}:? (cannot be read: it is not|has changed)") as refused:
        load_split(Data(name="toy", dir=str(tmp_path)), "train")
    assert "prepare the dataset again" in str(refused.value)


SUMMARISED = {
    "dataset_info.json": lambda file: edit(file, lambda c: c["splits"][0].update(shardLengths=["x3"])),
    "features.json": lambda file: edit(file, lambda c: c.update(featuresDict=None)),
    "or features.json": lambda file: edit(file.with_name("dataset_info.json"), lambda c: c["splits"][0].pop("name")),
    "label.labels.txt": lambda file: file.write_text("b\na\n"),
    SOURCE_FILE: lambda file: file.write_text('{"metadata_sha256": [1]}'),
}


@pytest.mark.parametrize("name", SUMMARISED)
def test_damaged_metadata_is_told_and_ends_no_list(name, tmp_path):
    splits = {"train": (np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]))}
    for dataset in ("damaged", "whole"):
        write_tfds(dataset, tmp_path, splits, classes=["a", "b"], description="", source={})
    SUMMARISED[name](tmp_path / "damaged" / "1.0.0" / name)
    damaged, whole = summaries(tmp_path)
    assert name in damaged["error"] and "prepare the dataset again" in damaged["error"]
    assert whole["splits"] == {"train": 2} and "error" not in whole


def test_unlabelled_examples_are_refused(tmp_path):
    toy(tmp_path, labels=(0, 1, -1))
    with pytest.raises(DataError, match=r"train has label -1, outside 0\.\.2"):
        load_split(Data(name="toy", dir=str(tmp_path)), "train")


def test_the_newest_version_and_the_only_config_are_taken(tmp_path):
    toy(tmp_path)
    for place in ("9.0.0", "10.0.0"):
        (tmp_path / "toy" / "1.0.0").rename(tmp_path / "toy" / place)
        edit(tmp_path / "toy" / place / "dataset_info.json", lambda c, v=place: c.update(version=v))
        toy(tmp_path)
    data = Data(name="toy", dir=str(tmp_path))
    assert describe(data).version == "10.0.0"
    assert describe(data.model_copy(update={"version": "9.0.0"})).version == "9.0.0"
    (tmp_path / "two").mkdir()
    for config in ("red", "blue"):
        toy(tmp_path, name=config)
        (tmp_path / config).rename(tmp_path / "two" / config)
        edit(tmp_path / "two" / config / "1.0.0" / "dataset_info.json", lambda c: c.update(name="two"))
    with pytest.raises(DataError, match=r"data\.config: two is prepared in several configs; choose from blue, red"):
        describe(Data(name="two", dir=str(tmp_path)))


def test_only_finished_datasets_are_prepared_ones(tmp_path):
    toy(tmp_path)
    for place in ("toy/incomplete.AB12_1.0.1", ".llrflow/staging/1.0.0", "other/1.0.0"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "toy/incomplete.AB12_1.0.1/dataset_info.json").write_text("{}")
    (tmp_path / ".llrflow/staging/1.0.0/dataset_info.json").write_text("{}")
    assert [(p.name, p.version) for p in prepared(tmp_path)] == [("toy", "1.0.0")]
    assert prepared(tmp_path / "nowhere") == []
