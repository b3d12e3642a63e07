"""What every importer does once it has read and checked its files: compare with what exists, write, report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.validation import listing
from llrflow.data.catalog import prepared
from llrflow.data.examples import Splits, content_sha256
from llrflow.data.metadata import content_of
from llrflow.data.writer import VERSION, Progress, write_tfds


@dataclass(frozen=True)
class ImportReport:
    """What an import found and wrote."""

    name: str
    directory: str
    written: bool
    """False when the same content was already imported."""
    image_shape: tuple[int | None, int | None, int]
    """(H, W, C); None for sizes that vary."""
    classes: int
    counts: Mapping[str, int]
    """Examples by split."""
    label_counts: Mapping[str, list[int]]
    """Examples of every class, by split."""
    files: Mapping[str, str]
    """SHA-256 of every file that was read; none where they are many."""
    class_names: Sequence[str] | None = None
    configs: Sequence[str] = ()
    """TFDS configs, where there are several; the counts are those of each."""
    corrupt: Sequence[str] = ()
    """Images that were left out, with what is wrong with each."""
    notes: Sequence[str] = ()
    """What else to know: which folder was taken, and what was not done to images."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def check_name(name: str) -> None:
    """Raise DataError unless TFDS can use the name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError("dataset name", f"{name!r} is not a valid name", "use lower-case letters, digits and _")


def store(
    name: str,
    data_dir: Path,
    splits: Splits,
    *,
    file_format: str,
    classes: int | Sequence[str],
    source: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    description: str,
    progress: Progress | None,
    image_shape: tuple[int | None, int | None, int] | None = None,
    config: str | None = None,
) -> bool:
    """Write checked splits as the dataset `name`, or as one of its configs; False when it has the same content already.

    Raises DataError when a dataset of that name has other content, or the disk is too small.
    """

    def origin() -> Mapping[str, Any]:
        return {"format": file_format, **(source() if callable(source) else source)}

    if _already_imported(name, data_dir, splits, config):
        return False
    written = write_tfds(
        name,
        data_dir,
        splits,
        classes=classes,
        description=description,
        source=origin,
        progress=progress,
        config=config,
        image_shape=image_shape,
    )
    if not written:
        # Another import of this name may have finished since the first look.
        _already_imported(name, data_dir, splits, config)
    return written


def store_arrays(
    name: str,
    data_dir: Path,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    file_format: str,
    classes: int | Sequence[str],
    files: Mapping[str, str],
    progress: Progress | None,
    **source: Any,
) -> ImportReport:
    """As `store`, for arrays that were read from files with known checksums; returns the whole report."""
    written = store(
        name,
        data_dir,
        splits,
        file_format=file_format,
        classes=classes,
        source={"files": files, **source},
        description=f"Imported from {file_format} files: {listing(files)}.",
        progress=progress,
    )
    count = classes if isinstance(classes, int) else len(classes)
    height, width, channels = next(iter(splits.values()))[0].shape[1:]
    return ImportReport(
        name=name,
        directory=str(data_dir / name / VERSION),
        written=written,
        image_shape=(height, width, channels),
        classes=count,
        counts={split: len(labels) for split, (_, labels) in splits.items()},
        label_counts={s: np.bincount(labels, minlength=count).tolist() for s, (_, labels) in splits.items()},
        files=files,
        class_names=None if isinstance(classes, int) else list(classes),
    )


def class_count(train: np.ndarray, test: np.ndarray, train_place: str, test_place: str) -> int:
    """K when the training labels are exactly 0..K-1 and the test labels lie among them; DataError names the place."""
    used = np.unique(train)
    classes = int(used[-1]) + 1
    if used[0] < 0:
        raise DataError(train_place, f"has label {used[0]}", "relabel the classes 0..K-1")
    if classes < 2:
        raise DataError(train_place, "has one class only", "a classifier needs two or more")
    if len(used) < classes:
        missing = sorted(set(range(min(classes, len(used) + 8))) - set(used.tolist()))
        got = f"labels run up to {classes - 1}, but no example is labelled {', '.join(map(str, missing[:8]))}"
        raise DataError(train_place, got, "relabel the classes 0..K-1")
    wrong = test[(test < 0) | (test >= classes)]
    if wrong.size:
        got = f"has label {wrong.max()}, but the training labels are 0..{classes - 1}"
        raise DataError(test_place, got, "take both files from the same dataset")
    return classes


def _already_imported(name: str, data_dir: Path, splits: Splits, config: str | None = None) -> bool:
    """Whether the same content is prepared under this name (and config); DataError when something else is."""
    known = [p for p in prepared(data_dir) if p.name == name]
    existing = [p for p in known if config is None or p.config in (None, config)]
    if not existing:
        return False
    if content_of(existing[-1].directory) == content_sha256(splits):
        return True
    got = f"a dataset {name!r} with other content exists in {existing[-1].directory}"
    raise DataError("dataset name", got, "import under another name, or remove that directory first")
