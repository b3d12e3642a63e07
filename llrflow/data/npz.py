"""NumPy archives (.npz) with the images and labels of both splits, or of generated images to train on."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

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
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(str(path), f"is not an intact .npz file ({error})", "write or download it again") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(str(path), "holds a single array", "write an .npz file with np.savez_compressed")
        present = set(archive.files)
        for names in NAMES:
            if present & {part for pair in names.values() for part in pair}:
                return {split: _split(path, archive, *pair) for split, pair in names.items()}
    wanted = " or ".join(", ".join(part for pair in names.values() for part in pair) for names in NAMES)
    there = ", ".join(sorted(present)[:8]) or "nothing"
    raise DataError(str(path), f"holds {there}", f"name its arrays {wanted}")


def _array(path: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    if name not in archive.files:
        raise DataError(str(path), f"has no array {name}; it holds {', '.join(sorted(archive.files)[:8])}", "add it")
    try:
        array = archive[name]
        if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of what is no array
            raise ValueError("no array in NumPy's format")
        return array
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        got = f"array {name} cannot be read ({error})"
        raise DataError(str(path), got, "write plain arrays of numbers, or download the file again") from None


def _split(
    path: Path, archive: np.lib.npyio.NpzFile, images_name: str, labels_name: str
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _array(path, archive, images_name), _array(path, archive, labels_name)
    if images.dtype == np.uint8 and images.size and images.max() <= 1:
        fix = "store pixels as uint8, 0 to 255, before they are rounded"
        raise DataError(str(path), f"{images_name} has no pixel above 1, as if scaled to [0, 1]", fix)
    if images.dtype != np.uint8:
        got, fix = f"{images_name} is {images.dtype}", "store pixels as uint8, 0 to 255"
        raise DataError(str(path), got, fix)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        fix = "store images as [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        raise DataError(str(path), f"{images_name} has the shape {list(images.shape)}", fix)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        got = f"{labels_name} is {labels.dtype}{list(labels.shape)}"
        raise DataError(str(path), got, "store labels as integers [N]")
    if len(labels) != len(images):
        got = f"has {len(labels)} {labels_name} for {len(images)} {images_name}"
        raise DataError(str(path), got, "store one label for each image")
    return images, labels.astype(np.int64)
