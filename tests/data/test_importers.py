import gzip
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llrflow.base.errors import DataError
from llrflow.commands.data import data as command
from llrflow.data.catalog import prepared
from llrflow.data.importers import import_idx
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES.values()


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def arrays(n=30, classes=3):
    rng = np.random.default_rng(0)
    counts = {"train": n, "test": n // 2}
    images = {split: rng.integers(0, 256, (count, 6, 5), np.uint8) for split, count in counts.items()}
    return {split: {"images": images[split], "labels": np.arange(count) % classes} for split, count in counts.items()}


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    content = arrays()
    for (split, kind), name in NAMES.items():
        (directory / name).write_bytes(idx(content[split][kind]))
    return directory


@pytest.mark.parametrize("layout", ["plain", "gz", "dots"])
def test_import_keeps_every_pixel_and_label_in_order(source, tmp_path, layout):
    for file in list(source.iterdir()):
        if layout == "gz":
            (source / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
        if layout == "dots":
            file.rename(source / file.name.replace("-idx", ".idx"))
    seen = []
    report = import_idx("tiny", source, tmp_path, lambda done, total: seen.append((done, total)))
    assert report.written and report.counts == {"train": 30, "test": 15} and report.image_shape == (6, 5, 1)
    assert report.classes == 3 and report.label_counts == {"train": [10] * 3, "test": [5] * 3}
    assert report.files == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in source.iterdir()}
    assert json.loads((Path(report.directory) / "llrflow_source.json").read_text())["files"] == report.files
    assert seen[-1] == (45, 45)
    for split, content in arrays().items():
        got = load_split(Data(name="tiny", dir=str(tmp_path)), split)
        np.testing.assert_array_equal(got.images, content["images"][..., None])
        np.testing.assert_array_equal(got.labels, content["labels"])


def change(name, edit):
    def apply(source):
        (source / name).write_bytes(edit((source / name).read_bytes()))

    return apply


def swap(source):
    images = (source / TRAIN_IMAGES).read_bytes()
    (source / TRAIN_IMAGES).write_bytes((source / TRAIN_LABELS).read_bytes())
    (source / TRAIN_LABELS).write_bytes(images)


def compress(cut):
    def apply(source):
        content = gzip.compress((source / TRAIN_IMAGES).read_bytes())
        (source / f"{TRAIN_IMAGES}.gz").write_bytes(cut(content))
        (source / TRAIN_IMAGES).unlink()

    return apply


def flip_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


REFUSED = {
    "truncated": (change(TRAIN_IMAGES, lambda b: b[:-7]), rf"{TRAIN_IMAGES}: is truncated: 893 bytes .* announces 900"),
    "truncated header": (change(TEST_IMAGES, lambda b: b[:9]), rf"{TEST_IMAGES}: is truncated within its header"),
    "no byte": (change(TEST_LABELS, lambda b: b""), rf"{TEST_LABELS}: is no idx file of labels: starts with nothing"),
    "empty": (change(TEST_LABELS, lambda b: idx(np.zeros(0))), rf"{TEST_LABELS}: is empty"),
    "trailing": (change(TEST_LABELS, lambda b: b + b"\0"), rf"{TEST_LABELS}: has trailing bytes: 16 .* announces 15"),
    "truncated gz": (compress(lambda b: b[:-9]), rf"{TRAIN_IMAGES}\.gz: is not an intact gzip file"),
    "corrupt gz": (compress(flip_middle), rf"{TRAIN_IMAGES}\.gz: is not an intact gzip file"),
    "trailing gz": (compress(lambda b: b + b"more"), rf"{TRAIN_IMAGES}\.gz: is not an intact gzip file"),
    "not gz": (compress(lambda b: b"plain"), rf"{TRAIN_IMAGES}\.gz: is not an intact gzip file"),
    "swapped": (swap, rf"{TRAIN_IMAGES}: holds labels, not images \(magic 00000801\); swap it"),
    "magic": (
        change(TEST_IMAGES, lambda b: b"\x89PNG" + b[4:]),
        rf"{TEST_IMAGES}: is no idx file.*starts with 89504e47",
    ),
    "float data": (change(TEST_IMAGES, lambda b: b"\0\0\x0d\3" + b[4:]), "starts with 00000d03, not with 00000803"),
    "counts": (
        change(TRAIN_LABELS, lambda b: idx(np.arange(29) % 3)),
        "has 29 labels for the 30 images in train-images",
    ),
    "label gap": (
        change(TRAIN_LABELS, lambda b: idx(np.arange(30) % 3 * 2)),
        "up to 4, but no example is labelled 1, 3",
    ),
    "one-based": (change(TRAIN_LABELS, lambda b: idx(np.arange(30) % 3 + 1)), "no example is labelled 0; relabel"),
    "one class": (change(TRAIN_LABELS, lambda b: idx(np.zeros(30))), "has one class only"),
    "test label": (
        change(TEST_LABELS, lambda b: idx(np.arange(15) % 4)),
        r"has label 3, but the training labels are 0\.\.2",
    ),
    "sizes": (change(TEST_IMAGES, lambda b: idx(np.zeros((15, 5, 5)))), "are 5 x 5, those of the training set 6 x 5"),
    "missing": (lambda s: (s / TEST_LABELS).unlink(), rf"has no {TEST_LABELS} \(nor with \.gz\); it holds t10k-images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_not_sound_are_refused_before_anything_is_written(source, tmp_path, case):
    damage, says = REFUSED[case]
    damage(source)
    with pytest.raises(DataError, match=says) as caught:
        import_idx("tiny", source, tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["", "Tiny", "9lives", "a-b", "../tiny", "tiny/1", "tiny\n"])
def test_names_that_tfds_cannot_use_are_refused(source, tmp_path, name):
    with pytest.raises(DataError, match="is not a valid name"):
        import_idx(name, source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_importing_twice_keeps_the_first_and_other_content_is_refused(source, tmp_path):
    first = import_idx("tiny", source, tmp_path)
    info = Path(first.directory) / "dataset_info.json"
    written = info.stat().st_mtime_ns
    images = source / TRAIN_IMAGES
    (source / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(images.read_bytes()))
    plain = images.read_bytes()
    images.unlink()
    assert not import_idx("tiny", source, tmp_path).written  # the same content, compressed
    images.write_bytes(flip_middle(plain))
    with pytest.raises(DataError, match=r"a dataset 'tiny' with other content exists .*another name"):
        import_idx("tiny", source, tmp_path)
    assert info.stat().st_mtime_ns == written
    np.testing.assert_array_equal(
        load_split(Data(name="tiny", dir=str(tmp_path)), "train").images[..., 0], arrays()["train"]["images"]
    )


def test_a_place_that_cannot_be_written_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written: .*choose a writable"):
        import_idx("tiny", source, tmp_path / "file")


def test_too_small_a_disk_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    pixels = 45 * 6 * 5
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=pixels))
    with pytest.raises(
        DataError, match=r"below: has 1\.35e-06 GB left on its disk, the dataset takes about .* GB; make"
    ):
        import_idx("tiny", source, tmp_path / "data" / "below")
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**18 + 20 * pixels))
    report = import_idx("tiny", source, tmp_path / "data")
    assert sum(path.stat().st_size for path in Path(report.directory).glob("*array_record*")) < 2**18 + 20 * pixels


