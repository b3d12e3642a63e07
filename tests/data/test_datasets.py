"""Built-in datasets: the default's bytes for ever, and any other shape by options."""

import json

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.data import datasets
from llrflow.data.catalog import find, prepared
from llrflow.data.examples import content_sha256
from llrflow.data.facts import describe
from llrflow.data.resident import load_split
from llrflow.data.schema import Data


def test_the_default_is_what_it_always_was(tmp_path):
    # Written by the first version; another sum changes the numbers of every run on it.
    sums = {
        "train": "25744057f8d0971466370f4e9c339c1c309b5ac41782ba5636a7e500fca26605",
        "test": "04a5270be2d07c746b393891da2719cea81379218aa2c11ca9524d51f7b9f964",
    }
    made = find(Data(name="synthetic", dir=str(tmp_path)))
    assert json.loads((made.directory / "llrflow_source.json").read_text())["content_sha256"] == sums
    assert made.config is None and not any(path.name.startswith("32x32") for path in tmp_path.rglob("*"))


def block(tmp_path, **options):
    return Data.model_validate({"name": "synthetic", "dir": str(tmp_path), "options": options})


SMALL = {"height": 9, "width": 6, "channels": 1, "classes": 3, "train": 40, "test": 20}


def test_options_choose_shape_classes_and_size_and_a_folder_of_their_own(tmp_path):
    small, seeded = block(tmp_path, **SMALL), block(tmp_path, **SMALL, seed=1)
    facts = describe(small)
    assert (facts.image_shape, facts.classes, facts.train, facts.test) == ((9, 6, 1), 3, 40, 20)
    assert facts.directory == tmp_path / "synthetic/9x6x1-3-40-20-0/1.0.0"
    assert describe(seeded).directory == tmp_path / "synthetic/9x6x1-3-40-20-1/1.0.0"
    assert len(prepared(tmp_path)) == 2
    splits = [load_split(part, "train") for part in (small, seeded)]
    assert len({split.fingerprint for split in splits}) == 2
    assert splits[0].labels.tolist() == [k % 3 for k in range(40)] and (splits[0].images != splits[1].images).any()


def test_the_nearest_class_mean_learns_it(tmp_path):
    data = block(tmp_path, **SMALL)
    train, test = load_split(data, "train"), load_split(data, "test")
    means = np.stack([train.images[train.labels == k].mean(0) for k in range(3)])
    distances = ((test.images[:, None].astype(float) - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == test.labels).mean() == 1


def test_chunks_of_any_size_hold_the_same_images(monkeypatch):
    dataset = make("dataset", {"type": "synthetic", **SMALL})
    splits = {"train": dataset._examples(0, 40), "test": dataset._examples(40, 20)}
    whole = content_sha256(splits)
    monkeypatch.setattr(datasets, "_CHUNK_PIXELS", 9 * 6 * 7)
    pieces = {"train": dataset._examples(0, 40), "test": dataset._examples(40, 20)}
    assert content_sha256(pieces) == whole
    assert len({image.tobytes() for part in pieces.values() for image, _ in part.read()}) == 60


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"name": "synthetic", "options": {"heigth": 3}}, r"data\.options\.heigth = 3 is not a field.*mean 'height'"),
        ({"name": "synthetic", "options": {"height": 0}}, r"data\.options\.height = 0 should be greater"),
        (
            {"name": "synthetic", "options": {"height": "tall"}},
            r"data\.options\.height = 'tall' should be a valid integer",
        ),
        ({"name": "digits", "options": {"height": 3}}, r"data\.options\.height = 3 is not a field of dataset digits"),
        (
            {"name": "cifar10", "options": {"height": 3}},
            r"data\.options does not apply to cifar10; only digits, synthetic",
        ),
    ],
)
def test_options_are_checked_when_the_spec_is_loaded(tiny, data, says):
    spec = tiny()
    with pytest.raises(SpecError, match=says):
        llrflow.load_spec({**spec, "data": {**spec["data"], **data}})
    assert llrflow.load_spec({**spec, "data": {"name": "synthetic", "options": SMALL}}).data.options == SMALL
