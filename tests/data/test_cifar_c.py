"""CIFAR-10-C's layout: one file a corruption, five severities one after the other."""

import json

import numpy as np
import pytest

from llrflow.base.errors import DataError
from llrflow.data.importers import import_files
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

N = 30
LABELS = np.tile(np.arange(N) % 10, 5)
PIXELS = {
    name: np.random.default_rng(seed).integers(0, 256, (5 * N, 32, 32, 3), np.uint8)
    for seed, name in enumerate(("fog", "gaussian_noise"))
}


def write(folder, labels=LABELS, **changes):
    folder.mkdir(exist_ok=True)
    for name, array in {"labels": labels, **PIXELS, **changes}.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_a_corruption_is_a_config_and_a_severity_a_split(tmp_path, command, inside):
    folder = write(tmp_path / "CIFAR-10-C")
    source, data = (tmp_path if inside else folder), tmp_path / "data"
    arguments = ("data", "import", "cifar10_c", "--format", "cifar-c", "--from", source, "--data-dir", data)
    code, out, err = command(*arguments)
    assert code == 0 and "2 configs, each with these splits: fog, gaussian_noise" in out, err
    for corruption, pixels in PIXELS.items():
        for severity in range(1, 6):
            block = Data(name="cifar10_c", config=corruption, dir=str(data))
            got, rows = load_split(block, f"severity_{severity}"), slice((severity - 1) * N, severity * N)
            np.testing.assert_array_equal(got.images, pixels[rows])
            np.testing.assert_array_equal(got.labels, LABELS[rows])
    report = json.loads(command(*arguments, "--json")[1])
    assert not report["written"] and report["configs"] == list(PIXELS) and len(report["files"]) == 3
    assert report["counts"] == {f"severity_{severity}": N for severity in range(1, 6)}


def object_file(path):
    np.save(path, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "labels.npy").unlink(), "holds no labels.npy"),
        (lambda f: [(f / f"{name}.npy").unlink() for name in PIXELS], "holds no .npy file beside labels.npy"),
        (lambda f: write(f, labels=LABELS[:-1]), r"labels.npy: is int64\[149\]; give integers"),
        (lambda f: write(f, labels=np.concatenate([LABELS[:60], LABELS[60:] + 1])), "other labels at severity 3 than"),
        (lambda f: write(f, fog=PIXELS["fog"][:-1]), "fog.npy: has 149 images for 150 labels"),
        (lambda f: write(f, fog=PIXELS["fog"].astype(np.float32)), r"fog.npy: holds float32\[150, 32, 32, 3\]"),
        (lambda f: write(f, fog=PIXELS["fog"][:, :16]), r"gaussian_noise.npy: has images \[32, 32, 3\], fog.npy"),
        (lambda f: object_file(f / "fog.npy"), "fog.npy: is not an intact .npy file"),
        (lambda f: (f / "fog.npy").write_bytes((f / "fog.npy").read_bytes()[:5000]), "fog.npy: is not an intact"),
        (lambda f: np.save(f / "a b.npy", PIXELS["fog"]), "a b.npy: cannot name a TFDS config"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(tmp_path, harm, says):
    folder = write(tmp_path / "c")
    harm(folder)
    with pytest.raises(DataError, match=says):
        import_files("cifar-c", "c", folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_corruption_may_follow_but_no_other_content(tmp_path):
    folder = write(tmp_path / "c")
    assert import_files("cifar-c", "c", folder, tmp_path / "data").written
    write(folder, frost=PIXELS["fog"][::-1])
    assert import_files("cifar-c", "c", folder, tmp_path / "data").configs == ["fog", "frost", "gaussian_noise"]
    write(folder, frost=PIXELS["fog"])
    with pytest.raises(DataError, match=r"a dataset 'c' with other content exists in .*frost"):
        import_files("cifar-c", "c", folder, tmp_path / "data")
