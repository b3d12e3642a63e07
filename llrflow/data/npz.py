"""NumPy archives (.npz) with the images and labels of both splits, or of generated images to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llrflow.base.arrays import Arrays, NotArrays, open_npz
from llrflow.base.errors import DataError
from llrflow.base.files import sha256_file
from llrflow.data.importing import ImportReport, check_name, class_count, store_arrays
from llrflow.data.writer import Progress

NAMES = (
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
    {"train": ("image", "label")},
)
"""Names of the arrays, in any of three conventions: MedMNIST's, Keras', and that of published generated images (Wang et
al. 2023), which are for training alone."""


def import_npz(name: str, source: Path, data_dir: Path, progress: Progress | None = None) -> ImportReport:
    """Import uint8 images [N, H, W] or [N, H, W, C] and labels [N] or [N, 1] from one .npz file (see `NAMES`).

    `source` is the file, or a directory that holds one. Arrays of other names are ignored. No pickle is read.
    Raises DataError naming the array and what is wrong with it.
    """
    check_name(name)
    path = _locate(source)
    splits = _read(path)
    train, train_labels = splits["train"]
    test, test_labels = splits.get("test", (train, train_labels))
    if train.shape[1:] != test.shape[1:]:
        got = f"images to test are {list(test.shape[1:])}, those to train on {list(train.shape[1:])}"
        raise DataError(str(path), got, "make them the same size")
    classes = class_count(train_labels, test_labels, f"{path}: train labels", f"{path}: test labels")
    files = {path.name: sha256_file(path)}
    return store_arrays(name, data_dir, splits, file_format="npz", classes=classes, files=files, progress=progress)


def _locate(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(source.glob("*.npz"))
    if len(found) == 1:
        return found[0]
    got = f"holds {len(found)} .npz files" if source.is_dir() else "is neither a file nor a directory"
    raise DataError(str(source), got, "give one .npz file")


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        with open_npz(path) as archive:
            present = set(archive.names)
            for names in NAMES:
                if present & {part for pair in names.values() for part in pair}:
                    for pair in names.values():  # of all, before any is read
                        _check(path, archive, *pair)
                    return {split: _split(path, archive, *pair) for split, pair in names.items()}
    except NotArrays as error:
        fix = "write it with np.savez_compressed, of plain numbers, or download it again"
        raise DataError(str(path), f"cannot be read: {error}", fix) from None
    wanted = " or ".join(", ".join(part for pair in names.values() for part in pair) for names in NAMES)
    there = ", ".join(sorted(present)[:8]) or "nothing"
    raise DataError(str(path), f"holds {there}", f"name its arrays {wanted}")


def _check(path: Path, archive: Arrays, images_name: str, labels_name: str) -> None:
    """What headers say of images and labels. Raises DataError."""
    for name in (images_name, labels_name):
        if name not in archive.names:
            got = f"has no array {name}; it holds {', '.join(sorted(archive.names)[:8])}"
            raise DataError(str(path), got, "add it")
    images, labels = archive.announced(images_name), archive.announced(labels_name)
    if images.dtype != np.uint8:
        raise DataError(str(path), f"{images_name} is {images.dtype}", "store pixels as uint8, 0 to 255")
    shape = (*images.shape, 1) if len(images.shape) == 3 else images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        fix = "store images as [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        raise DataError(str(path), f"{images_name} has the shape {list(shape)}", fix)
    flat = labels.shape[:1] if labels.shape[1:] == (1,) else labels.shape
    if len(flat) != 1 or labels.dtype.kind not in "iu":
        got = f"{labels_name} is {labels.dtype}{list(flat)}"
        raise DataError(str(path), got, "store labels as integers [N]")
    if flat[0] != shape[0]:
        got = f"has {flat[0]} {labels_name} for {shape[0]} {images_name}"
        raise DataError(str(path), got, "store one label for each image")


def _split(path: Path, archive: Arrays, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = archive[images_name], archive[labels_name]
    if images.max() <= 1:
        fix = "store pixels as uint8, 0 to 255, before they are rounded"
        raise DataError(str(path), f"{images_name} has no pixel above 1, as if scaled to [0, 1]", fix)
    return images[..., None] if images.ndim == 3 else images, labels.reshape(-1).astype(np.int64)
