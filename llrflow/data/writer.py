"""Write a TFDS dataset without TensorFlow, so that it is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.errors import DataError
from llrflow.files import locked, sync, write_atomic

PRIVATE = ".llrflow"
"""Directory below a data directory for files of llrflow that are not datasets."""

SOURCE_FILE = "llrflow_source.json"
"""File next to dataset_info.json that says what the dataset was made from."""

VERSION = "1.0.0"
"""Version of every dataset written here."""

Progress = Callable[[int, int], None]
"""Called with (examples written, examples in all)."""

_BATCH = 1000
_SHARD = 50_000


def write_tfds(
    name: str,
    data_dir: Path,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    classes: int,
    description: str,
    source: Mapping[str, Any],
    progress: Progress | None = None,
) -> bool:
    """Write splits of (images uint8 [N, H, W, C], labels int [N]) as `<data_dir>/<name>/1.0.0` in array_record format.

    The order of the examples is kept. `source` is stored next to them. Returns False, having written nothing, when
    that dataset exists. Everything is built in a temporary directory and renamed: a killed writer leaves no dataset,
    and the next one removes what it left. Raises DataError when the directory cannot be written.
    """
    target = data_dir / name / VERSION
    staging = data_dir / PRIVATE / "staging"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / PRIVATE / "write.lock"):
            for leftover in staging.iterdir():
                shutil.rmtree(leftover)
            if (target / "dataset_info.json").exists():
                return False
            built = staging / name
            built.mkdir()
            try:
                _write(built, name, splits, classes, description, progress)
                origin = {**source, "content_sha256": content_sha256(splits)}
                write_atomic(built / SOURCE_FILE, json.dumps(origin, indent=2).encode())
                for file in built.iterdir():
                    sync(file)
                target.parent.mkdir(exist_ok=True)
                built.rename(target)
                sync(target.parent)
            except BaseException:
                shutil.rmtree(built, ignore_errors=True)
                raise
    except OSError as error:
        raise DataError(str(target), f"cannot be written: {error}", "choose a writable, empty place") from None
    return True


def content_sha256(splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, str]:
    """SHA-256 of every split's shape, pixels and labels, whatever files they come from or go to."""
    sums = {}
    for split, (images, labels) in splits.items():
        digest = hashlib.sha256(str(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels, "<i8").data)
        sums[split] = digest.hexdigest()
    return sums


def content_of(directory: Path) -> dict[str, str] | None:
    """The `content_sha256` stored with a dataset that llrflow wrote; None for any other dataset."""
    file = directory / SOURCE_FILE
    return json.loads(file.read_text())["content_sha256"] if file.exists() else None


def _write(
    directory: Path,
    name: str,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: int,
    description: str,
    progress: Progress | None,
) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    image_shape = next(iter(splits.values()))[0].shape[1:]
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(directory), module_name=__name__
    )
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=image_shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=features,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=_SHARD, file_format="array_record")
    writer.initialize_splits(list(splits))
    done, total = 0, sum(len(labels) for _, labels in splits.values())
    for split, (images, labels) in splits.items():
        for start in range(0, len(labels), _BATCH):
            rows = range(start, min(start + _BATCH, len(labels)))
            writer.add_examples({split: [{"image": _png(images[i]), "label": int(labels[i])} for i in rows]})
            done += len(rows)
            if progress:
                progress(done, total)
    writer.close_all()


def _png(image_HWC: np.ndarray) -> io.BytesIO:
    """One image as a PNG file; TFDS would need TensorFlow to encode it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file
