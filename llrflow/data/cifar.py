"""CIFAR-10 and CIFAR-100 as their authors publish them: the "python version" (pickles) and the "binary version".

A. Krizhevsky, Learning multiple layers of features from tiny images, 2009; https://www.cs.toronto.edu/~kriz/cifar.html.
Every image is 3,072 bytes: 32 x 32 red values row by row, then green, then blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.errors import DataError
from llrflow.data.archive import read_members
from llrflow.data.importing import ImportReport, check_name, store_arrays
from llrflow.data.unpickle import UnsafePickle, unpickle
from llrflow.data.writer import Progress

_PIXELS = 3 * 32 * 32
_AGAIN = "download the file again"


@dataclass(frozen=True)
class _Layout:
    """Which files one of the datasets consists of, and how they name its labels."""

    classes: int
    train: tuple[str, ...]
    test: str
    names: str
    """File of class names."""
    labels: str
    """Key of the labels, or of the class names with `_names` for `s`, in the python version."""
    column: int = 0
    """Which of the label bytes before an image, in the binary version."""
    columns: int = 1

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_PYTHON = {
    "cifar10": _Layout(10, _BATCHES, "test_batch", "batches.meta", "labels"),
    "cifar100": _Layout(100, ("train",), "test", "meta", "fine_labels"),
    "coarse": _Layout(20, ("train",), "test", "meta", "coarse_labels"),
}
_BINARY = {
    "cifar10": _Layout(10, tuple(f"{b}.bin" for b in _BATCHES), "test_batch.bin", "batches.meta.txt", ""),
    "cifar100": _Layout(100, ("train.bin",), "test.bin", "fine_label_names.txt", "", 1, 2),
    "coarse": _Layout(20, ("train.bin",), "test.bin", "coarse_label_names.txt", "", 0, 2),
}
_FOLDERS = {
    "cifar-python": ("cifar-10-batches-py", "cifar-100-python"),
    "cifar-binary": ("cifar-10-batches-bin", "cifar-100-binary"),
}
_ARCHIVES = {
    "cifar-python": ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz"),
    "cifar-binary": ("cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"),
}


def import_cifar_python(
    name: str, source: Path, data_dir: Path, progress: Progress | None = None, *, coarse: bool = False
) -> ImportReport:
    """Import CIFAR-10 or CIFAR-100 from the python version: its tar.gz, or the folder it unpacks to.

    CIFAR-100 takes its 100 fine classes, or with `coarse` the 20 superclasses. Raises DataError naming the file.
    """
    return _import("cifar-python", _PYTHON, name, source, data_dir, progress, coarse)


def import_cifar_binary(
    name: str, source: Path, data_dir: Path, progress: Progress | None = None, *, coarse: bool = False
) -> ImportReport:
    """As `import_cifar_python`, from the binary version."""
    return _import("cifar-binary", _BINARY, name, source, data_dir, progress, coarse)


def _import(
    file_format: str,
    layouts: Mapping[str, _Layout],
    name: str,
    source: Path,
    data_dir: Path,
    progress: Progress | None,
    coarse: bool,
) -> ImportReport:
    check_name(name)
    wanted = {file for layout in layouts.values() for file in layout.files}
    origin, members = read_members(source, wanted, _FOLDERS[file_format], _ARCHIVES[file_format])
    known = "cifar10" if any(file in members for file in layouts["cifar10"].files) else "cifar100"
    if coarse and known == "cifar10":
        raise DataError("--coarse", f"{origin} is CIFAR-10, which has no superclasses", "leave the option out")
    layout = layouts["coarse" if coarse else known]
    for file in layout.files:
        if file not in members:
            there = ", ".join(sorted(members)[:8]) or "none of CIFAR's files"
            raise DataError(str(origin), f"has no {file}; it holds {there}", "give the archive or folder as published")
    python = file_format == "cifar-python"
    read = _read_pickle if python else _read_binary
    class_names = (_names_in_pickle if python else _names_in_text)(origin / layout.names, members[layout.names], layout)
    parts = {file: read(origin / file, members[file], layout) for file in (*layout.train, layout.test)}
    _check_parts(origin, members, layout, {file: len(labels) for file, (_, labels) in parts.items()})
    splits = {
        "train": tuple(np.concatenate([parts[file][i] for file in layout.train]) for i in range(2)),
        "test": parts[layout.test],
    }
    return store_arrays(
        name,
        data_dir,
        splits,  # type: ignore[arg-type]
        file_format=file_format,
        classes=class_names,
        files={file: hashlib.sha256(members[file]).hexdigest() for file in layout.files},
        progress=progress,
        labels="coarse" if coarse else "fine",
    )


def _check_parts(origin: Path, members: Mapping[str, bytes], layout: _Layout, counts: Mapping[str, int]) -> None:
    """DataError when files stand in each other's place, as far as anything in them shows it."""
    seen: dict[bytes, str] = {}
    for file in counts:
        twin = seen.setdefault(hashlib.sha256(members[file]).digest(), file)
        if twin != file:
            raise DataError(str(origin / file), f"has the same content as {twin}", _AGAIN)
    sizes = {counts[file] for file in layout.train}
    if len(sizes) > 1:
        short = min(layout.train, key=lambda file: counts[file])
        got = f"holds {counts[short]} images, other batches {max(sizes)}: it is truncated"
        raise DataError(str(origin / short), got, _AGAIN)
    if counts[layout.test] > sum(counts[file] for file in layout.train):
        got = f"holds {counts[layout.test]} images, more than those to train on: it was swapped"
        raise DataError(str(origin / layout.test), got, f"swap it with {layout.train[0]}")


