"""Small files that claim or unpack to much more: refused in one line, without the memory that they ask for."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from llrflow.base.arrays import NotArrays, open_npz, read_npz

ALLOWED = 300 * 2**20
"""Bytes above what the process has before it meets the file."""

REFUSE = """
import resource, sys, pathlib
from llrflow.base.errors import DataError
from llrflow.base.arrays import NotArrays, read_npz
from llrflow.data.importers import import_files
kind, path, to = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
import llrflow.data.cifar, llrflow.data.npz, llrflow.data.idx
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    import_files(kind, "n", path, to)
except DataError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


MEBIBYTES = 512
"""That a bomb unpacks to."""


def zeros():
    """So much of nothing, in parts."""
    return (bytes(2**20) for _ in range(MEBIBYTES))


def npz_of_zeros(path):
    """Images of nothing in a two hundredth of their bytes: every header is right."""
    with zipfile.ZipFile(path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape, kind in (
            ("image", (MEBIBYTES * 2**10, 32, 32), "|u1"),
            ("label", (MEBIBYTES * 2**10,), "|u1"),
        ):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head.getvalue())
                for part in zeros() if name == "image" else [bytes(MEBIBYTES * 2**10)]:
                    file.write(part)
    return path / "a.npz"


def npz_that_claims(path):
    """A header of 10^14 bytes."""
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        for name, shape in (("image", (10**11, 32, 32)), ("label", (10**11,))):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", head.getvalue())
    return path / "a.npz"


def tar_of_zeros(path):
    """Six batches, each of which alone would be allowed."""
    names = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
    with tarfile.open(path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 100 * 2**20
            archive.addfile(info, _Zeros(info.size))
    return path / "a.tar.gz"


class _Zeros(io.RawIOBase):
    def __init__(self, size):
        self._left = size

    def read(self, size=-1):
        size = min(self._left, size if size >= 0 else self._left)
        self._left -= size
        return bytes(size)


def pickle_that_multiplies(path):
    """Lists of lists of one thing: 10^7 items of a few hundred bytes."""
    value = b"x"
    for _ in range(7):
        value = [value] * 10
    content = pickle.dumps({"data": value, "labels": [0]}, 2)
    assert len(content) < 700
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(content)
    return path


def idx_of_zeros(path):
    """Images of nothing, gzipped."""
    for split in ("train", "t10k"):
        with gzip.open(path / f"{split}-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", MEBIBYTES * 2**10, 32, 32))
            for part in zeros() if split == "train" else [bytes(1024)]:
                file.write(part)
        with gzip.open(path / f"{split}-labels-idx1-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(bytes([0, 0, 8, 1]) + struct.pack(">I", 2) + bytes(2))
    return path


BOMBS = {
    "npz of zeros": ("npz", npz_of_zeros, "unpack to more than"),
    "npz that claims": ("npz", npz_that_claims, "announces"),
    "tar of zeros": ("cifar-python", tar_of_zeros, "unpacks to more than"),
    "pickle": ("cifar-python", pickle_that_multiplies, "holds more than its bytes could say"),
    "idx": ("idx", idx_of_zeros, "bytes of data, more than"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "make", "says"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_one_line_and_little_memory(tmp_path, kind, make, says):
    source = tmp_path / "source"
    source.mkdir()
    path = make(source)
    command = [sys.executable, "-c", REFUSE, kind, path, tmp_path / "data"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=True)
    grown, _, message = done.stdout.partition(" ")
    assert says in message and message.count("\n") == 1, message
    assert int(grown) * 1024 <= ALLOWED, grown
    assert not (tmp_path / "data" / "n").exists()


def test_whatever_is_wrong_with_an_npz_is_one_error(tmp_path):
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    np.savez(path, x=np.arange(50), names=np.array(["a", "bc"]))
    content = path.read_bytes()
    variants = [content[:i] for i in range(0, len(content), 40)]
    for at in rng.integers(0, len(content), 400):
        variants.append(content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :])
    refused = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            found = read_npz(path)
        except NotArrays as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for name, array in found.items():  # a name may have changed; an array may not
            assert array.tolist() in (list(range(50)), ["a", "bc"]), name
    assert refused > len(variants) // 3
    for make in (path.mkdir, lambda: os.mkfifo(path)):
        path.unlink() if path.is_file() else None
        make()
        with pytest.raises(NotArrays), open_npz(path):
            pass
        path.rmdir() if path.is_dir() else path.unlink()
    np.savez(path, x=np.array([object()], dtype=object))
    with pytest.raises(NotArrays, match="Python objects"):
        read_npz(path)


def test_pipes_and_names_that_are_no_text_in_a_folder_of_images(tmp_path, command):
    from PIL import Image

    source = tmp_path / "source"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (source / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(source / split / name / "a.png")
    arguments = ("data", "import", "pets", "--format", "folder", "--from", source, "--data-dir", tmp_path / "data")
    pipe = source / "train" / "cat" / "b.png"
    os.mkfifo(pipe)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and f"{pipe}: cannot be read: Is no regular file" in err and err.count("\n") == 1
    pipe.unlink()
    for split in (b"train", b"test"):
        os.mkdir(os.path.join(os.fsencode(source), split, b"f\xff"))  # noqa: PTH102, PTH118
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and "is no possible name of a class" in err and err.count("\n") == 1
