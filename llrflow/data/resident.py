"""Splits that live in memory: decoded once, kept as uint8 arrays on disk, mapped into memory afterwards."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.data.block import Data
from llrflow.data.catalog import Prepared, find
from llrflow.data.writer import PRIVATE, content_of
from llrflow.errors import DataError
from llrflow.files import locked, open_atomic, sha256_file, write_atomic
from llrflow.registry import listing, suggest

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

_FORMAT = 1  # of the cache: part of every fingerprint
_CHUNK = 1000


@dataclass(frozen=True)
class Split:
    """One split, decoded; the id of an example is its row, and rows never change their order."""

    images: np.ndarray
    """uint8 [N, H, W, C], mapped from the cache file (or in memory when the cache cannot be written)."""

    labels: np.ndarray
    """int32 [N], each in 0..classes-1."""

    classes: int

    fingerprint: str
    """SHA-256 over dataset, config, version, split expression, features and content.

    The content is the checksum stored by an importer, or else the sizes of the dataset's files.
    """


@dataclass(frozen=True)
class DatasetFacts:
    """What is known about a dataset without decoding an image."""

    name: str
    version: str
    directory: Path
    image_shape: tuple[int, int, int]
    """(H, W, C)"""
    classes: int
    splits: Mapping[str, int]
    """Examples in every split of the dataset."""
    train: int
    """Examples that the block's `train` expression selects."""
    test: int
    """Examples that the block's `test` expression selects."""


@dataclass(frozen=True)
class _Opened:
    """A prepared dataset with its TFDS builder and the features that hold images and labels."""

    prepared: Prepared
    builder: DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int]
    classes: int


def describe(data: Data) -> DatasetFacts:
    """Facts about the dataset of a `data:` block, from its metadata alone.

    Raises DataError when it is not prepared, is in a format that cannot be read, or lacks one of the two splits.
    """
    dataset = _open(data)
    splits = {name: split.num_examples for name, split in dataset.builder.info.splits.items()}
    return DatasetFacts(
        name=dataset.prepared.name,
        version=dataset.prepared.version,
        directory=dataset.prepared.directory,
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        splits=splits,
        train=_count(data, dataset, data.train),
        test=_count(data, dataset, data.test),
    )


def load_split(data: Data, split: str) -> Split:
    """The examples of a TFDS split expression, decoded on first use and cached below the data directory.

    Raises DataError as `describe` does, and when files are damaged or labels are missing.
    """
    dataset = _open(data)
    n = _count(data, dataset, split)
    fingerprint = _fingerprint(dataset, split)
    cache = data.directory / PRIVATE / fingerprint
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            arrays = _read_cache(cache, (n, *dataset.image_shape))
            if arrays is None:
                _write_cache(cache, dataset, split, n)
                arrays = _read_cache(cache, (n, *dataset.image_shape))
    except OSError:
        # A read-only or full disk: the cache only saves time.
        arrays = None
    images, labels = arrays or _decode_into_memory(dataset, split, n)
    return Split(images, labels, dataset.classes, fingerprint)


def _open(data: Data) -> _Opened:
    prepared = find(data)
    builder = _builder(str(prepared.directory), (prepared.directory / "dataset_info.json").stat().st_mtime_ns)
    features: Any = builder.info.features
    keys: Any = builder.info.supervised_keys
    image_key, label_key = keys if keys and len(keys) == 2 else ("image", "label")
    for role, key in (("images", image_key), ("labels", label_key)):
        if key not in features:
            got = f"{prepared.name} has no feature {key!r} for the {role} (it has {listing(features)})"
            raise DataError("data.name", got, "choose a labelled image dataset")
    image, label = features[image_key], features[label_key]
    classes = getattr(label, "num_classes", None)
    if not classes:
        got = f"feature {label_key!r} of {prepared.name} is not a class label"
        raise DataError("data.name", got, "choose a classification dataset")
    shape = tuple(image.shape) + ((1,) if len(image.shape) == 2 else ())
    if len(shape) != 3 or None in shape:
        got = f"the images of {prepared.name} vary in size (shape {tuple(image.shape)})"
        raise DataError("data.name", got, "prepare a dataset whose images have one size")
    if np.dtype(image.np_dtype) != np.uint8:
        got = f"the images of {prepared.name} are {np.dtype(image.np_dtype)}"
        raise DataError("data.name", got, "prepare a dataset with uint8 images")
    return _Opened(prepared, builder, image_key, label_key, shape, classes)


@functools.lru_cache(maxsize=8)
def _builder(directory: str, _changed: int) -> DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # TFDS raises whatever its JSON and protobuf readers do
        raise DataError("data.name", f"{directory} cannot be opened: {_line(error)}", "prepare it again") from None


