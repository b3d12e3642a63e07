"""The four idx files of MNIST and its relatives: reader and importer."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llrflow.base.arrays import budget_of
from llrflow.base.errors import DataError
from llrflow.base.files import open_regular, sha256_file
from llrflow.data.importing import ImportReport, check_name, class_count, store_arrays
from llrflow.data.writer import Progress


@dataclass(frozen=True)
class _Idx:
    """One idx file, read and checked against its header."""

    path: Path
    values: np.ndarray


def import_idx(name: str, source_dir: Path, data_dir: Path, progress: Progress | None = None) -> ImportReport:
    """Import the four files of an MNIST-like dataset (idx format, plain or .gz) as the TFDS dataset `name`.

    Nothing is written before every file has passed every check. The format is Y. LeCun's,
    http://yann.lecun.com/exdb/mnist. Raises DataError naming the file and what is wrong with it.
    """
    check_name(name)
    files = _files(source_dir)
    splits = _splits(files)
    known, other = files["train", "labels"], files["test", "labels"]
    classes = class_count(known.values, other.values, str(known.path), str(other.path))
    train, test = splits["train"][0], splits["test"][0]
    if train.shape[1:] != test.shape[1:]:
        got = f"images are {_size(test)}, those of the training set {_size(train)}"
        raise DataError(str(files["test", "images"].path), got, "take both files from the same dataset")
    sums = {file.path.name: sha256_file(file.path) for file in files.values()}
    return store_arrays(name, data_dir, splits, file_format="idx", classes=classes, files=sums, progress=progress)


def read_idx(source_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(images uint8 [N,H,W,1], labels [N]) of `train` and `test`, out of the four files. DataError as `import_idx`."""
    return _splits(_files(source_dir))


def _files(source_dir: Path) -> dict[tuple[str, str], _Idx]:
    if not source_dir.is_dir():
        raise DataError(str(source_dir), "is not a directory", "give the directory that holds the idx files")
    return {
        (split, kind): _read(_locate(source_dir, stem, kind), kind)
        for split, stem in (("train", "train"), ("test", "t10k"))
        for kind in ("images", "labels")
    }


def _splits(files: dict[tuple[str, str], _Idx]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {split: _pair(files[split, "images"], files[split, "labels"]) for split in ("train", "test")}


def _locate(source_dir: Path, stem: str, kind: str) -> Path:
    dimensions = {"images": 3, "labels": 1}[kind]
    names = [f"{stem}-{kind}{dash}idx{dimensions}-ubyte{suffix}" for suffix in ("", ".gz") for dash in "-."]
    for name in names:
        if (source_dir / name).is_file():
            return source_dir / name
    there = sorted(p.name for p in source_dir.iterdir())
    got = f"has no {names[0]} (nor with .gz); it holds {', '.join(there[:8]) or 'nothing'}"
    raise DataError(str(source_dir), got, "give the directory that holds the four idx files")


def _read(path: Path, kind: str) -> _Idx:
    """The array in an idx file: 2 zero bytes, type code 8 (uint8), number of dimensions, sizes as big-endian uint32."""
    fix = "download the file again"
    try:
        with open_regular(path) as plain, gzip.open(plain) if path.suffix == ".gz" else plain as file:
            shape = _header(path, kind, file)
            expected, size = math.prod(shape), path.stat().st_size
            if expected > budget_of(size):
                got = f"announces {expected} bytes of data, more than {size} bytes of a file are worth"
                raise DataError(str(path), got, fix)
            content = file.read(expected + 1)  # the last one to see that there is no more
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(str(path), f"is not an intact gzip file ({error})", fix) from None
    if len(content) != expected:
        there = (
            f"is truncated: {len(content)}"
            if len(content) < expected
            else f"has trailing bytes: {len(content)} or more"
        )
        got = f"{there} bytes of data where its header {list(shape)} announces {expected}"
        raise DataError(str(path), got, fix)
    if expected == 0:
        raise DataError(str(path), f"is empty: its header says {list(shape)}", fix)
    return _Idx(path, np.frombuffer(content, np.uint8).reshape(shape))


def _header(path: Path, kind: str, file: gzip.GzipFile | BinaryIO) -> tuple[int, ...]:
    """The shape that a header announces. Raises DataError where it is not that of an idx file of the kind."""
    fix, (dimensions, other) = "download the file again", {"images": (3, "labels"), "labels": (1, "images")}[kind]
    magic = file.read(4).hex()
    if magic == f"0000080{4 - dimensions}":
        raise DataError(str(path), f"holds {other}, not {kind} (magic {magic})", f"swap it with the file of {other}")
    if magic != f"0000080{dimensions}":
        got = f"starts with {magic or 'nothing'}, not with 0000080{dimensions}"
        raise DataError(str(path), f"is no idx file of {kind}: {got}", fix)
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(str(path), "is truncated within its header", fix)
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _pair(images: _Idx, labels: _Idx) -> tuple[np.ndarray, np.ndarray]:
    if len(images.values) != len(labels.values):
        got = f"has {len(labels.values)} labels for the {len(images.values)} images in {images.path.name}"
        raise DataError(str(labels.path), got, "take both files from the same dataset")
    return images.values[..., None], labels.values.astype(np.int64)


def _size(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape[1:3]))
