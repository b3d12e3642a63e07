"""A prepared dataset, opened: which features hold images and labels, how many examples, and encoded examples by id."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.base.errors import DataError, line_of
from llrflow.base.validation import listing, suggest
from llrflow.data.catalog import Prepared, find
from llrflow.data.metadata import INFO_FILE, check_metadata, content_of, damaged
from llrflow.data.schema import Data

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.core.splits import SplitDict

_FORMAT = 2  # of the cache: part of every fingerprint
_SAMPLE, _SAMPLES = 2**16, 4
"""Bytes and number of the parts of a file that a fingerprint covers, from its beginning to its end."""


@dataclass(frozen=True)
class Opened:
    """A prepared dataset with its TFDS builder and the features that hold images and labels."""

    prepared: Prepared
    builder: DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int | None, int | None, int]
    """(H, W, C); None for a size that varies."""
    classes: int
    class_names: tuple[str, ...]
    """As stored, or the numbers of the classes."""


def open_dataset(data: Data) -> Opened:
    """The dataset of a `data:` block. Raises DataError when it is not prepared or no classification of images."""
    prepared = find(data)
    check_metadata(prepared.directory)
    builder = _builder(str(prepared.directory), (prepared.directory / INFO_FILE).stat().st_mtime_ns)
    features: Any = builder.info.features
    keys: Any = builder.info.supervised_keys
    image_key, label_key = keys if keys and len(keys) == 2 else ("image", "label")
    for role, key in (("images", image_key), ("labels", label_key)):
        if key not in features:
            got = f"{prepared.name} has no feature {key!r} for the {role} (it has {listing(features)})"
            raise DataError("data.name", got, "choose a labelled image dataset")
    image, label = features[image_key], features[label_key]
    classes = getattr(label, "num_classes", None)
    if not classes:
        got = f"feature {label_key!r} of {prepared.name} is not a class label"
        raise DataError("data.name", got, "choose a classification dataset")
    shape = tuple(image.shape) + ((1,) if len(image.shape) == 2 else ())
    if len(shape) != 3 or shape[-1] not in (1, 2, 3, 4):
        got = f"feature {image_key!r} of {prepared.name} has the shape {tuple(image.shape)}"
        raise DataError("data.name", got, "choose a dataset of images")
    if np.dtype(image.np_dtype) != np.uint8:
        got = f"the images of {prepared.name} are {np.dtype(image.np_dtype)}"
        raise DataError("data.name", got, "prepare a dataset with uint8 images")
    return Opened(prepared, builder, image_key, label_key, shape, classes, tuple(map(str, label.names)))


def image_shape(data: Data, dataset: Opened) -> tuple[tuple[int, int, int], bool]:
    """((H, W, C) of the images to train on, whether those of the dataset vary in size). Raises DataError."""
    height, width, channels = dataset.image_shape
    if height is not None and width is not None:
        check_size(data, dataset.prepared.name, height, width)
        return (height, width, channels), False
    side = side_of(data, dataset.prepared.name)
    return (side, side, channels), True


def side_of(data: Data, name: str) -> int:
    """`image_size`; DataError where images vary in size and it is missing."""
    if data.image_size is None:
        raise DataError("data.image_size", f"is missing: the images of {name} vary in size", "set it, e.g. to 224")
    return data.image_size


def check_size(data: Data, name: str, height: int, width: int) -> None:
    """DataError where `image_size` is not that of images which all have one size."""
    if data.image_size not in (None, height):
        got = f"= {data.image_size} but the images of {name} are {height} x {width}"
        raise DataError("data.image_size", got, "leave it out: images of one size are not resized")


def count(data: Data, dataset: Opened, split: str) -> int:
    """Examples that a TFDS split expression selects; DataError when it is none or selects nothing."""
    roles = {data.validation: "data.validation", data.test: "data.test", data.train: "data.train"}
    where = roles.get(split, "split")
    return selected(dataset.builder.info.splits, split, dataset.prepared.name, where)


def selected(known: SplitDict, split: str, name: str, where: str) -> int:
    """How many examples a split expression selects; DataError at `where` when it is none or selects nothing."""
    fix = f"choose from {listing(known)}, or a slice such as {next(iter(known), 'train')}[:80%]"
    try:
        n = known[split].num_examples
    except (KeyError, ValueError) as error:
        part = split.partition("[")[0]
        if part.isidentifier() and part not in known:
            hint = suggest(part, known)
            close = f"{hint} or " if hint.startswith("did you mean") else ""
            raise DataError(where, f"{name} has no split {part!r}", close + fix) from None
        raise DataError(where, f"{split!r} is not a split of {name}: {line_of(error)}", fix) from None
    if n == 0:
        raise DataError(where, f"{split!r} selects no examples of {name}", fix)
    return n


class Records:
    """The examples of one split, read by id in any order and from any thread, images still encoded."""

    def __init__(self, dataset: Opened, split: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets.proto import tf_example_pb2

        messages: Any = tf_example_pb2  # its classes are made while it is imported

        self.dataset, self.split = dataset, split
        # Not TFDS's own data source: it takes three times as long for an example, half as long as decoding it.
        known: Any = dataset.builder.info.splits
        files = known[split].file_instructions
        for file in (Path(instruction.filename) for instruction in files):
            if file.exists() and not file.is_file():  # a pipe would be waited for
                raise damaged(file, "is no regular file")
        self._source: Any = ArrayRecordDataSource(files)
        self._parse = messages.Example.FromString

    def read(self, ids: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
        """(encoded images, labels int32 [.]) of some examples. Raises DataError when files or labels are damaged."""
        dataset, images, labels = self.dataset, [], np.empty(len(ids), np.int64)
        try:
            for row, example in enumerate(ids):
                # array_record hands out records of a truncated file as empty ones, which have no features.
                features = self._parse(self._source[example]).features.feature
                images.append(features[dataset.image_key].bytes_list.value[0])
                labels[row] = features[dataset.label_key].int64_list.value[0]
        except Exception as error:  # array_record raises RuntimeError, protobuf whatever it likes
            problem = ValueError("records are damaged") if isinstance(error, IndexError) else error
            raise self.damaged(problem) from None
        wrong = labels[(labels < 0) | (labels >= dataset.classes)]
        if wrong.size:
            got = f"{self.split} has label {wrong[0]}, outside 0..{dataset.classes - 1}"
            raise DataError(str(dataset.prepared.directory), got, "choose a split with labels")
        return images, labels.astype(np.int32)

    def damaged(self, error: Exception) -> DataError:
        """The error for records or images that cannot be decoded."""
        got = f"{self.split} cannot be decoded: {line_of(error)}"
        return DataError(str(self.dataset.prepared.directory), got, "remove it and prepare it again")


def fingerprint(data: Data, dataset: Opened, split: str) -> str:
    """SHA-256 over dataset, config, version, split expression, features, size of resized images, and content.

    The content is the checksum stored by an importer; else the sizes of the dataset's files and a checksum of four
    parts of each: no more is read, however large the files are.
    """
    prepared = dataset.prepared
    content = content_of(prepared.directory) or {
        "splits": prepared.info().get("splits"),
        "files": {file.name: _samples(file) for file in sorted(prepared.directory.glob("*.array_record*"))},
    }
    identity = {
        "format": _FORMAT,
        "dataset": [prepared.name, prepared.config, prepared.version],
        "split": split,
        "keys": [dataset.image_key, dataset.label_key],
        "features": prepared.features(),
        "image_size": data.image_size,
        "content": content,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _samples(file: Path) -> list[Any]:
    size, found = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as opened:
        for part in range(_SAMPLES):
            opened.seek(max(0, size - _SAMPLE) * part // (_SAMPLES - 1))
            found.update(opened.read(_SAMPLE))
    return [size, found.hexdigest()]


@functools.lru_cache(maxsize=8)
def _builder(directory: str, _changed: int) -> DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # TFDS raises whatever its JSON and protobuf readers do
        raise DataError("data.name", f"{directory} cannot be opened: {line_of(error)}", "prepare it again") from None