def _count(data: Data, dataset: _Opened, split: str) -> int:
    where = "data.train" if split == data.train else "data.test" if split == data.test else "split"
    known = dataset.builder.info.splits
    fix = f"choose from {listing(known)}, or a slice such as {next(iter(known), 'train')}[:80%]"
    try:
        n = known[split].num_examples
    except (KeyError, ValueError) as error:
        name = split.partition("[")[0]
        if name.isidentifier() and name not in known:
            hint = suggest(name, known)
            close = f"{hint} or " if hint.startswith("did you mean") else ""
            got = f"{dataset.prepared.name} has no split {name!r}"
            raise DataError(where, got, close + fix) from None
        raise DataError(where, f"{split!r} is not a split of {dataset.prepared.name}: {_line(error)}", fix) from None
    if n == 0:
        raise DataError(where, f"{split!r} selects no examples of {dataset.prepared.name}", fix)
    return n


def _fingerprint(dataset: _Opened, split: str) -> str:
    prepared = dataset.prepared
    content = content_of(prepared.directory) or {
        "splits": prepared.info().get("splits"),
        "sizes": {file.name: file.stat().st_size for file in prepared.directory.glob("*.array_record*")},
    }
    identity = {
        "format": _FORMAT,
        "dataset": [prepared.name, prepared.config, prepared.version],
        "split": split,
        "keys": [dataset.image_key, dataset.label_key],
        "features": json.loads((prepared.directory / "features.json").read_text()),
        "content": content,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _read_cache(cache: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels of an intact cache; None when it is absent, damaged or of another shape."""
    try:
        sums = json.loads((cache / "sha256.json").read_text())
        if any(sha256_file(cache / name) != sums[name] for name in ("images.npy", "labels.npy")):
            return None
        images = np.load(cache / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(cache / "labels.npy", allow_pickle=False)
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    fits = images.shape == shape and images.dtype == np.uint8 and labels.shape == shape[:1] and labels.dtype == np.int32
    return (images, labels) if fits else None


def _write_cache(cache: Path, dataset: _Opened, split: str, n: int) -> None:
    for leftover in cache.glob(".*.tmp"):
        leftover.unlink()
    labels = np.empty(n, np.int32)
    with open_atomic(cache / "images.npy") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *dataset.image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for rows, some_images, some_labels in _decode(dataset, split, n):
            file.write(some_images.tobytes())
            labels[rows] = some_labels
    with open_atomic(cache / "labels.npy") as file:
        np.save(file, labels, allow_pickle=False)
    sums = {name: sha256_file(cache / name) for name in ("images.npy", "labels.npy")}
    write_atomic(cache / "sha256.json", json.dumps(sums).encode())


def _decode_into_memory(dataset: _Opened, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.empty((n, *dataset.image_shape), np.uint8), np.empty(n, np.int32)
    for rows, some_images, some_labels in _decode(dataset, split, n):
        images[rows], labels[rows] = some_images, some_labels
    return images, labels


def _decode(dataset: _Opened, split: str, n: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, images [., H, W, C], labels [.]) in order. One thread: two were slower (small PNGs, held by the GIL)."""
    where, again = str(dataset.prepared.directory), "remove it and prepare it again"
    # TFDS hides the signature behind a logging decorator.
    source: Any = dataset.builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    for start in range(0, n, _CHUNK):
        rows = range(start, min(start + _CHUNK, n))
        try:
            with _without_opencv_advice():
                examples = source.__getitems__(list(rows))
            images = np.stack([example[dataset.image_key] for example in examples])
            labels = np.array([example[dataset.label_key] for example in examples])
        except Exception as error:  # array_record raises RuntimeError, image decoders whatever they like
            raise DataError(where, f"{split} cannot be decoded: {_line(error)}", again) from None
        wrong = labels[(labels < 0) | (labels >= dataset.classes)]
        if wrong.size:
            got = f"{split} has label {wrong[0]}, outside 0..{dataset.classes - 1}"
            raise DataError(where, got, "choose a split with labels")
        yield slice(rows.start, rows.stop), images.reshape(len(rows), *dataset.image_shape), labels.astype(np.int32)


@contextmanager
def _without_opencv_advice() -> Iterator[None]:
    """Keep TFDS from warning, once a process, that OpenCV would decode faster than Pillow."""
    logger = logging.getLogger("absl")

    def quiet(record: logging.LogRecord) -> bool:
        return "OpenCV" not in record.getMessage()

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


def _line(error: Exception) -> str:
    """The first line of a message from a library."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
