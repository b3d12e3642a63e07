"""Both pipelines bring the same batches; the streaming one reads what a batch needs, a little ahead and no more."""

import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from llrflow.base.errors import DataError
from llrflow.data.batches import batch_ids
from llrflow.data.examples import of_files
from llrflow.data.facts import describe
from llrflow.data.metadata import SOURCE_FILE
from llrflow.data.pipelines import choose, open_split
from llrflow.data.reader import Records
from llrflow.data.resident import Resident
from llrflow.data.schema import Data
from llrflow.data.split import Request
from llrflow.data.streaming import AHEAD, Streaming
from llrflow.data.writer import write_tfds

N, BATCH, SEED = 60, 8, 5
SIZES = {"one": [(24, 20)], "many": [(24, 20), (50, 90), (17, 31), (230, 120)]}
CROP = {"crop": {"type": "random_resized_crop"}}


def file_of(number, size, kind="JPEG"):
    """A smooth colour picture of (height, width), encoded."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def files_of(sizes):
    kinds = ("JPEG", "JPEG", "PNG")
    return [file_of(i, SIZES[sizes][i % len(SIZES[sizes])], kinds[i % 3]) for i in range(N)]


def write(directory, files, sizes="one", name="pictures"):
    def examples(files):
        return of_files(len(files), sum(map(len, files)), lambda: ((file, i % 5) for i, file in enumerate(files)))

    shape = (*SIZES[sizes][0], 3) if sizes == "one" else (None, None, 3)
    splits = {"train": examples(files), "test": examples(files[:21])}
    assert write_tfds(name, directory, splits, classes=5, description="", source={}, image_shape=shape)


def block(directory, pipeline="auto", sizes="one", **fields):
    return Data.model_validate(
        {"name": "pictures", "dir": str(directory), "pipeline": pipeline, **fields}
        | ({} if sizes == "one" else {"image_size": 16})
    )


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A data directory for images of one size, and one for many sizes."""
    made = {sizes: tmp_path_factory.mktemp(sizes) for sizes in SIZES}
    for sizes, directory in made.items():
        write(directory, files_of(sizes), sizes)
    return made


@pytest.fixture
def reads(monkeypatch):
    """The ids of all records that are read."""
    seen, read = [], Records.read
    monkeypatch.setattr(Records, "read", lambda self, ids: (seen.extend(ids), read(self, ids))[1])
    return seen


def same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize("sizes", SIZES)
def test_both_pipelines_bring_the_same_batches_and_the_same_evaluation(directories, sizes):
    splits = [open_split(block(directories[sizes], p, sizes), "train", 0) for p in ("resident", "streaming")]
    assert [type(split) for split in splits] == [Resident, Streaming]
    assert len({split.fingerprint for split in splits}) == 1 and {len(split) for split in splits} == {N}
    epoch = N // BATCH
    for one, other in zip(*(split.batches(SEED, range(3, epoch + 3), BATCH) for split in splits), strict=True):
        same(one, other)
    ids = np.arange(N)[::-3]
    same(*(split.read(ids) for split in splits))
    chunks = [ids[:7], ids[7:9], ids[9:]]
    for one, chunk in zip(splits[1].load(map(Request, chunks)), chunks, strict=True):
        same(one, splits[0].read(chunk))
        assert one.labels.tolist() == (chunk % 5).tolist()


