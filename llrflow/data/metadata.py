"""The JSON files of a prepared dataset: TFDS's own two, and what llrflow notes of the datasets that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llrflow.base.errors import DataError, line_of
from llrflow.base.files import read_regular, sha256_file, write_atomic
from llrflow.base.sealed import sealed, unsealed

INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"

SOURCE_FILE = "llrflow_source.json"
"""Says what a dataset was made from, and seals it, TFDS's two and the names of classes."""

NAMES = "*.labels.txt"
"""TFDS's files of class names, by feature."""

_SEALED = "metadata_sha256"


def read_metadata(directory: Path, name: str) -> dict[str, Any]:
    """What one of the files holds. Raises DataError where it cannot be read or is not as it was written."""
    try:
        found = unsealed(read_regular(directory / name), name)
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError) as error:
        raise damaged(directory / name, f"cannot be read: {line_of(error)}") from None
    return found


def write_source(directory: Path, origin: Mapping[str, Any]) -> None:
    """Note what a dataset was made from, beside the other files, which are there."""
    files = (INFO_FILE, FEATURES_FILE, *sorted(path.name for path in directory.glob(NAMES)))
    sums = {name: sha256_file(directory / name) for name in files}
    write_atomic(directory / SOURCE_FILE, sealed({**origin, _SEALED: sums}, SOURCE_FILE))


def check_metadata(directory: Path) -> None:
    """Raise DataError where a file of a dataset that llrflow wrote is not as it wrote it."""
    if not (directory / SOURCE_FILE).exists():
        return
    sums = read_metadata(directory, SOURCE_FILE).get(_SEALED, {})
    if not isinstance(sums, dict):
        raise damaged(directory / SOURCE_FILE, f"holds no mapping as {_SEALED}")
    for name, known in sums.items():
        if name in (INFO_FILE, FEATURES_FILE):
            read_metadata(directory, name)
        try:
            found = sha256_file(directory / name)
        except OSError as error:
            raise damaged(directory / name, f"cannot be read: {line_of(error)}") from None
        if found != known:
            raise damaged(directory / name, "has changed since it was written")


def content_of(directory: Path) -> dict[str, str] | None:
    """The `content_sha256` stored with a dataset that llrflow wrote; None for any other dataset. Raises DataError."""
    if not (directory / SOURCE_FILE).exists():
        return None
    found = read_metadata(directory, SOURCE_FILE).get("content_sha256")
    if not isinstance(found, dict):
        raise damaged(directory / SOURCE_FILE, "has no content_sha256")
    return found


def damaged(path: Path, got: str) -> DataError:
    """The error for a file of a prepared dataset."""
    return DataError(str(path), got, f"remove {path.parent} and prepare the dataset again, or put the original back")
