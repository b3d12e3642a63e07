"""Splits that live in memory: decoded once, kept as uint8 arrays on disk, mapped into memory afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from llrflow.base.files import locked, open_atomic, sha256_file, write_atomic
from llrflow.data.reader import count, fingerprint, image_shape, open_dataset
from llrflow.data.schema import Data
from llrflow.data.split import Loaded, Request, Split
from llrflow.data.streaming import Streaming
from llrflow.data.writer import PRIVATE

_CHUNK = 1000
_CHUNK_BYTES = 2**24


class Resident(Split):
    """A split whose decoded images are in memory, or mapped from their cache file."""

    def __init__(self, source: Streaming, images: np.ndarray, labels: np.ndarray, corrupt: dict[int, str]) -> None:
        """Raises DataError when more images are corrupt than the source's share allows."""
        super().__init__(
            source.dataset, source.split, len(source), source.image_shape, source.fingerprint, source.share
        )
        self.images = images
        """uint8 [N, H, W, C]"""
        self.labels = labels
        """int32 [N], each in 0..classes-1; -1 where the image is corrupt."""
        for example, problem in sorted(corrupt.items()):
            self._note(example, problem)

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """What was requested, in that order."""
        for request in requests:
            ids = request.ids
            if self.corrupt and request.step is not None:
                while (bad := self.labels[ids] < 0).any():  # ends as in `Streaming`
                    ids = np.where(bad, self._following(ids, request.among), ids)
            yield Loaded(self.images[ids], self.labels[ids], ids.astype(np.int32))


def load_split(data: Data, split: str) -> Resident:
    """The examples of a TFDS split expression, decoded on first use and cached below the data directory.

    Raises DataError when the dataset cannot be used, files are damaged, labels are missing, or images are corrupt.
    """
    dataset = open_dataset(data)
    shape, varies = image_shape(data, dataset)
    n, identity = count(data, dataset, split), fingerprint(data, dataset, split)
    source = Streaming(dataset, split, n, shape, identity, data.corrupt, varies)
    cache = data.directory / PRIVATE / identity
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            found = _read_cache(cache, (n, *shape))
            if found is None:
                _write_cache(cache, source)
                found = _read_cache(cache, (n, *shape))
    except OSError:
        # A read-only or full disk: the cache only saves time.
        found = None
    return Resident(source, *(found or _decode_into_memory(source)))


Cached = tuple[np.ndarray, np.ndarray, dict[int, str]]
"""Images, labels, and what is wrong with each corrupt image by id."""


def _read_cache(cache: Path, shape: tuple[int, ...]) -> Cached | None:
    """What an intact cache holds; None when it is absent, damaged or of another shape."""
    try:
        sums = json.loads((cache / "sha256.json").read_text())
        if any(sha256_file(cache / name) != sums[name] for name in ("images.npy", "labels.npy")):
            return None
        images = np.load(cache / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(cache / "labels.npy", allow_pickle=False)
        corrupt = {int(example): str(problem) for example, problem in sums["corrupt"].items()}
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    fits = images.shape == shape and images.dtype == np.uint8 and labels.shape == shape[:1] and labels.dtype == np.int32
    return (images, labels, corrupt) if fits else None


def _write_cache(cache: Path, source: Streaming) -> None:
    for leftover in cache.glob(".*.tmp"):
        leftover.unlink()
    labels = np.empty(len(source), np.int32)
    with open_atomic(cache / "images.npy") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), *source.image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in _decode(source):
            file.write(part.images.data)
            labels[part.ids] = part.labels
    with open_atomic(cache / "labels.npy") as file:
        np.save(file, labels, allow_pickle=False)
    sums = {name: sha256_file(cache / name) for name in ("images.npy", "labels.npy")}
    write_atomic(cache / "sha256.json", json.dumps({**sums, "corrupt": source.corrupt}).encode())


def _decode_into_memory(source: Streaming) -> Cached:
    images, labels = np.empty((len(source), *source.image_shape), np.uint8), np.empty(len(source), np.int32)
    for part in _decode(source):
        images[part.ids], labels[part.ids] = part.images, part.labels
    return images, labels, source.corrupt


def _decode(source: Streaming) -> Iterator[Loaded]:
    """All examples in order, in parts."""
    size = max(1, min(_CHUNK, _CHUNK_BYTES // int(np.prod(source.image_shape))))
    ids = np.arange(len(source))
    return source.load(Request(ids[first : first + size]) for first in range(0, len(ids), size))
