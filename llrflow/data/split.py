"""What training and evaluation read from: the examples of a split, whichever pipeline brings them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from llrflow.base.errors import DataError
from llrflow.data.batches import batch_ids
from llrflow.data.images import allowed_corrupt
from llrflow.data.reader import Opened


class Loaded(NamedTuple):
    """Decoded examples."""

    images: np.ndarray
    """uint8 [B, H, W, C]"""
    labels: np.ndarray
    """int32 [B], each in 0..classes-1; in evaluation -1 where the image is corrupt."""
    ids: np.ndarray
    """int32 [B]: the row of each in its split."""


class Request(NamedTuple):
    """Examples that are wanted, for evaluation or for a training step."""

    ids: np.ndarray
    """int [B]"""
    seed: int = 0
    step: int | None = None
    """The training step, whose crops are random and in which other examples take the place of corrupt ones."""
    among: np.ndarray | None = None
    """Ids, ascending, of the examples that may do so; None for all."""
    first_id: int = 0
    """Added to a row where it keys a random crop."""


class Split(ABC):
    """One split; the id of an example is its row, and rows never change their order.

    An image that cannot be decoded is corrupt: in training the next readable one by id takes its place, in evaluation
    it is black and has the label -1, which no prediction equals. More than the share `data.corrupt` are a DataError.
    """

    def __init__(
        self, dataset: Opened, split: str, n: int, image_shape: tuple[int, int, int], fingerprint: str, share: float
    ) -> None:
        self.dataset, self.split, self._n, self.image_shape = dataset, split, n, image_shape
        self.classes, self.fingerprint, self.share = dataset.classes, fingerprint, share
        self.corrupt: dict[int, str] = {}
        """What is wrong with each corrupt image that was met so far, by id."""

    def __len__(self) -> int:
        return self._n

    @abstractmethod
    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """What was requested, in that order; the streaming pipeline works a little ahead. Raises DataError."""

    def read(self, ids: np.ndarray) -> Loaded:
        """Some examples for evaluation."""
        return next(self.load([Request(ids)]))

    def batches(
        self, seed: int, steps: range, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Loaded]:
        """The batches of some training steps, or of each this process's part: equal parts in the order of processes.

        A step's batch depends on nothing but the arguments: whoever begins at step s reads what belongs to s and later
        steps only. Raises DataError where a batch does not divide over the processes.
        """
        part, rest = divmod(batch_size, process_count)
        if rest:
            got = f"= {batch_size} does not divide over {process_count} processes"
            raise DataError("train.batch_size", got, f"try {(part + 1) * process_count}")
        mine = slice(process_index * part, (process_index + 1) * part)
        return self.load(Request(self.batch_ids(seed, s, batch_size)[mine], seed, s) for s in steps)

    def batch_ids(self, seed: int, step: int, batch_size: int) -> np.ndarray:
        """The example ids [B] of a training step, counted from 0 over all epochs."""
        return batch_ids(seed, step, len(self), batch_size)

    def corrupt_names(self) -> list[str]:
        """The corrupt images met so far: `train/12: what is wrong`."""
        return [f"{self.split}/{example}: {problem}" for example, problem in sorted(self.corrupt.items())]

    def _following(self, ids: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        """The next examples by id, of all or of those `among` which are allowed; after the last comes the first."""
        if among is None:
            return (ids + 1) % self._n
        return among[np.searchsorted(among, ids, "right") % len(among)]

    def _note(self, example: int, problem: str) -> None:
        """Take note of a corrupt image; DataError when that is more than the share allows."""
        self.corrupt[example] = problem
        allowed = allowed_corrupt(self.share, self._n)
        place = f"{self.dataset.prepared.directory}: {self.split}/{example}"
        if len(self.corrupt) > allowed:
            fix = "remove the dataset and prepare it again, or allow a share of such images with data.corrupt"
            got = f"cannot be decoded: {problem}"
            if allowed:
                got += f"; it is corrupt image number {len(self.corrupt)} of {self._n}, data.corrupt allows {allowed}"
            raise DataError(place, got, fix)


class Part(Split):
    """Some examples of a split, in their order.

    It is asked by row of this part, and hands out their ids in the whole, which key all randomness: what is left out
    changes nothing for the others. A part of a part is one of the whole.
    """

    def __init__(self, whole: Split, ids: np.ndarray) -> None:
        """`ids` are those of its examples in the whole, ascending."""
        if isinstance(whole, Part):
            whole, ids = whole._whole, whole.ids[ids]
        text = f"{whole.fingerprint} {ids.astype(np.int64).tobytes().hex()}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        super().__init__(whole.dataset, whole.split, len(ids), whole.image_shape, fingerprint, whole.share)
        self._whole, self.ids, self.corrupt = whole, ids, whole.corrupt

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """What was requested, in that order."""
        return self._whole.load(request._replace(ids=self.ids[request.ids], among=self.ids) for request in requests)

    def corrupt_names(self) -> list[str]:
        """Those of its own."""
        mine = {example: problem for example, problem in self.corrupt.items() if example in self.ids}
        return [f"{self.split}/{example}: {problem}" for example, problem in sorted(mine.items())]
