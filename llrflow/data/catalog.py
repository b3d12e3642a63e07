"""Which datasets are prepared in a directory: found by looking at files, so it is quick and never asks the network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llrflow.base.errors import DataError, line_of
from llrflow.base.validation import listing, suggest
from llrflow.components.registry import entries
from llrflow.data.metadata import FEATURES_FILE, INFO_FILE, check_metadata, damaged, read_metadata
from llrflow.data.schema import Data


@dataclass(frozen=True)
class Prepared:
    """One prepared dataset on disk."""

    name: str
    config: str | None
    version: str
    directory: Path

    def info(self) -> dict:
        """Contents of its dataset_info.json. Raises DataError where it cannot be read."""
        return read_metadata(self.directory, INFO_FILE)

    def features(self) -> dict:
        """Contents of its features.json. Raises DataError where it cannot be read."""
        return read_metadata(self.directory, FEATURES_FILE)


def prepared(data_dir: Path) -> list[Prepared]:
    """Every dataset prepared under a directory, by name and config, oldest version first."""
    found = []
    for file in sorted([*data_dir.glob(f"*/*/{INFO_FILE}"), *data_dir.glob(f"*/*/*/{INFO_FILE}")]):
        name, *config, version = file.parent.relative_to(data_dir).parts
        # TFDS writes into incomplete.* and llrflow below .llrflow; only a rename makes a dataset.
        if not name.startswith(".") and re.fullmatch(r"\d+\.\d+\.\d+", version):
            found.append(Prepared(name, config[0] if config else None, version, file.parent))
    return sorted(found, key=lambda p: (p.name, p.config or "", tuple(map(int, p.version.split(".")))))


def summary(dataset: Prepared) -> dict[str, Any]:
    """What the metadata files say: name, config, version, format, examples by split, image shape or None.

    Raises DataError where they cannot be read or are not as they were written.
    """
    check_metadata(dataset.directory)
    info, features = dataset.info(), dataset.features()
    try:
        splits = {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in info.get("splits", [])}
        image = features.get("featuresDict", {}).get("features", {}).get("image", {}).get("image", {})
        sizes = image.get("shape", {}).get("dimensions")
        # TFDS writes -1 for a size that varies.
        shape = sizes and [int(size) if int(size) > 0 else None for size in sizes]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(dataset.directory / INFO_FILE, f"or {FEATURES_FILE} is not TFDS's: {line_of(error)}") from None
    return {
        "name": dataset.name,
        "config": dataset.config,
        "version": dataset.version,
        "format": info.get("fileFormat", "tfrecord"),
        "splits": splits,
        "image_shape": shape,
        "directory": str(dataset.directory),
    }


def summaries(data_dir: Path) -> list[dict[str, Any]]:
    """The `summary` of every dataset prepared under a directory; of one that cannot be read its `error`."""
    found = []
    for dataset in prepared(data_dir):
        try:
            found.append(summary(dataset))
        except DataError as error:
            known = {"name": dataset.name, "config": dataset.config, "version": dataset.version}
            found.append({**known, "directory": str(dataset.directory), "error": str(error)})
    return found


def find(data: Data) -> Prepared:
    """The prepared dataset that a `data:` block names; built-in datasets are prepared on first use.

    Raises DataError when there is none or the block does not single one out.
    """
    if (missing := to_prepare(data)) is not None:
        missing.prepare(data.directory)
    here, built_in = _named(data), data.built_in
    if built_in is not None and data.config is None:
        here = [p for p in here if p.config == config_of(built_in)]
    if not here:
        raise _not_prepared(data)
    configs = {p.config or "": p for p in here}
    if data.config is None and len(configs) > 1:
        raise DataError("data.config", f"{data.name} is prepared in several configs", f"choose from {listing(configs)}")
    if data.config is not None and data.config not in configs:
        raise DataError("data.config", f"{data.name} has no config {data.config!r}", suggest(data.config, configs))
    here = [p for p in here if data.config is None or p.config == data.config]
    versions = {p.version: p for p in here}
    chosen = versions[version_among(data, versions)]
    _check_format(chosen)
    return chosen


def to_prepare(data: Data) -> Any:
    """The built-in dataset that a `data:` block names, if it is not prepared yet."""
    built_in = data.built_in
    if built_in is None or data.config is not None:
        return None
    return None if any(p.config == config_of(built_in) for p in _named(data)) else built_in


def config_of(built_in: Any) -> str | None:
    """TFDS config that the options of a built-in dataset, or a plugin's, make."""
    return getattr(built_in, "config", None)


def version_among(data: Data, versions: Iterable[str]) -> str:
    """The version that a `data:` block names among those there are, by default the last. Raises DataError."""
    known = list(versions)
    if data.version is not None and data.version not in known:
        got = f"version {data.version!r} of {data.name} is not prepared in {data.directory}"
        raise DataError("data.version", got, suggest(data.version, known))
    return data.version or known[-1]


def _named(data: Data) -> list[Prepared]:
    return [p for p in prepared(data.directory) if p.name == data.name]


def _not_prepared(data: Data) -> DataError:
    known = {p.name for p in prepared(data.directory)} | set(entries("dataset"))
    got = f"dataset {data.name!r} is not prepared in {data.directory} (usable there: {listing(known)})"
    hint = suggest(data.name, known)
    close = f"{hint} Otherwise " if hint.startswith("did you mean") else ""
    return DataError("data.name", got, f"{close}{how_to_prepare(data.name, data.directory)}")


def how_to_prepare(name: str, data_dir: Path) -> str:
    """What to run to get a dataset that is not there."""
    return (
        f"run `llrflow data import {name} --format FORMAT --from PATH` for files that you have (idx, cifar-python, "
        f"cifar-binary, cifar-c, npz, folder), or, for a dataset of the TFDS catalogue, `llrflow data prepare {name}` "
        f"on a machine with TensorFlow and a network, and copy the result to {data_dir / name}"
    )


def _check_format(dataset: Prepared) -> None:
    file_format = dataset.info().get("fileFormat") or "tfrecord"
    if file_format == "array_record":
        return
    why = {"tfrecord": "needs TensorFlow to read", "parquet": "ignores split slices"}.get(
        file_format, "is not supported"
    )
    raise DataError(
        "data.name",
        f"{dataset.directory} is stored as {file_format}, which {why}",
        f"remove it and prepare it as array_record: `llrflow data prepare {dataset.name}`",
    )