SLOW_IMPORT = """
import sys, time
from pathlib import Path
from llrflow.data import writer
from llrflow.data.importers import import_idx
writer._BATCH = 5
def report(done, total):
    print(done, flush=True)
    time.sleep(0.2)
import_idx("tiny", Path(sys.argv[1]), Path(sys.argv[2]), report)
"""


def test_a_killed_import_leaves_nothing_that_loads_and_can_be_repeated(source, tmp_path):
    data_dir = tmp_path / "data"
    with subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, source, data_dir], stdout=subprocess.PIPE) as process:
        for _ in range(7):  # into the second split
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    half_written = list(data_dir.rglob("tiny-train*"))
    assert half_written and prepared(data_dir) == []
    with pytest.raises(DataError, match="'tiny' is not prepared"):
        load_split(Data(name="tiny", dir=str(data_dir)), "train")
    assert import_idx("tiny", source, data_dir).written
    assert not any(file.exists() for file in half_written)
    assert len(load_split(Data(name="tiny", dir=str(data_dir)), "test").labels) == 15


def test_an_error_in_the_middle_removes_what_was_written(source, tmp_path):
    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_idx("tiny", source, tmp_path, fail)
    assert not list(tmp_path.rglob("tiny-train*"))


def test_two_imports_at_once_leave_one_intact_dataset(source, tmp_path):
    data_dir = tmp_path / "data"
    both = [
        subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, source, data_dir], stdout=subprocess.PIPE) for _ in "ab"
    ]
    wrote = [len(process.communicate()[0].split()) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(wrote) == [0, 9]
    np.testing.assert_array_equal(
        load_split(Data(name="tiny", dir=str(data_dir)), "test").images[..., 0], arrays()["test"]["images"]
    )


def test_the_command_imports_lists_and_speaks_json(source, tmp_path):
    def run(*words):
        return CliRunner().invoke(
            command, [*map(str, words)], catch_exceptions=False, env={"LLRFLOW_DATA_DIR": str(tmp_path)}
        )

    assert run("list").stdout == f"no dataset is prepared in {tmp_path}\n"
    first = run("import", "tiny", "--format", "idx", "--from", source)
    assert f"tiny: written to {tmp_path}/tiny/1.0.0\n  images 6 x 5 x 1, 3 classes\n" in first.stdout
    assert "  train: 30 examples, 10 of each class\n" in first.stdout and "writing tiny: 45 of 45" in first.stderr
    again = run("import", "tiny", "--format", "idx", "--from", source, "--json")
    assert json.loads(again.stdout)["written"] is False
    assert run("list").stdout == "tiny  1.0.0  train 30, test 15  6 x 5 x 1  array_record\n"
    [row] = json.loads(run("list", "--json").stdout)
    assert row["splits"] == {"train": 30, "test": 15} and row["image_shape"] == [6, 5, 1]
    with pytest.raises(DataError, match="--format: 'idy' is not a known format; did you mean 'idx'"):
        run("import", "tiny", "--format", "idy", "--from", source)
    assert "Examples:" in run("import", "--help").stdout


@pytest.mark.slow
def test_real_fashion_mnist(fashion_mnist, tmp_path):
    report = import_idx("fashion_mnist", fashion_mnist, tmp_path)
    assert report.label_counts == {"train": [6000] * 10, "test": [1000] * 10}
    train = load_split(Data(name="fashion_mnist", dir=str(tmp_path)), "train")
    with gzip.open(fashion_mnist / f"{TRAIN_IMAGES}.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16)
    assert train.images.shape == (60000, 28, 28, 1) and train.classes == 10
    assert Path(str(train.images.filename)).stat().st_size == 60000 * 28 * 28 + train.images.offset
    np.testing.assert_array_equal(train.images.ravel(), raw)
