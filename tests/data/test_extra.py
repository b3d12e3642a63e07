"""Batches that hold a share of another dataset's images."""

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import DataError
from llrflow.data.extra import FIRST_ID
from llrflow.data.importers import import_files
from llrflow.data.pipelines import open_split
from llrflow.data.schema import Data
from llrflow.data.writer import write_tfds
from llrflow.program.compile import Program
from llrflow.runs.interrupt import StopRequest
from llrflow.runs.train import Trainer

SEED, B = 5, 20
EXTRA = {"name": "made", "share": 0.7}
GENERATED = {
    "image": np.random.default_rng(1).integers(0, 256, (100, 8, 8), np.uint8),
    "label": np.arange(100) % 10,
}


@pytest.fixture(scope="module", autouse=True)
def made(data_dir, tmp_path_factory):
    """The directory of digits, where `made` is prepared from an npz in the layout of published generated images."""
    path = tmp_path_factory.mktemp("published") / "1m.npz"
    np.savez(path, **GENERATED)
    report = import_files("npz", "made", path, data_dir)
    assert report.counts == {"train": 100} and report.image_shape == (8, 8, 1) and report.classes == 10
    return data_dir


def opened(made, **changes):
    return open_split(Data(name="digits", dir=str(made), train="train[:61]", extra=EXTRA, **changes), "train", 0)


def test_each_batch_holds_its_share_and_both_sets_have_epochs_of_their_own(made):
    split = opened(made)
    main, extra = open_split(Data(name="digits", dir=str(made), train="train[:61]"), "train", 0), GENERATED
    assert len(split) == 61
    batches = list(split.batches(SEED, range(10 * 7), B))  # 10 steps are an epoch of 61 images in parts of 6
    of_extra = np.stack([batch.ids >= FIRST_ID for batch in batches])
    assert (of_extra.sum(axis=1) == 14).all()
    assert len({row.tobytes() for row in of_extra}) > 60, "extra images lie at random places"
    for batch, theirs in zip(batches, of_extra, strict=True):
        rows = batch.ids[theirs] - FIRST_ID
        np.testing.assert_array_equal(batch.images[theirs], extra["image"][rows][..., None])
        np.testing.assert_array_equal(batch.labels[theirs], extra["label"][rows])
        mine = main.read(batch.ids[~theirs])
        np.testing.assert_array_equal(batch.images[~theirs], mine.images)
        np.testing.assert_array_equal(batch.labels[~theirs], mine.labels)
    ids = np.stack([batch.ids for batch in batches])
    for sets, steps in ((~of_extra, 10), (of_extra, 7)):  # 7 steps are an epoch of 100 images in parts of 14
        epochs = [np.concatenate([i[s] for i, s in zip(ids[at : at + steps], sets[at : at + steps], strict=True)])
                  for at in range(0, 70, steps)]  # fmt: skip
        assert all(len(np.unique(epoch)) == len(epoch) for epoch in epochs), "no image comes twice in an epoch"
        assert len({np.sort(epoch).tobytes() for epoch in epochs}) > 1 and epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_any_step_can_be_gone_on_from_and_processes_share_a_batch(made, pipeline):
    whole = list(opened(made, pipeline="resident").batches(SEED, range(25), B))
    again = opened(made, pipeline=pipeline).batches(SEED, range(13, 25), B)
    parts = [opened(made, pipeline=pipeline).batches(SEED, range(13, 25), B, process, 2) for process in (0, 1)]
    for unbroken, resumed, *halves in zip(whole[13:], again, *parts, strict=True):
        for ours, other, *both in zip(unbroken, resumed, *halves, strict=True):
            np.testing.assert_array_equal(other, ours)
            np.testing.assert_array_equal(np.concatenate(both), ours)


def test_devices_share_the_batches_of_one_and_train_alike(load, monkeypatch):
    seen, place = {1: [], 2: []}, Program.place

    def watched(program, batch, number):
        on_devices = np.asarray(program.devices.shard(batch.ids))
        assert on_devices.shape == (len(program.devices), 64 // len(program.devices))
        seen[len(program.devices)].append(on_devices.reshape(-1))
        return place(program, batch, number)

    monkeypatch.setattr(Program, "place", watched)
    ends = []
    for count in (1, 2):
        spec = load({"data.extra": EXTRA, "train.steps": None, "train.epochs": 1, "devices.count": count})
        program = llrflow.compile(spec)
        assert program.steps == 1437 // (64 - 45), "epochs count training images"
        trainer = Trainer(program, _Alone(), open_split(spec.data, "train", 0), None, quiet=True)
        ends.append(program.devices.fetch(trainer.train(program.init(), StopRequest()).params))
    np.testing.assert_array_equal(seen[1], seen[2])
    assert len(seen[1]) == 75 and all((ids >= FIRST_ID).sum() == 45 for ids in seen[1])
    for module, arrays in ends[0].items():
        for name, array in arrays.items():
            np.testing.assert_allclose(ends[1][module][name], array, rtol=1e-3, atol=1e-4, err_msg=f"{module}/{name}")


class _Alone:
    index, count = 0, 1

    def stop_signal(self, mine):
        return mine


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"name": "made", "share": 1}, r"data\.extra\.share = 1(\.0)? leaves no room for both .*between 0 and 1"),
        ({"name": "made", "share": 0}, r"data\.extra\.share = 0(\.0)? leaves no room for both"),
        ({"name": "made", "share": 0.005}, r"data\.extra\.share = 0\.005 of a batch of 64 leaves 64 training .* and 0"),
        ({"name": "made", "share": 0.999}, r"data\.extra\.share = 0\.999 of a batch of 64 leaves 0 training images"),
        ({"name": "made", "share": 0.7, "split": "train[:40]"}, r"data\.extra\.share .* is 45 images, and made has 40"),
        ({"name": "made", "share": 0.7, "split": "trian"}, r"data\.extra\.split made has no split 'trian'; did you"),
        ({"name": "mode", "share": 0.7}, r"data\.extra\.name dataset 'mode' is not prepared .*did you mean 'made'"),
        ({"name": "made", "share": 0.7, "labels": "own"}, r"data\.extra\.labels = 'own' .*'given' or 'pseudo'"),
        ({"name": "synthetic", "share": 0.7}, r"= 'synthetic' has images \[32, 32, 3\], digits images \[8, 8, 1\]"),
        ({"name": "few", "share": 0.7}, r"data\.extra\.name = 'few' has 3 classes, digits 10 classes"),
        ({"name": "made", "share": 0.7, "options": {"seed": 1}}, r"data\.extra\.options does not apply to made; only"),
    ],
)  # fmt: skip
def test_extra_images_that_do_not_fit_are_refused(made, load, extra, says):
    if extra["name"] == "few":
        splits = {"train": (GENERATED["image"][:6, ..., None], np.arange(6) % 3)}
        write_tfds("few", made, splits, classes=3, description="", source={})
    with pytest.raises((llrflow.SpecError, DataError), match=says) as caught:
        llrflow.compile(load({"data.extra": extra}))
    assert "\n" not in str(caught.value)


def test_images_of_another_range_are_not_imported(tmp_path):
    for image, says in ((GENERATED["image"] / 255, "image is float64; store pixels as uint8, 0 to 255"),
                        (GENERATED["image"] // 255, "image has no pixel above 1, as if scaled")):  # fmt: skip
        np.savez(tmp_path / "a.npz", image=image, label=GENERATED["label"])
        with pytest.raises(DataError, match=says):
            import_files("npz", "other", tmp_path / "a.npz", tmp_path / "data")
