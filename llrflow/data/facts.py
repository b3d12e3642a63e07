"""What is known about a dataset without decoding an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llrflow.base.errors import DataError
from llrflow.base.shown import trained_on_test
from llrflow.data.held_back import sizes
from llrflow.data.overlap import overlap
from llrflow.data.reader import count, image_shape, open_dataset
from llrflow.data.schema import Data
from llrflow.data.windows import original_crop


@dataclass(frozen=True)
class DatasetFacts:
    """What is known about a dataset without decoding an image."""

    name: str
    version: str
    directory: Path
    image_shape: tuple[int, int, int]
    """(H, W, C) of the images to train on."""
    classes: int
    splits: Mapping[str, int]
    """Examples in every split of the dataset."""
    train: int
    """Examples that are trained on: those that the block's `train` expression selects, without those held back."""
    test: int
    """Examples that the block's `test` expression selects."""
    source: Literal["prepared", "table", "built-in"] = "prepared"
    """Whether the dataset was looked at, or is not there and stands in `llrflow.data.well_known` or is built in."""
    trained_on_test: int = 0
    """Examples that both expressions select."""
    varies: bool = False
    """Whether the dataset's images vary in size, so that they are resized to `image_shape`."""
    extra: DatasetFacts | None = None
    """Those of the dataset that `data.extra` names, whose `train` are the extra images."""
    validation: int = 0
    """Examples that `data.validation` holds back from training."""
    held: int = 0
    """Of these, those that the `train` expression selects."""

    @property
    def warning(self) -> str | None:
        """What to tell of training on images that are tested on; None where none are."""
        return trained_on_test(self.trained_on_test, self.test)


def describe(data: Data) -> DatasetFacts:
    """Facts about the dataset of a `data:` block, from its metadata alone.

    Raises DataError when it is not prepared, is in a format that cannot be read, or lacks one of the two splits.
    """
    dataset = open_dataset(data)
    shape, varies = image_shape(data, dataset)
    n, test = (count(data, dataset, split) for split in (data.train, data.test))
    chosen = count(data, dataset, data.validation) if isinstance(data.validation, str) else 0
    train, validation, held = sizes(data, dataset.builder.info.splits, n, chosen)
    facts = DatasetFacts(
        name=dataset.prepared.name,
        version=dataset.prepared.version,
        directory=dataset.prepared.directory,
        image_shape=shape,
        classes=dataset.classes,
        splits={name: split.num_examples for name, split in dataset.builder.info.splits.items()},
        train=train,
        test=test,
        trained_on_test=int(overlap(dataset.builder.info.splits, data.test, data.train).sum()),
        varies=varies,
        validation=validation,
        held=held,
    )
    return with_extra(data, facts, describe)


def with_extra(data: Data, facts: DatasetFacts, describe: Callable[[Data], DatasetFacts]) -> DatasetFacts:
    """The facts of a `data:` block with those of its extra images, as `describe` finds them.

    Raises DataError where they are not prepared, or differ from the training images in shape or classes.
    """
    block = data.extra_block
    if block is None:
        return facts
    with _located():
        extra = describe(block)
    for mine, theirs in (
        (f"images {list(facts.image_shape)}", f"images {list(extra.image_shape)}"),
        (f"{facts.classes} classes", f"{extra.classes} classes"),
    ):
        if mine != theirs:
            got = f"= {block.name!r} has {theirs}, {facts.name} {mine}"
            raise DataError("data.extra.name", got, "choose a dataset of the same images and classes")
    if (original_crop(data.augment, facts.varies) is None) != (original_crop(data.augment, extra.varies) is None):
        one, other = (facts.name, block.name) if facts.varies else (block.name, facts.name)
        got = f"= {block.name!r}: images of {one} vary in size and are cropped while decoded, those of {other} not"
        raise DataError("data.extra.name", got, "leave that augmentation out, or prepare both alike")
    return dataclasses.replace(facts, extra=extra)


@contextmanager
def _located() -> Iterator[None]:
    """Give an error that names a field of the extra images' own block its place in the spec."""
    places = {name: name for name in ("name", "config", "version", "options")} | {"train": "split", "test": "split"}
    try:
        yield
    except DataError as error:
        field = error.where.removeprefix("data.")
        if field not in places or field == error.where:
            raise
        raise DataError(f"data.extra.{places[field]}", error.got, error.fix) from error
