"""Write a TFDS dataset without TensorFlow, so that it is there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.files import locked, sync
from llrflow.data.examples import FILES, Checksum, Examples, Splits, as_examples, encoded
from llrflow.data.metadata import INFO_FILE, write_source

PRIVATE = ".llrflow"
"""Directory below a data directory for files of llrflow that are not datasets."""

VERSION = "1.0.0"
"""Version of every dataset written here."""

Progress = Callable[[int, int], None]
"""Called with (examples written, examples in all)."""

_BATCH = 1000
_BATCH_BYTES = 2**24
_SHARD = 50_000
_SHARD_BYTES = 2**28


def write_tfds(
    name: str,
    data_dir: Path,
    splits: Splits,
    *,
    classes: int | Sequence[str],
    description: str,
    source: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    progress: Progress | None = None,
    config: str | None = None,
    image_shape: tuple[int | None, int | None, int] | None = None,
) -> bool:
    """Write splits as `<data_dir>/<name>/[<config>/]1.0.0` in array_record format; classes by number or by name.

    The order of the examples is kept. `source` (called when all are written) is stored next to them. `image_shape` is
    that of arrays unless given. Returns False, having written nothing, when that dataset exists. Everything is built
    in a temporary directory and renamed: a killed writer leaves no dataset, and the next one removes what it left.
    Raises DataError when the directory cannot be written or its disk is too small.
    """
    target = data_dir / name / (config or "") / VERSION
    staging = data_dir / PRIVATE / "staging"
    examples = as_examples(splits)
    first = next(iter(splits.values()))
    shape = image_shape or (() if isinstance(first, Examples) else first[0].shape[1:])
    encoding = None if any(part.label == FILES for part in examples.values()) else "png"
    info = {"name": name, "config": config, "image": (shape, encoding), "classes": classes, "description": description}
    try:
        if not (target / INFO_FILE).exists():
            check_space(data_dir, examples)
        staging.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / PRIVATE / "write.lock"):
            for leftover in staging.iterdir():
                shutil.rmtree(leftover)
            if (target / INFO_FILE).exists():
                return False
            built = staging / name
            built.mkdir()
            try:
                sums = _write(built, examples, info, progress)
                origin = {**(source() if callable(source) else source), "content_sha256": sums}
                write_source(built, origin)
                for file in built.iterdir():
                    sync(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                built.rename(target)
                sync(target.parent)
            except BaseException:
                shutil.rmtree(built, ignore_errors=True)
                raise
    except OSError as error:
        raise DataError(str(target), f"cannot be written: {error}", "choose a writable, empty place") from None
    return True


def check_space(data_dir: Path, splits: Mapping[str, Examples]) -> None:
    """Raise DataError when the disk of a data directory, which need not exist yet, has no room for the splits."""
    there = next(place for place in (data_dir.absolute(), *data_dir.absolute().parents) if place.exists())
    needed, free = sum(examples.size for examples in splits.values()), shutil.disk_usage(there).free
    if needed > free:
        got = f"has {free / 1e9:.3g} GB left on its disk, the dataset takes about {needed / 1e9:.3g} GB"
        raise DataError(str(data_dir), got, "make room, or choose another --data-dir")


def _info(directory: Path, name: str, config: str | None, image: Any, classes: Any, description: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name=name,
        version=tfds.core.Version(VERSION),
        data_dir=str(directory),
        module_name=__name__,
        config_name=config,
    )
    label: dict[str, Any] = {"num_classes": classes} if isinstance(classes, int) else {"names": list(classes)}
    features = {
        "image": tfds.features.Image(shape=image[0], encoding_format=image[1]),
        "label": tfds.features.ClassLabel(**label),
    }
    return tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )


def _write(
    directory: Path, splits: Mapping[str, Examples], info: Mapping[str, Any], progress: Progress | None
) -> dict[str, str]:
    """Write the records and the metadata; the checksum of every split."""
    import tensorflow_datasets as tfds

    total, size = sum(e.count for e in splits.values()), sum(e.size for e in splits.values())
    shard = int(np.clip(_SHARD_BYTES * total // max(size, 1), 1, _SHARD))
    batch = int(np.clip(_BATCH_BYTES * total // max(size, 1), 1, _BATCH))
    writer = tfds.core.SequentialWriter(
        _info(directory, **info), max_examples_per_shard=shard, file_format="array_record"
    )
    writer.initialize_splits(list(splits))
    done, sums = 0, {}
    for split, examples in splits.items():
        checksum, pending = Checksum(examples), []
        for image, label in examples.read():
            checksum.add(image, label)
            pending.append({"image": encoded(image), "label": label})
            if len(pending) == batch:
                done = _flush(writer, split, pending, done, total, progress)
        if pending:
            done = _flush(writer, split, pending, done, total, progress)
        sums[split] = checksum.result()
    writer.close_all()
    return sums


def _flush(writer: Any, split: str, pending: list[Any], done: int, total: int, progress: Progress | None) -> int:
    """Write the pending examples and forget them; how many are written now."""
    writer.add_examples({split: pending})
    done += len(pending)
    pending.clear()
    if progress:
        progress(done, total)
    return done
