"""Images held back from training (`data.validation`): which ones, by a rule of seed and example id alone."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llrflow.base.errors import DataError
from llrflow.data.overlap import overlap
from llrflow.data.reader import Records, count, open_dataset
from llrflow.data.schema import Data

if TYPE_CHECKING:
    from tensorflow_datasets.core.splits import SplitDict

# No other stream of a run may be keyed by the same seed and purpose.
_PURPOSE = zlib.crc32(b"held back")
_CHUNK = 1000
_WHERE = "data.validation"


class Sizes(NamedTuple):
    """How many examples a `data:` block trains on, and looks at while it trains."""

    train: int
    validation: int
    held: int
    """Of the training split's examples, those that are not trained on: none where `validation` names other images."""


def sizes(data: Data, splits: SplitDict, n: int, validation: int) -> Sizes:
    """The sizes for a training split of n examples, of which a split expression selects `validation`.

    Raises DataError where nothing would be held back, or nothing be left to train on, or test images held back.
    """
    chosen = data.validation
    if chosen is None:
        return Sizes(n, 0, 0)
    if isinstance(chosen, str):
        if shared := int(overlap(splits, chosen, data.test).sum()):
            got = f"= {chosen!r} has {shared} images of data.test = {data.test!r}"
            raise DataError(_WHERE, got, "choose others: test images are to choose nothing")
        held = int(overlap(splits, data.train, chosen).sum())
    else:
        held = validation = round(chosen * n) if isinstance(chosen, float) else chosen
    if not validation:
        raise DataError(_WHERE, f"= {chosen!r} holds back none of {n} training images", "hold back more")
    if held >= n:
        raise DataError(_WHERE, f"= {chosen!r} leaves none of {n} training images", "hold back fewer")
    return Sizes(n - held, validation, held)


def held_back(data: Data, splits: SplitDict, n: int, seed: int) -> np.ndarray:
    """Which of the n examples of the training split are not trained on, bool [n].

    A share or a number are those whose pseudo-random word, a function of seed and id, is the smallest.
    """
    if isinstance(data.validation, str):
        return overlap(splits, data.train, data.validation)
    # Raw bits of a counter-based generator: word i does not depend on n, and NumPy promises it for ever (NEP 19).
    words = np.random.Philox(np.random.SeedSequence([seed, _PURPOSE])).random_raw(n)
    held = np.zeros(n, bool)
    held[np.argsort(words, kind="stable")[: sizes(data, splits, n, 0).held]] = True
    return held


def check_classes(data: Data, seed: int) -> None:
    """Raise DataError where a class has images in the training split of a prepared dataset, and all are held back."""
    dataset = open_dataset(data)
    records = Records(dataset, data.train)
    held = held_back(data, dataset.builder.info.splits, count(data, dataset, data.train), seed)
    missing = _without(set(range(dataset.classes)), records, np.flatnonzero(~held))
    if missing and (lost := missing - _without(missing, records, np.flatnonzero(held))):
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        got = f"= {data.validation!r} leaves class {dataset.class_names[min(lost)]!r}{more} without training images"
        raise DataError(_WHERE, got, "hold back fewer")


def _without(classes: set[int], records: Records, ids: np.ndarray) -> set[int]:
    """Those of some classes that no example of `ids` has; labels are read only until each class is found."""
    left = set(classes)
    for first in range(0, len(ids), _CHUNK):
        if left:
            left -= set(records.read(ids[first : first + _CHUNK].tolist())[1].tolist())
    return left
