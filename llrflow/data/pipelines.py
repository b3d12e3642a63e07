"""Which pipeline brings a split, and why; the splits of a `data:` block."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.memory_size import amount
from llrflow.data.extra import WithExtra
from llrflow.data.facts import DatasetFacts, describe
from llrflow.data.reader import fingerprint, open_dataset
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.data.split import Split
from llrflow.data.streaming import Streaming
from llrflow.data.windows import original_crop

Role = Literal["train", "test"]


class Choice(NamedTuple):
    """A pipeline for a split."""

    pipeline: Literal["resident", "streaming"]
    why: str
    decoded: int
    """Bytes of the split's decoded images."""


def choose(data: Data, facts: DatasetFacts, role: Role) -> Choice:
    """The pipeline of the training or of the test split. Raises DataError where the one asked for is impossible."""
    decoded = (facts.train if role == "train" else facts.test) * int(np.prod(facts.image_shape))
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


def open_split(data: Data, role: Role) -> Split:
    """The training or the test split of a `data:` block. Raises DataError as `describe` and `choose` do."""
    if role == "train" and data.extra is not None and (block := data.extra_block) is not None:
        main = open_split(data.model_copy(update={"extra": None}), role)
        return WithExtra(main, open_split(block, role), data.extra.share)
    facts, split = describe(data), data.train if role == "train" else data.test
    if choose(data, facts, role).pipeline == "resident":
        return load_split(data, split)
    dataset = open_dataset(data)
    return Streaming(
        dataset,
        split,
        facts.train if role == "train" else facts.test,
        facts.image_shape,
        fingerprint(data, dataset, split),
        data.corrupt,
        facts.varies,
        original_crop(data.augment, facts.varies) if role == "train" else None,
    )
