"""Images of another dataset that each training batch holds a share of (`data.extra`)."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from llrflow.data.batches import batch_ids
from llrflow.data.split import Loaded, Request, Split

FIRST_ID = 2**30
"""Id of the first extra image: rows of both sets count from 0, and no number may be keyed alike for two images."""

# No other stream of a run may be keyed by the same seed and purpose.
_ORDER, _PLACES = zlib.crc32(b"epoch order of extra images"), zlib.crc32(b"places of extra images")


def divided(batch_size: int, share: float) -> tuple[int, int]:
    """(images of the training split, extra ones) of a batch: round(share x batch_size) are extra, halves to even."""
    extra = round(share * batch_size)
    return batch_size - extra, extra


class WithExtra(Split):
    """A training split whose batches hold a share of extra images, at random places.

    Both sets have epochs of their own: each visits all of its images in a new order before it starts again. Length and
    epochs are those of the training split. An extra image's id is its row + FIRST_ID.
    """

    def __init__(self, main: Split, extra: Split, share: float) -> None:
        both = hashlib.sha256(f"{main.fingerprint} {extra.fingerprint}".encode()).hexdigest()
        super().__init__(main.dataset, main.split, len(main), main.image_shape, both, main.share)
        self._main, self._extra, self._part = main, extra, share
        self.corrupt = main.corrupt

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """What was requested, in that order, from whichever set each id belongs to."""
        ours, theirs, whole = itertools.tee(requests, 3)
        main = self._main.load(r._replace(ids=r.ids[r.ids < FIRST_ID]) for r in ours)
        extra = self._extra.load(r._replace(ids=r.ids[r.ids >= FIRST_ID] - FIRST_ID, first_id=FIRST_ID) for r in theirs)
        for request, mine, other in zip(whole, main, extra, strict=True):
            of_extra, size = request.ids >= FIRST_ID, len(request.ids)
            images = np.empty((size, *self.image_shape), np.uint8)
            loaded = Loaded(images, np.empty(size, np.int32), np.empty(size, np.int32))
            for rows, part, first in ((~of_extra, mine, 0), (of_extra, other, FIRST_ID)):
                loaded.images[rows], loaded.labels[rows], loaded.ids[rows] = part.images, part.labels, part.ids + first
            yield loaded

    def batch_ids(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """The ids [B] of a training step: those of both sets, in an order of seed and step."""
        main, extra = divided(batch_size, self._part)
        ids = np.empty(batch_size, np.int64)
        # Neighbours are mixed and parts of a batch have statistics of their own, so neither set may lie in one piece.
        words = np.random.Philox(np.random.SeedSequence([seed, _PLACES, step])).random_raw(batch_size)
        places = np.argsort(words, kind="stable")
        if main:
            ids[places[:main]] = batch_ids(seed, step, len(self._main), main)
        if extra:
            ids[places[main:]] = FIRST_ID + batch_ids(seed, step, len(self._extra), extra, _ORDER)
        return ids

    def corrupt_names(self) -> list[str]:
        """The corrupt images met so far; an extra one's begins with its dataset."""
        name = self._extra.dataset.prepared.name
        return [*self._main.corrupt_names(), *(f"{name}/{problem}" for problem in self._extra.corrupt_names())]
