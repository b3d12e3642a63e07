"""Splits that do not fit in memory: each batch is read and decoded anew, a few batches ahead of the one in use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from llrflow.data.images import CorruptImage, decode_into, decode_window
from llrflow.data.reader import Opened, Records
from llrflow.data.split import Loaded, Request, Split
from llrflow.data.windows import OriginalCrop, centre

AHEAD = 2
"""Batches that are being read while one is in use; memory holds that many and no more."""


class Streaming(Split):
    """A split read by id from its array_record files, decoded by one thread per core (decoders release the GIL)."""

    def __init__(
        self,
        dataset: Opened,
        split: str,
        n: int,
        image_shape: tuple[int, int, int],
        fingerprint: str,
        share: float,
        varies: bool,
        crop: OriginalCrop | None = None,
    ) -> None:
        """Images that vary in size become `image_shape` by `crop` in training, and by the central square otherwise."""
        super().__init__(dataset, split, n, image_shape, fingerprint, share)
        self._records, self._varies, self._crop = Records(dataset, split), varies, crop
        self._workers = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers, "llrflow-decode")

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """What was requested, in that order, at most `AHEAD` requests ahead of the one that was handed out last."""
        rest, begun = iter(requests), deque[tuple[Loaded, list[Future[None]]]]()

        def begin() -> None:
            request = next(rest, None)
            if request is not None:
                begun.append(self._begin(request))

        try:
            for _ in range(AHEAD):
                begin()
            while begun:
                loaded, parts = begun[0]
                for part in parts:
                    part.result()
                begun.popleft()
                begin()
                yield loaded
        finally:
            for _, parts in begun:
                for part in parts:
                    part.cancel()

    def _begin(self, request: Request) -> tuple[Loaded, list[Future[None]]]:
        """Arrays to be filled, and the work that fills them, in one part per thread."""
        size = len(request.ids)
        images = np.empty((size, *self.image_shape), np.uint8)
        loaded = Loaded(images, np.empty(size, np.int32), request.ids.astype(np.int32))
        cut = -(-size // self._workers) or 1
        parts = [slice(first, first + cut) for first in range(0, size, cut)]
        return loaded, [self._pool.submit(self._fill, request, loaded, rows) for rows in parts]

    def _fill(self, request: Request, loaded: Loaded, rows: slice) -> None:
        ids = request.ids[rows].tolist()
        contents, loaded.labels[rows] = self._records.read(ids)
        for row, example, content in zip(range(rows.start, rows.start + len(ids)), ids, contents, strict=True):
            if self._decode(request, example, content, loaded.images[row]):
                continue
            if request.step is None:
                loaded.images[row], loaded.labels[row] = 0, -1
            else:
                self._replace(request, loaded, row)

    def _replace(self, request: Request, loaded: Loaded, row: int) -> None:
        """Put the next readable example in the place of a corrupt one."""
        example = int(loaded.ids[row])
        while True:  # ends: a share below 1 of all images is corrupt, or else `_note` raises
            example = int(self._following(np.array(example), request.among))
            (content,), label = self._records.read([example])
            if self._decode(request, example, content, loaded.images[row]):
                loaded.ids[row], loaded.labels[row] = example, label[0]
                return

    def _decode(self, request: Request, example: int, content: bytes, out: np.ndarray) -> bool:
        """Whether the image could be decoded into `out`."""
        try:
            if not self._varies:
                decode_into(content, out)
            elif self._crop is None or request.step is None:
                decode_window(content, out, centre)
            else:
                decode_window(content, out, self._crop.window(request.seed, request.step, request.first_id + example))
        except CorruptImage as error:
            self._note(example, str(error))
            return False
        return True
