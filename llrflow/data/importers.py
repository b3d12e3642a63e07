"""Turn files that a user has into a prepared TFDS dataset, after checking all of them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.data.catalog import prepared
from llrflow.data.writer import VERSION, Progress, content_of, content_sha256, write_tfds
from llrflow.errors import DataError
from llrflow.files import sha256_file
from llrflow.registry import listing


@dataclass(frozen=True)
class ImportReport:
    """What an import found and wrote."""

    name: str
    directory: str
    written: bool
    """False when the same content was already imported."""
    image_shape: tuple[int, int, int]
    classes: int
    counts: Mapping[str, int]
    """Examples by split."""
    label_counts: Mapping[str, list[int]]
    """Examples of every class, by split."""
    files: Mapping[str, str]
    """SHA-256 of every file that was read."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


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
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError("dataset name", f"{name!r} is not a valid name", "use lower-case letters, digits and _")
    if not source_dir.is_dir():
        raise DataError(str(source_dir), "is not a directory", "give the directory that holds the idx files")
    files = {
        (split, kind): _read(_locate(source_dir, stem, kind), kind)
        for split, stem in (("train", "train"), ("test", "t10k"))
        for kind in ("images", "labels")
    }
    splits = {split: _pair(files[split, "images"], files[split, "labels"]) for split in ("train", "test")}
    classes = _classes(files["train", "labels"], files["test", "labels"])
    train, test = splits["train"][0], splits["test"][0]
    if train.shape[1:] != test.shape[1:]:
        got = f"images are {_size(test)}, those of the training set {_size(train)}"
        raise DataError(str(files["test", "images"].path), got, "take both files from the same dataset")
    sums = {file.path.name: sha256_file(file.path) for file in files.values()}
    written = not _already_imported(name, data_dir, splits) and write_tfds(
        name,
        data_dir,
        splits,
        classes=classes,
        description=f"Imported from idx files: {listing(sums)}.",
        source={"format": "idx", "files": sums},
        progress=progress,
    )
    if not written:
        # Another import of this name may have finished since the first look.
        _already_imported(name, data_dir, splits)
    return ImportReport(
        name=name,
        directory=str(data_dir / name / VERSION),
        written=written,
        image_shape=train.shape[1:],
        classes=classes,
        counts={split: len(labels) for split, (_, labels) in splits.items()},
        label_counts={s: np.bincount(labels, minlength=classes).tolist() for s, (_, labels) in splits.items()},
        files=sums,
    )


FORMATS: dict[str, Callable[[str, Path, Path, Progress | None], ImportReport]] = {"idx": import_idx}
"""Importers by the name of the format they read."""


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
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(str(path), f"is not an intact gzip file ({error})", fix) from None
    dimensions, other = {"images": (3, "labels"), "labels": (1, "images")}[kind]
    magic = content[:4].hex()
    if magic == f"0000080{4 - dimensions}":
        raise DataError(str(path), f"holds {other}, not {kind} (magic {magic})", f"swap it with the file of {other}")
    if magic != f"0000080{dimensions}":
        got = f"starts with {magic or 'nothing'}, not with 0000080{dimensions}"
        raise DataError(str(path), f"is no idx file of {kind}: {got}", fix)
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(str(path), "is truncated within its header", fix)
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        problem = "is truncated" if len(content) - start < expected else "has trailing bytes"
        got = f"{problem}: {len(content) - start} bytes of data where its header {list(shape)} announces {expected}"
        raise DataError(str(path), got, fix)
    if expected == 0:
        raise DataError(str(path), f"is empty: its header says {list(shape)}", fix)
    values = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    return _Idx(path, values)


def _pair(images: _Idx, labels: _Idx) -> tuple[np.ndarray, np.ndarray]:
    if len(images.values) != len(labels.values):
        got = f"has {len(labels.values)} labels for the {len(images.values)} images in {images.path.name}"
        raise DataError(str(labels.path), got, "take both files from the same dataset")
    return images.values[..., None], labels.values.astype(np.int64)


def _classes(train: _Idx, test: _Idx) -> int:
    """K when the training labels are exactly 0..K-1 and the test labels lie among them."""
    used = np.unique(train.values)
    classes = int(used[-1]) + 1
    if classes < 2:
        raise DataError(str(train.path), "has one class only", "a classifier needs two or more")
    missing = sorted(set(range(classes)) - set(used.tolist()))
    if missing:
        got = f"labels run up to {classes - 1}, but no example is labelled {', '.join(map(str, missing[:8]))}"
        raise DataError(str(train.path), got, "relabel the classes 0..K-1")
    if test.values.max() >= classes:
        got = f"has label {test.values.max()}, but the training labels are 0..{classes - 1}"
        raise DataError(str(test.path), got, "take both files from the same dataset")
    return classes


def _already_imported(name: str, data_dir: Path, splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the same content is prepared under this name; DataError when something else is."""
    existing = [p for p in prepared(data_dir) if p.name == name]
    if not existing:
        return False
    if content_of(existing[-1].directory) == content_sha256(splits):
        return True
    got = f"a dataset {name!r} with other content exists in {existing[-1].directory}"
    raise DataError("dataset name", got, "import under another name, or remove that directory first")


def _size(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape[1:3]))
