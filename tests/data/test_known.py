"""Facts of well-known datasets stand in where nothing is prepared, and nowhere else."""

import dataclasses

import pytest

from llrflow.base.errors import DataError
from llrflow.data.facts import describe
from llrflow.data.schema import Data
from llrflow.data.well_known import KNOWN, describe_or_known


@pytest.fixture
def facts(tmp_path):
    return lambda **fields: describe_or_known(Data(dir=str(tmp_path), **fields))


@pytest.mark.parametrize("name", KNOWN)
def test_facts_of_every_dataset_of_the_table(name, facts):
    known = KNOWN[name]
    test = "test" if "test" in known.splits else "validation"
    found = facts(name=name, test=test, image_size=None if known.size else 224)
    assert found.image_shape == (*(known.size or (224, 224)), known.channels) and found.classes == known.classes
    assert (found.train, found.test) == (known.splits["train"], known.splits[test])
    assert found.source == "table" and found.splits == known.splits


def test_split_expressions_mean_what_they_mean_on_prepared_data(facts):
    found = facts(name="cifar10", train="train[:90%]", test="train[90%:]+test[:7]")
    assert (found.train, found.test) == (45_000, 5_007)


@pytest.mark.parametrize(
    "options", [None, {"height": 6, "width": 9, "channels": 1, "classes": 3, "train": 7, "test": 4}]
)
def test_a_built_in_dataset_says_what_it_will_hold(tmp_path, options):
    name = "digits" if options is None else "synthetic"
    data = Data(name=name, options=options or {}, dir=str(tmp_path / "data"), train="train[1:]", validation=2)
    said = describe_or_known(data)
    assert not (tmp_path / "data").exists() and said.source == "built-in"
    found = describe(data)
    assert dataclasses.replace(said, source="prepared", directory=found.directory) == found == describe_or_known(data)
    with pytest.raises(DataError, match=r"data\.version: version '2\.0\.0' of .* did you mean '1\.0\.0'"):
        describe_or_known(data.model_copy(update={"version": "2.0.0", "dir": str(tmp_path / "none")}))


def test_a_prepared_dataset_is_looked_at(data_dir):
    data = Data(name="digits", dir=str(data_dir))
    assert describe_or_known(data) == describe(data) and describe(data).source == "prepared"


def test_a_prepared_dataset_of_the_table_is_looked_at(tmp_path):
    import numpy as np

    from llrflow.data.writer import write_tfds

    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    splits = {"train": (images, labels), "test": (images[:2], labels[:2])}
    write_tfds("mnist", tmp_path, splits, classes=4, description="Not MNIST.", source={})
    found = describe_or_known(Data(name="mnist", dir=str(tmp_path)))
    assert (found.source, found.train, found.image_shape) == ("prepared", 4, (8, 8, 1))
    with pytest.raises(DataError, match=r"data\.image_size: = 9 but the images of mnist are 8 x 8; leave it out"):
        describe_or_known(Data(name="mnist", dir=str(tmp_path), image_size=9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "imagenet2012", "test": "validation"}, r"data\.image_size: is missing: .* vary in size; set it"),
        (
            {"name": "imagenet2012", "image_size": 224},
            r"data\.test: imagenet2012 has no split 'test'; choose from train",
        ),
        ({"name": "cifar10", "image_size": 64}, r"data\.image_size: = 64 but the images of cifar10 are 32 x 32"),
        ({"name": "cifar10", "test": "tets"}, r"data\.test: cifar10 has no split 'tets'; did you mean 'test'"),
        ({"name": "cifar10", "train": "train[:0]"}, r"data\.train: 'train\[:0\]' selects no examples of cifar10"),
        ({"name": "imagenette", "config": "full-size", "image_size": 8}, r"data\.name: .* is not prepared"),
        ({"name": "cifra10"}, r"data\.name: dataset 'cifra10' is not prepared"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_the_table_cannot_answer(facts, fields, message):
    with pytest.raises(DataError, match=message):
        facts(**fields)


def test_describe_itself_never_uses_the_table(tmp_path):
    with pytest.raises(DataError, match="is not prepared"):
        describe(Data(name="cifar10", dir=str(tmp_path)))
