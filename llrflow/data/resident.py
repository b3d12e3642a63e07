"""Splits that live in memory: decoded once, kept as uint8 arrays on disk, mapped into memory afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from llrflow.data.block import Data
from llrflow.data.images import decode
from llrflow.data.reader import Opened, Records, check_size, count, open_dataset
from llrflow.data.writer import PRIVATE, content_of
from llrflow.errors import DataError
from llrflow.files import locked, open_atomic, sha256_file, write_atomic

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
    source: Literal["prepared", "table"] = "prepared"
    """Whether the dataset was looked at, or is not there and stands in `llrflow.data.known`."""


def describe(data: Data) -> DatasetFacts:
    """Facts about the dataset of a `data:` block, from its metadata alone.

    Raises DataError when it is not prepared, is in a format that cannot be read, or lacks one of the two splits.
    """
    dataset, image_shape = _open(data)
    splits = {name: split.num_examples for name, split in dataset.builder.info.splits.items()}
    return DatasetFacts(
        name=dataset.prepared.name,
        version=dataset.prepared.version,
        directory=dataset.prepared.directory,
        image_shape=image_shape,
        classes=dataset.classes,
        splits=splits,
        train=count(data, dataset, data.train),
        test=count(data, dataset, data.test),
    )


def load_split(data: Data, split: str) -> Split:
    """The examples of a TFDS split expression, decoded on first use and cached below the data directory.

    Raises DataError as `describe` does, and when files are damaged or labels are missing.
    """
    dataset, image_shape = _open(data)
    n = count(data, dataset, split)
    fingerprint = _fingerprint(dataset, split)
    cache = data.directory / PRIVATE / fingerprint
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            arrays = _read_cache(cache, (n, *image_shape))
            if arrays is None:
                _write_cache(cache, dataset, split, n)
                arrays = _read_cache(cache, (n, *image_shape))
    except OSError:
        # A read-only or full disk: the cache only saves time.
        arrays = None
    images, labels = arrays or _decode_into_memory(dataset, split, (n, *image_shape))
    return Split(images, labels, dataset.classes, fingerprint)


def _open(data: Data) -> tuple[Opened, tuple[int, int, int]]:
    """The dataset and the shape of its images, which must all have it."""
    dataset = open_dataset(data)
    height, width, channels = dataset.image_shape
    if height is None or width is None:
        got = f"the images of {dataset.prepared.name} vary in size (shape {dataset.image_shape})"
        raise DataError("data.name", got, "prepare a dataset whose images have one size")
    check_size(data, dataset.prepared.name, height, width)
    return dataset, (height, width, channels)


def _fingerprint(dataset: Opened, split: str) -> str:
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


def _write_cache(cache: Path, dataset: Opened, split: str, n: int) -> None:
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


def _decode_into_memory(dataset: Opened, split: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.empty(shape, np.uint8), np.empty(shape[0], np.int32)
    for rows, some_images, some_labels in _decode(dataset, split, shape[0]):
        images[rows], labels[rows] = some_images, some_labels
    return images, labels


def _decode(dataset: Opened, split: str, n: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, images [., H, W, C], labels [.]) in order. One thread: two were slower (small PNGs, held by the GIL)."""
    records = Records(dataset, split)
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        encoded, labels = records.read(range(rows.start, rows.stop))
        try:
            images = np.stack([decode(image, dataset.image_shape[-1]) for image in encoded])
        except ValueError as error:
            raise records.damaged(error) from None
        if images.shape[1:] != dataset.image_shape:
            raise records.damaged(ValueError(f"images are {images.shape[1:]}, not {dataset.image_shape}"))
        yield rows, images, labels
