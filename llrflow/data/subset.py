"""A random part of a split's images, to evaluate in the place of all of them (`evaluate.images`)."""

from __future__ import annotations

import zlib
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from llrflow.components.registry import Component
from llrflow.data.batches import epoch_order
from llrflow.data.split import Request, Split

# No other stream of a run may be keyed by the same seed and purpose.
_PURPOSE = zlib.crc32(b"evaluated images")
_CHUNK = 1000


class Subset(Component):
    """So many images, drawn without replacement.

    Where not stratified, a larger number of the same seed draws those of a smaller one too.

    A number alone is its `count`.
    """

    count: int = Field(ge=1)
    """Images to evaluate; of other data than the test split, which may have fewer, at most so many."""

    stratified: bool = False
    """Take from every class its share of the images, to within one image."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the draw; the spec's `seed` has no part in it, so that runs that differ in theirs are compared on the same
    images."""

    def ids(self, split: Split) -> np.ndarray:
        """The ids of the images, ascending [count]: all where the split has no more. Stratified it reads every label.

        Classes get the whole parts of their shares, and one more image each those with the largest remainders
        (Hamilton's method), of equals the first; corrupt images are a class of their own.
        """
        if self.count >= len(split):
            return np.arange(len(split))
        order = epoch_order(self.seed, 0, len(split), _PURPOSE)
        if not self.stratified:
            return np.sort(order[: self.count])
        chunks = np.split(np.arange(len(split)), range(_CHUNK, len(split), _CHUNK))
        labels = np.concatenate([part.labels for part in split.load(map(Request, chunks))])
        _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        parts, remainders = np.divmod(sizes * self.count, len(split))
        parts[np.argsort(-remainders, kind="stable")[: self.count - parts.sum()]] += 1
        drawn = [order[of_class[order] == at][:part] for at, part in enumerate(parts)]
        return np.sort(np.concatenate(drawn))


def _counted(raw: Any) -> Any:
    return {"count": raw} if type(raw) is int else raw


SubsetOrCount = Annotated[
    Subset | None,
    BeforeValidator(_counted, json_schema_input_type=int | Subset | None),
    Field(exclude_if=lambda subset: subset is None),  # so that specs without it stay the specs that they were
]
