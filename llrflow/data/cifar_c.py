"""CIFAR-10-C and CIFAR-100-C as their authors publish them: corrupted test images, at five severities.

Hendrycks & Dietterich 2019 (arXiv:1903.12261). One <corruption>.npy holds the test images five times, severity 1 first:
uint8 [5 N,H,W,C]; labels.npy their labels [5 N]. Published with N = 10,000 images of 32 x 32 x 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.files import sha256_file
from llrflow.data.examples import Examples, of_chunks
from llrflow.data.importing import ImportReport, check_name, class_count, store
from llrflow.data.writer import Progress

SEVERITIES = 5
LABELS = "labels.npy"

_FOLDERS = ("CIFAR-10-C", "CIFAR-100-C")
_CHUNK = 1000


def import_cifar_c(name: str, source: Path, data_dir: Path, progress: Progress | None = None) -> ImportReport:
    """Import every corruption in a folder as a TFDS config, with splits severity_1 to severity_5: `fog:severity_3`.

    `source` is the folder that the archive unpacks to, or the one that holds it. No pickle is read, and images are
    mapped, not loaded. All files are checked before any is written. Raises DataError naming the file.
    """
    check_name(name)
    folder = _locate(source)
    labels = _labels(folder / LABELS)
    paths = [path for path in sorted(folder.glob("*.npy")) if path.name != LABELS]
    if not paths:
        raise DataError(str(folder), f"holds no .npy file beside {LABELS}", "unpack the whole archive")
    splits = {path.stem: _splits(path, labels) for path in paths}
    shapes = {path: _mapped(path).shape[1:] for path in paths}
    if len(set(shapes.values())) > 1:
        other = next(path for path in paths if shapes[path] != shapes[paths[0]])
        got = f"has images {list(shapes[other])}, {paths[0].name} has {list(shapes[paths[0]])}"
        raise DataError(str(other), got, "take all files from one archive")
    classes = class_count(labels, labels, str(folder / LABELS), str(folder / LABELS))
    files = {path.name: sha256_file(path) for path in (folder / LABELS, *paths)}
    height, width, channels = shapes[paths[0]]
    written = False
    for done, (config, parts) in enumerate(splits.items()):
        shown = None if progress is None else _share_of(progress, done * SEVERITIES * len(labels), len(paths))
        written |= store(
            name,
            data_dir,
            parts,
            file_format="cifar-c",
            classes=classes,
            source={"files": {file: files[file] for file in (LABELS, f"{config}.npy")}, "corruption": config},
            description=f"Imported from cifar-c files: {config}.npy, {LABELS}.",
            progress=shown,
            config=config,
            image_shape=(height, width, channels),
        )
    return ImportReport(
        name=name,
        directory=str(data_dir / name),
        written=written,
        image_shape=(height, width, channels),
        classes=classes,
        counts={split: len(labels) for split in splits[paths[0].stem]},
        label_counts={split: np.bincount(labels).tolist() for split in splits[paths[0].stem]},
        files=files,
        configs=list(splits),
    )


def _share_of(progress: Progress, before: int, parts: int) -> Progress:
    """Progress of one of several equal parts, `before` examples after the first began."""
    return lambda done, total: progress(before + done, total * parts)


def _locate(source: Path) -> Path:
    for folder in (source, *(source / inner for inner in _FOLDERS)):
        if (folder / LABELS).is_file():
            return folder
    if source.is_file():
        raise DataError(str(source), "is a file", "unpack the archive, and name the folder it unpacks to")
    raise DataError(str(source), f"holds no {LABELS}", "name the folder that the archive unpacks to")


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        got = f"is not an intact .npy file ({error})"
        raise DataError(str(path), got, "unpack it anew, or download the archive again") from None
    if not isinstance(array, np.ndarray):
        raise DataError(str(path), "is no .npy file", "unpack it anew, or download the archive again")
    return array


def _labels(path: Path) -> np.ndarray:
    """Labels [N] of the images, which all severities share."""
    found = _mapped(path)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found) or len(found) % SEVERITIES:
        got = f"is {found.dtype}{list(found.shape)}"
        raise DataError(str(path), got, f"give integers, one for each image of {SEVERITIES} severities")
    parts = np.asarray(found, np.int64).reshape(SEVERITIES, -1)
    if (parts != parts[0]).any():
        got = f"has other labels at severity {1 + int(np.flatnonzero((parts != parts[0]).any(axis=1))[0])} than at 1"
        raise DataError(str(path), got, "severities must follow one another, each with all images in one order")
    return parts[0]


def _splits(path: Path, labels: np.ndarray) -> dict[str, Examples]:
    """The examples of each severity, read from the mapped file as they are asked for."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        raise DataError(str(path), "cannot name a TFDS config", "use letters, digits, _ and - only")
    images, n = _mapped(path), len(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        got = f"holds {images.dtype}{list(images.shape)}"
        raise DataError(str(path), got, "store images as uint8 [N, H, W, 1] or [N, H, W, 3]")
    if len(images) != SEVERITIES * n:
        got = f"has {len(images)} images for {SEVERITIES * n} labels"
        raise DataError(str(path), got, "unpack it anew, or take both files from one archive")

    def examples(part: np.ndarray) -> Examples:
        def chunks() -> Iterator[np.ndarray]:
            return (np.asarray(part[first : first + _CHUNK]) for first in range(0, n, _CHUNK))

        return of_chunks(part.shape, labels, chunks)

    return {f"severity_{s + 1}": examples(images[s * n : (s + 1) * n]) for s in range(SEVERITIES)}
