"""Turn files that a user has into a prepared TFDS dataset, after checking all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llrflow.base.errors import DataError
from llrflow.base.validation import listing, suggest
from llrflow.data.cifar import import_cifar_binary, import_cifar_python
from llrflow.data.cifar_c import import_cifar_c
from llrflow.data.folder import import_folder
from llrflow.data.idx import import_idx
from llrflow.data.importing import ImportReport
from llrflow.data.npz import import_npz
from llrflow.data.writer import Progress

FORMATS: dict[str, Callable[..., ImportReport]] = {
    "idx": import_idx,
    "cifar-python": import_cifar_python,
    "cifar-binary": import_cifar_binary,
    "cifar-c": import_cifar_c,
    "npz": import_npz,
    "folder": import_folder,
}
"""Importers by the name of the format they read: (name, source, data_dir, progress, **options)."""


def import_files(
    file_format: str,
    name: str,
    source: Path,
    data_dir: Path,
    progress: Progress | None = None,
    options: Mapping[str, Any] = {},
) -> ImportReport:
    """Import files of a format; DataError when the format is unknown or does not have one of the options."""
    if file_format not in FORMATS:
        raise DataError("--format", f"{file_format!r} is not a known format", suggest(file_format, FORMATS))
    importer = FORMATS[file_format]
    for option in options:
        if option not in inspect.signature(importer).parameters:
            having = listing(f for f, other in FORMATS.items() if option in inspect.signature(other).parameters)
            raise DataError(f"--{option.replace('_', '-')}", f"does not apply to format {file_format}", f"use {having}")
    return importer(name, source, data_dir, progress, **options)


__all__ = ["FORMATS", "ImportReport", "import_files", "import_idx"]
