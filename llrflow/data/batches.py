"""Which examples make up which batch.

Functions of (seed, step) without state, so that a resumed run continues exactly.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np

from llrflow.base.errors import DataError

# No other stream of a run may be keyed by the same seed and purpose.
_PURPOSE = zlib.crc32(b"epoch order")


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int, purpose: int = _PURPOSE) -> np.ndarray:
    """The permutation of the ids 0..n-1 [n] in which an epoch visits them (int64, read-only)."""
    # Sorting raw bits, because NumPy promises them for ever, unlike the result of Generator.permutation (NEP 19).
    bits = np.random.Philox(np.random.SeedSequence([seed, purpose, epoch])).random_raw(n)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one pass over n examples: the remainder of each epoch's permutation is left out of that epoch.

    Raises DataError when there are fewer examples than fit in one batch.
    """
    if n < batch_size:
        raise DataError("train.batch_size", f"{batch_size} is more than the {n} training examples", f"use at most {n}")
    return n // batch_size


def batch_ids(seed: int, step: int, n: int, batch_size: int, purpose: int = _PURPOSE) -> np.ndarray:
    """The example ids [B] of a training step, counted from 0 over all epochs; each `purpose` has orders of its own."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(seed, epoch, n, purpose)[position * batch_size : (position + 1) * batch_size]


def padded_chunks(ids: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut ids [N] into chunks (ids [size], mask [size]); the last repeats its first id where the mask is False."""
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        mask = np.arange(size) < len(chunk)
        yield np.concatenate([chunk, np.full(size - len(chunk), chunk[0], chunk.dtype)]), mask