def _images(rows: np.ndarray) -> np.ndarray:
    """Rows of 3,072 bytes as images [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _check_labels(path: Path, labels: np.ndarray, layout: _Layout) -> np.ndarray:
    wrong = labels[(labels < 0) | (labels >= layout.classes)]
    if wrong.size:
        raise DataError(str(path), f"has label {wrong[0]}, outside 0..{layout.classes - 1}", _AGAIN)
    return labels.astype(np.int64)


def _read_binary(path: Path, content: bytes, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    record = layout.columns + _PIXELS
    if not content or len(content) % record:
        got = f"is truncated or of another format: {len(content)} bytes are no multiple of {record}"
        raise DataError(str(path), got, _AGAIN)
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _images(rows[:, layout.columns :]), _check_labels(path, rows[:, layout.column].astype(np.int64), layout)


def _names_in_text(path: Path, content: bytes, layout: _Layout) -> list[str]:
    names = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    return _check_names(path, names, layout)


def _check_names(path: Path, names: list[str], layout: _Layout) -> list[str]:
    if len(names) != layout.classes or len(set(names)) != layout.classes:
        got = f"names {len(set(names))} different classes where there are {layout.classes}"
        raise DataError(str(path), got, _AGAIN)
    return names


def _load(path: Path, content: bytes) -> dict[str, Any]:
    """A pickled dict with its keys as text."""
    try:
        found = unpickle(content)
    except UnsafePickle as error:
        fix = "do not use this file: download it again from where CIFAR is published"
        raise DataError(str(path), f"is no pickle of CIFAR: it {error}", fix) from None
    except ValueError as error:
        raise DataError(str(path), f"is truncated, damaged or no pickle ({error})", _AGAIN) from None
    if not isinstance(found, dict):
        raise DataError(str(path), f"holds a {type(found).__name__}, not a mapping", _AGAIN)
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _read_pickle(path: Path, content: bytes, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    found = _load(path, content)
    for key in ("data", layout.labels):
        if key not in found:
            got = f"has no {key!r}; it holds {', '.join(sorted(found)[:8]) or 'nothing'}"
            raise DataError(str(path), got, "is it a file of the other CIFAR?" if key != "data" else _AGAIN)
    kind = found.get("batch_label", b"")
    kind = kind.decode("latin1") if isinstance(kind, bytes) else str(kind)
    if kind.startswith("testing" if path.name in layout.train else "training"):
        raise DataError(str(path), f"says that it is {kind!r}: files were swapped", "give every file its own name")
    rows, labels = found["data"], found[layout.labels]
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != _PIXELS:
        what = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, np.ndarray) else f"a {type(rows).__name__}"
        raise DataError(str(path), f"holds {what} where uint8[N, {_PIXELS}] is due", _AGAIN)
    if not isinstance(labels, (list, np.ndarray)) or not all(isinstance(k, (int, np.integer)) for k in labels):
        raise DataError(str(path), "holds labels that are no list of numbers", _AGAIN)
    if len(labels) != len(rows) or not len(rows):
        raise DataError(str(path), f"has {len(labels)} labels for {len(rows)} images", _AGAIN)
    return _images(rows), _check_labels(path, np.asarray(labels, np.int64), layout)


def _names_in_pickle(path: Path, content: bytes, layout: _Layout) -> list[str]:
    key = layout.labels.removesuffix("s") + "_names"
    names = _load(path, content).get(key)
    if not isinstance(names, list) or not all(isinstance(n, (bytes, str)) for n in names):
        raise DataError(str(path), f"has no list {key!r}", "is it a file of the other CIFAR?")
    return _check_names(path, [n.decode("latin1") if isinstance(n, bytes) else n for n in names], layout)