@pytest.mark.parametrize("sizes", SIZES)
def test_from_any_step_the_same_batches_follow_and_no_earlier_record_is_read(directories, sizes, reads):
    augment = CROP if sizes == "many" else {}
    split = open_split(block(directories[sizes], "streaming", sizes, augment=augment), "train", 0)
    steps = range(2 * (N // BATCH))
    unbroken = list(split.batches(SEED, steps, BATCH))
    begin = 10  # in the middle of the second epoch
    reads.clear()
    resumed = split.batches(SEED, steps[begin:], BATCH)
    same(next(resumed), unbroken[begin])
    resumed.close()
    wanted = [set(batch_ids(SEED, step, N, BATCH).tolist()) for step in steps]
    assert wanted[begin] <= set(reads) and len(reads) <= (1 + AHEAD) * BATCH
    assert set(reads) <= set.union(*wanted[begin : begin + AHEAD + 1])
    for step, batch in zip(steps[begin:], split.batches(SEED, steps[begin:], BATCH), strict=True):
        same(batch, unbroken[step])


def test_a_resident_split_gathers_the_rows_of_a_step_and_no_others(directories):
    split = open_split(block(directories["one"], "resident"), "train", 0)
    unbroken = list(split.batches(SEED, range(12), BATCH))

    class Rows(list):
        def __getitem__(self, ids):
            self.extend(ids.tolist())
            return images[ids]

    images, split.images = split.images, Rows()
    same(next(split.batches(SEED, range(10, 12), BATCH)), unbroken[10])
    assert list(split.images) == batch_ids(SEED, 10, N, BATCH).tolist()


def test_no_more_than_a_few_requests_are_ahead(directories):
    split, asked = open_split(block(directories["one"], "streaming"), "train", 0), []

    def requests():
        for first in range(0, N, 4):
            asked.append(first)
            yield Request(np.arange(first, first + 4))

    loaded = split.load(requests())
    for taken in range(1, 6):
        assert next(loaded).ids[0] == 4 * (taken - 1)
        assert len(asked) == taken + AHEAD
    assert [part.ids[0] for part in loaded] == list(range(20, N, 4))


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_each_process_reads_its_own_part_of_a_batch(directories, pipeline, reads):
    split = open_split(block(directories["one"], pipeline), "train", 0)
    whole = next(split.batches(SEED, range(4, 5), 12))
    parts = []
    for process in range(3):
        reads.clear()
        parts.append(next(split.batches(SEED, range(4, 5), 12, process, 3)))
        if pipeline == "streaming":
            assert sorted(reads) == sorted(parts[-1].ids.tolist())
    same(whole, [np.concatenate(field) for field in zip(*parts, strict=True)])
    with pytest.raises(DataError, match=r"train\.batch_size: = 8 does not divide over 3 processes; try 9"):
        split.batches(SEED, range(1), 8, 0, 3)


CORRUPT = (3, 17, 18)


@pytest.fixture
def damaged(tmp_path):
    """A data directory with three corrupt images, two of them neighbours: half a file, no image, another size."""
    files = files_of("one")
    files[3], files[17], files[18] = files[3][: len(files[3]) // 2], b"no image", file_of(18, (9, 9))
    write(tmp_path, files)
    return tmp_path


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
def test_corrupt_images_are_replaced_in_training_and_wrong_in_evaluation(damaged, pipeline):
    split = open_split(block(damaged, pipeline, corrupt=0.05), "train", 0)
    taken = split.read(np.arange(N))
    assert np.flatnonzero(taken.labels < 0).tolist() == list(CORRUPT) and not taken.images[list(CORRUPT)].any()
    instead = {3: 4, 17: 19, 18: 19}
    for step, batch in enumerate(split.batches(SEED, range(N // BATCH), BATCH)):
        ids = [instead.get(i, i) for i in batch_ids(SEED, step, N, BATCH).tolist()]
        assert batch.ids.tolist() == ids
        same(batch[:2], (taken.images[ids], taken.labels[ids]))
    names = split.corrupt_names()
    assert [name.split(":")[0] for name in names] == ["train/3", "train/17", "train/18"]
    assert "neither a JPEG nor a PNG" in names[1] and "is 9 x 9, not 24 x 20" in names[2]


@pytest.mark.parametrize("pipeline", ["resident", "streaming"])
@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.0, r"pictures/1\.0\.0: train/\d+: cannot be decoded: .*; remove the dataset.*data\.corrupt"),
        (0.04, r"train/\d+: cannot be decoded: .*; it is corrupt image number 3 of 60, data\.corrupt allows 2; "),
    ],
)
def test_more_corrupt_images_than_allowed_stop_the_run(damaged, pipeline, share, says):
    with pytest.raises(DataError, match=says) as caught:
        split = open_split(block(damaged, pipeline, corrupt=share), "train", 0)
        list(split.batches(SEED, range(N // BATCH + 7), BATCH))
    assert "\n" not in str(caught.value)
    assert not [path for path in damaged.glob(".llrflow/*/*") if ".npy" in path.name]  # nothing half-written


def test_a_cache_made_with_a_larger_share_is_checked_again(damaged):
    assert len(open_split(block(damaged, "resident", corrupt=0.1), "train", 0).corrupt) == 3
    assert list(damaged.glob(".llrflow/*/images.npy"))
    with pytest.raises(DataError, match=r"train/3: cannot be decoded"):
        open_split(block(damaged, "resident"), "train", 0)


def test_damaged_records_are_an_error_whatever_share_is_allowed(tmp_path):
    write(tmp_path, files_of("one"))
    records = next(tmp_path.glob("pictures/1.0.0/*train*"))
    records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    split = open_split(block(tmp_path, "streaming", corrupt=0.9), "train", 0)
    with pytest.raises(DataError, match=r"train cannot be decoded: .*prepare it again"):
        list(split.batches(SEED, range(3), BATCH))


def test_the_pipeline_follows_from_memory_and_augmentations(directories):
    one, many = directories["one"], directories["many"]
    decoded = N * 24 * 20 * 3

    def chosen(directory, role="train", sizes="one", **fields):
        data = block(directory, sizes=sizes, **fields)
        return choose(data, describe(data), role)

    assert chosen(one).pipeline == "resident" and chosen(one).decoded == decoded
    assert chosen(one).why == "86400 bytes decoded fit in data.memory = 4 GiB"
    assert chosen(one, memory=decoded).pipeline == "resident"
    assert chosen(one, memory=decoded - 1).pipeline == "streaming"
    assert chosen(one, "test", memory=decoded - 1).pipeline == "resident"  # fewer images
    assert chosen(one, augment=CROP).pipeline == "resident"
    assert chosen(many, sizes="many").pipeline == "resident"
    found = chosen(many, sizes="many", augment=CROP)
    assert found.pipeline == "streaming" and "data.augment.crop cuts its windows out of originals" in found.why
    assert chosen(many, "test", sizes="many", augment=CROP).pipeline == "resident"
    with pytest.raises(DataError, match=r"data\.pipeline: = 'resident' keeps resized images, but data\.augment\.crop"):
        chosen(many, sizes="many", augment=CROP, pipeline="resident")
    with pytest.raises(DataError, match=r"data\.augment\.crop: \(.*\) comes after flip, .*; put it first"):
        chosen(many, sizes="many", augment={"flip": {"type": "flip"}, **CROP})


def test_windows_come_out_of_the_originals_and_are_the_examples_own(directories):
    data = block(
        directories["many"], sizes="many", augment={"crop": {"type": "random_resized_crop", "scale": [0.05, 0.1]}}
    )
    split, plain = open_split(data, "train", 0), open_split(block(directories["many"], sizes="many"), "train", 0)
    first, second = islice(split.batches(SEED, range(2), N), 2)
    again = next(split.batches(SEED, range(1, 2), N))
    same(second, again)
    assert (first.images != next(plain.batches(SEED, range(1), N)).images).any(axis=(1, 2, 3)).all()
    rows = np.argsort(first.ids), np.argsort(second.ids)
    assert (first.images[rows[0]] != second.images[rows[1]]).any(axis=(1, 2, 3)).mean() > 0.9  # another epoch's windows
    ones = next(split.batches(SEED, range(4, 5), 4))  # the same step and examples in another batch
    among = next(split.batches(SEED, range(4, 5), 4, 1, 2))
    same(among, [field[2:] for field in ones])


def test_the_fingerprint_notices_other_records_without_reading_them(tmp_path):
    files = files_of("one")
    write(tmp_path, files)
    (tmp_path / "pictures" / "1.0.0" / SOURCE_FILE).unlink()  # as TFDS leaves a dataset
    prints = [open_split(block(tmp_path, "streaming"), "train", 0).fingerprint for _ in range(2)]
    write(tmp_path / "other", [files[0][:-1] + bytes([files[0][-1] ^ 1]), *files[1:]])  # of the same length
    (tmp_path / "other" / "pictures" / "1.0.0" / SOURCE_FILE).unlink()
    prints.append(open_split(block(tmp_path / "other", "streaming"), "train", 0).fingerprint)
    assert prints[0] == prints[1] != prints[2]
