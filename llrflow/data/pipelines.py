"""Which pipeline brings a split, and why; the splits of a `data:` block."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.memory_size import amount
from llrflow.data.extra import WithExtra
from llrflow.data.facts import DatasetFacts, describe
from llrflow.data.held_back import held_back
from llrflow.data.reader import fingerprint, open_dataset
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.data.split import Part, Split
from llrflow.data.streaming import Streaming
from llrflow.data.windows import original_crop

Role = Literal["train", "validation", "test"]


def roles(data: Data) -> tuple[Role, ...]:
    """What a block's images are for."""
    return ("train", "test") if data.validation is None else ("train", "validation", "test")


class Choice(NamedTuple):
    """A pipeline for a split."""

    pipeline: Literal["resident", "streaming"]
    why: str
    decoded: int
    """Bytes of the split's decoded images."""


def choose(data: Data, facts: DatasetFacts, role: Role) -> Choice:
    """The pipeline of the images for one purpose. Raises DataError where the one asked for is impossible.

    What is held back out of the training split is read as that split is: kept, both share its decoded images.
    """
    decoded = _read_from(data, facts, role)[1] * int(np.prod(facts.image_shape))
    crop = original_crop(data.augment, facts.varies) if role == "train" else None
    if crop is not None:
        why = f"data.augment.{crop.name} cuts its windows out of originals that vary in size"
        if data.pipeline == "resident":
            got = f"= 'resident' keeps resized images, but {why}"
            raise DataError("data.pipeline", got, "set it to auto, or leave that augmentation out")
        return Choice("streaming", why, decoded)
    if data.pipeline != "auto":
        return Choice(data.pipeline, "data.pipeline says so", decoded)
    fits = decoded <= data.memory
    why = f"{amount(decoded)} decoded {'fit in' if fits else 'are more than'} data.memory = {amount(data.memory)}"
    return Choice("resident" if fits else "streaming", why, decoded)


def open_split(data: Data, role: Role, seed: int) -> Split:
    """The images of a `data:` block for one purpose. Raises DataError as `describe` and `choose` do.

    The spec's seed chooses which are held back.
    """
    if data.extra is not None and (block := data.extra_block) is not None:
        own = open_split(data.model_copy(update={"extra": None}), role, seed)
        return own if role != "train" else WithExtra(own, open_split(block, role, seed), data.extra.share)
    facts, dataset = describe(data), open_dataset(data)
    split, n = _read_from(data, facts, role)
    if choose(data, facts, role).pipeline == "resident":
        whole: Split = load_split(data, split)
    else:
        identity = fingerprint(data, dataset, split)
        crop = original_crop(data.augment, facts.varies) if role == "train" else None
        whole = Streaming(dataset, split, n, facts.image_shape, identity, data.corrupt, facts.varies, crop)
    if not facts.held or split != data.train or role == "test":
        return whole
    held = held_back(data, dataset.builder.info.splits, n, seed)
    return Part(whole, np.flatnonzero(held if role == "validation" else ~held))


def _read_from(data: Data, facts: DatasetFacts, role: Role) -> tuple[str, int]:
    """The split expression that images are read from, and how many it selects."""
    if role == "test":
        return data.test, facts.test
    if role == "validation" and isinstance(data.validation, str):
        return data.validation, facts.validation
    return data.train, facts.train + facts.held
