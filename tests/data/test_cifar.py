"""CIFAR-10 and CIFAR-100 in both published versions, small, laid out as their authors do."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from llrflow.base.errors import DataError
from llrflow.data.importers import import_files
from llrflow.data.reader import open_dataset
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
FOLDERS = {
    ("cifar10", "cifar-python"): "cifar-10-batches-py",
    ("cifar100", "cifar-python"): "cifar-100-python",
    ("cifar10", "cifar-binary"): "cifar-10-batches-bin",
    ("cifar100", "cifar-binary"): "cifar-100-binary",
}
NAMES = {n: [f"name{k}" for k in range(n)] for n in (10, 20, 100)}


def content(dataset):
    """{file: (images [N,32,32,3], fine labels, coarse labels)}"""
    rng, made = np.random.default_rng(1), {}
    for file in [*BATCHES, "test_batch"] if dataset == "cifar10" else ["train", "test"]:
        n = 4 if file.startswith("test") else 6
        fine = rng.integers(0, 10 if dataset == "cifar10" else 100, n)
        made[file] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), fine, fine % 20
    return made


def published(dataset, version):
    """{file: bytes} as the authors publish them."""
    files = {}
    for file, (images, fine, coarse) in content(dataset).items():
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if version == "cifar-binary":
            columns = [fine[:, None]] if dataset == "cifar10" else [coarse[:, None], fine[:, None]]
            files[f"{file}.bin"] = np.hstack([*columns, rows]).astype(np.uint8).tobytes()
            continue
        kind = "testing batch 1 of 1" if file.startswith("test") else "training batch 1 of 5"
        keys = {"labels": fine} if dataset == "cifar10" else {"fine_labels": fine, "coarse_labels": coarse}
        data = {"batch_label": kind, "data": rows, **{key: labels.tolist() for key, labels in keys.items()}}
        files[file] = pickle.dumps(data, 2)
    lines = {n: ("\n".join(names) + "\n\n").encode() for n, names in NAMES.items()}
    if version == "cifar-binary":
        fine_and_coarse = {"fine_label_names.txt": lines[100], "coarse_label_names.txt": lines[20]}
        return files | ({"batches.meta.txt": lines[10]} if dataset == "cifar10" else fine_and_coarse)
    if dataset == "cifar10":
        return files | {"batches.meta": pickle.dumps({"label_names": NAMES[10]}, 2)}
    return files | {"meta": pickle.dumps({"fine_label_names": NAMES[100], "coarse_label_names": NAMES[20]}, 2)}


def folder(tmp_path, dataset, version):
    place = tmp_path / FOLDERS[dataset, version]
    place.mkdir()
    for name, data in published(dataset, version).items():
        (place / name).write_bytes(data)
    (place / "readme.html").write_text("hello")
    return place


def archive(place, mode="w:gz"):
    path = place.with_name(f"{place.name}.tar.gz")
    with tarfile.open(path, mode) as tar:
        tar.add(place, place.name)
    return path


@pytest.mark.parametrize("layout", ["folder", "parent", "archive", "plain archive"])
@pytest.mark.parametrize(("dataset", "version"), FOLDERS)
def test_every_pixel_label_and_name_is_kept(tmp_path, dataset, version, layout):
    place = folder(tmp_path, dataset, version)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in published(dataset, version).items()}
    source = {"folder": place, "parent": tmp_path}.get(layout) or archive(place, "w" if "plain" in layout else "w:gz")
    report = import_files(version, "c", source, tmp_path / "data")
    assert report.files.items() <= sums.items() and len(report.files) >= 3
    train, test = ({"cifar10": BATCHES, "cifar100": ["train"]}[dataset], ["test_batch", "test"])
    for split, files in (("train", train), ("test", test)):
        parts = [part for file, part in content(dataset).items() if file in files]
        got = load_split(Data(name="c", dir=str(tmp_path / "data")), split)
        np.testing.assert_array_equal(got.images, np.concatenate([images for images, _, _ in parts]))
        np.testing.assert_array_equal(got.labels, np.concatenate([fine for _, fine, _ in parts]))
        assert report.counts[split] == len(got.labels) == sum(report.label_counts[split])
    classes = 10 if dataset == "cifar10" else 100
    assert open_dataset(Data(name="c", dir=str(tmp_path / "data"))).class_names == tuple(NAMES[classes])
    assert report.classes == classes and report.class_names == NAMES[classes]


@pytest.mark.parametrize("version", ["cifar-python", "cifar-binary"])
def test_coarse_takes_the_superclasses_of_cifar_100_alone(tmp_path, version):
    place = folder(tmp_path, "cifar100", version)
    report = import_files(version, "c", place, tmp_path, options={"coarse": True})
    labels = load_split(Data(name="c", dir=str(tmp_path)), "train").labels
    np.testing.assert_array_equal(labels, content("cifar100")["train"][2])
    assert report.classes == 20
    with pytest.raises(DataError, match="other content exists"):
        import_files(version, "c", place, tmp_path)
    ten = folder(tmp_path, "cifar10", version)
    with pytest.raises(DataError, match=r"--coarse: .* is CIFAR-10, which has no superclasses"):
        import_files(version, "d", ten, tmp_path, options={"coarse": True})


def test_both_versions_hold_the_same_dataset(tmp_path):
    python, binary = (folder(tmp_path, "cifar10", version) for version in ("cifar-python", "cifar-binary"))
    assert import_files("cifar-python", "c", python, tmp_path).written
    assert not import_files("cifar-binary", "c", binary, tmp_path).written


def repickle(name, **changes):
    def apply(place):
        data = pickle.loads((place / name).read_bytes()) | changes
        (place / name).write_bytes(pickle.dumps({k: v for k, v in data.items() if v is not ...}, 2))

    return apply


def swap(one, other):
    def apply(place):
        (place / one).rename(place / "aside")
        (place / other).rename(place / one)
        (place / "aside").rename(place / other)

    return apply


def cut(name, end):
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:end])


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


REFUSED = {
    "truncated pickle": ("cifar-python", cut("data_batch_3", -900), "data_batch_3: is truncated, damaged or no pickle"),
    "no pickle": ("cifar-python", lambda p: (p / "test_batch").write_bytes(b"\x1f\x8b"), "test_batch: is truncated"),
    "malicious": ("cifar-python", repickle("data_batch_2", x=Malicious()), r"asks for posix\.system, which could run"),
    "swapped": ("cifar-python", swap("data_batch_1", "test_batch"), "says that it is 'testing batch 1 of 1'"),
    "too few labels": ("cifar-python", repickle("data_batch_4", labels=[1] * 5), "has 5 labels for 6 images"),
    "label 10": ("cifar-python", repickle("data_batch_4", labels=[10] * 6), r"has label 10, outside 0\.\.9"),
    "negative": ("cifar-python", repickle("test_batch", labels=[-1] * 4), "has label -1"),
    "no labels": ("cifar-python", repickle("test_batch", labels=...), "has no 'labels'; it holds batch_label, data"),
    "words": ("cifar-python", repickle("test_batch", labels=["cat"] * 4), "labels that are no list of numbers"),
    "shape": ("cifar-python", repickle("test_batch", data=np.zeros((4, 9), np.uint8)), r"holds uint8\[4, 9\] wh"),
    "names": ("cifar-python", repickle("batches.meta", label_names=["cat"] * 10), "names 1 different classes"),
    "missing": ("cifar-python", lambda p: (p / "data_batch_5").unlink(), "has no data_batch_5; it holds batches.meta"),
    "truncated binary": ("cifar-binary", cut("data_batch_3.bin", -9), "is truncated .* no multiple of 3073"),
    "cut at an image": ("cifar-binary", cut("data_batch_3.bin", -3073), "holds 5 images, other batches 6: it is trunc"),
    "empty": ("cifar-binary", cut("test_batch.bin", 0), "test_batch.bin: is truncated"),
    "twice": ("cifar-binary", lambda p: (p / "data_batch_2.bin").write_bytes((p / "data_batch_1.bin").read_bytes()),
              "data_batch_2.bin: has the same content as data_batch_1.bin"),
    "label byte": ("cifar-binary", lambda p: (p / "test_batch.bin").write_bytes(b"\x0a" * 3073), "has label 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_sound_is_refused_before_anything_is_written(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    version, damage, says = REFUSED[case]
    place = folder(tmp_path, "cifar10", version)
    damage(place)
    with pytest.raises(DataError, match=says) as caught:
        import_files(version, "c", place, tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists() and not Path("pwned").exists()


def test_swapped_files_of_cifar_100_are_refused(tmp_path):
    place = folder(tmp_path, "cifar100", "cifar-binary")
    swap("train.bin", "test.bin")(place)
    with pytest.raises(DataError, match=r"test\.bin: holds 6 images, more than those to train on: it was swapped"):
        import_files("cifar-binary", "c", place, tmp_path / "data")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "checksum"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = archive(folder(tmp_path, "cifar10", "cifar-binary"))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            "text": b"<html>404</html>",
            "checksum": whole[:-8] + b"\0\0\0\0" + whole[-4:],
        }[damage]
    )
    with pytest.raises(DataError, match="is not an intact tar archive") as caught:
        import_files("cifar-binary", "c", path, tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_an_archive_with_a_file_twice_is_refused(tmp_path):
    path = tmp_path / "c.tar.gz"
    with gzip.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for place in ("a", "../b"):
            info = tarfile.TarInfo(f"{place}/test_batch.bin")
            tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match=r"holds an unexpected \.\./b/test_batch\.bin"):
        import_files("cifar-binary", "c", path, tmp_path / "data")


def test_two_datasets_in_one_folder_are_told_apart(tmp_path):
    folder(tmp_path, "cifar10", "cifar-python"), folder(tmp_path, "cifar100", "cifar-python")
    with pytest.raises(DataError, match=r"holds cifar-10-batches-py and cifar-100-python; name one of them"):
        import_files("cifar-python", "c", tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match=r"has no .*; it holds none of CIFAR's files"):
        import_files("cifar-binary", "c", tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match="is neither a file nor a directory"):
        import_files("cifar-binary", "c", tmp_path / "nowhere", tmp_path / "data")
