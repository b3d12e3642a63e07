"""Images held back from training: how many and which, on either pipeline, and that no batch ever holds one."""

import numpy as np
import pytest

from llrflow.base.errors import DataError
from llrflow.data.facts import describe
from llrflow.data.held_back import check_classes
from llrflow.data.pipelines import open_split
from llrflow.data.schema import Data
from llrflow.data.split import Part
from llrflow.data.well_known import describe_or_known

N, BATCH = 1437, 64


@pytest.fixture
def block(data_dir):
    """block(validation, **fields) -> the data block of digits."""
    return lambda validation=None, **fields: Data(name="digits", dir=str(data_dir), validation=validation, **fields)


def split_of(data, role, seed=0):
    """The images for a purpose, and the ids of all of them in the training split."""
    split = open_split(data, role, seed)
    return split, split.read(np.arange(len(split))).ids


@pytest.mark.parametrize(("validation", "held"), [(0.2, 287), (0.5, 718), (100, 100), ("train[80%:]", 287)])
@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_the_training_split_is_divided_and_no_batch_of_an_epoch_holds_what_is_held_back(
    block, validation, held, pipeline
):
    data = block(validation, pipeline=pipeline)
    facts = describe(data)
    assert (facts.train, facts.validation, facts.held) == (N - held, held, held)
    train, ids = split_of(data, "train")
    whole = open_split(block(pipeline=pipeline), "train", 0)
    seen = []
    for batch in train.batches(3, range((N - held) // BATCH), BATCH):
        wanted = whole.read(batch.ids)
        np.testing.assert_array_equal(batch.images, wanted.images)
        np.testing.assert_array_equal(batch.labels, wanted.labels)
        seen += batch.ids.tolist()
    assert len(set(seen)) == len(seen) >= N - held - BATCH
    validation_split, kept = split_of(data, "validation")
    if isinstance(validation, str):  # which is a split of its own, with rows of its own
        kept = np.arange(N - held, N)
    assert set(seen) <= set(ids) and not set(ids) & set(kept) and len({*ids, *kept}) == N
    images = validation_split.read(np.arange(held)).images
    np.testing.assert_array_equal(images, whole.read(np.sort(kept)).images)
    assert len({open_split(data, role, 0).fingerprint for role in ("train", "validation")} | {whole.fingerprint}) == 3


def test_which_are_held_back_depends_on_seed_and_id_alone(block):
    chosen = {seed: split_of(block(200), "validation", seed)[1] for seed in (0, 1)}
    assert len(set(chosen[0]) & set(chosen[1])) < 60  # 27.8 on average
    more = split_of(block(300), "validation")[1]
    assert set(chosen[0]) < set(more)
    shorter = split_of(block(150, train="train[:718]"), "validation")[1]
    assert {i for i in chosen[0] if i < 718} < set(shorter)  # about 100 of 718: the smallest there too


def test_what_takes_the_place_of_a_corrupt_image_is_not_held_back(block):
    train, ids = split_of(block(0.5), "train")
    _, kept = split_of(block(0.5), "validation")
    before_held = next(int(i) for i in ids if i + 1 in kept)
    labels = train._whole.labels.copy()
    labels[before_held] = -1
    train._whole.labels, train.corrupt[before_held] = labels, "damaged"
    seen = np.concatenate([batch.ids for batch in train.batches(0, range(len(ids) // BATCH), BATCH)])
    assert before_held not in seen and not set(seen) & set(kept)
    assert train.corrupt_names() == [f"train/{before_held}: damaged"]
    assert open_split(block(0.5), "validation", 0).corrupt_names() == []


def test_a_part_of_the_held_back_images_names_them_as_the_dataset_does(block):
    held, ids = split_of(block(0.5), "validation")
    some = Part(held, np.array([3, 5, 8]))
    held.corrupt[int(ids[5])] = held.corrupt[int(ids[6])] = "damaged"
    assert some.corrupt_names() == [f"train/{ids[5]}: damaged"]
    for mine, theirs in zip(some.read(np.array([2, 1])), held.read(np.array([8, 5])), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("validation", "says"),
    [
        (1437, r"= 1437 leaves none of 1437 training images; hold back fewer"),
        (1e-4, r"= 0\.0001 holds back none of 1437 training images; hold back more"),
        ("test", r"= 'test' has 360 images of data\.test = 'test'; choose others"),
        ("test[:10]+train[:9]", r"has 10 images of data\.test"),
        ("dev", r"digits has no split 'dev'; .*train\[:80%\]"),
    ],
)
def test_what_cannot_be_held_back_is_one_line(block, validation, says):
    with pytest.raises(DataError, match=rf"^data\.validation: .*{says}") as caught:
        describe(block(validation))
    assert "\n" not in str(caught.value)


def test_no_class_may_lose_all_its_training_images(block):
    with pytest.raises(DataError, match=r"^data\.validation: = 0\.995 leaves class '\d' \(and \d more\) without"):
        check_classes(block(0.995), 0)  # 7 images cannot be of 10 classes
    check_classes(block(0.9), 0)


def test_other_images_of_the_dataset_leave_training_whole_and_tables_know_as_much(data_dir):
    def sizes(**fields):
        facts = describe_or_known(Data(dir=str(data_dir), **fields))
        return facts.train, facts.validation, facts.held

    assert sizes(name="cifar10", validation=0.1) == (45_000, 5_000, 5_000)
    assert sizes(name="cifar10", validation="train[-1024:]") == (48_976, 1_024, 1_024)
    assert sizes(name="svhn_cropped", validation="extra[:2000]") == (73_257, 2_000, 0)
    assert sizes(name="svhn_cropped", train="train+extra", validation="extra[:2000]") == (602_388, 2_000, 2_000)
