"""Whether images to test on are among those to train on: by files and rows, whatever the split expressions say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tensorflow_datasets.core.splits import SplitDict


def overlap(splits: SplitDict, train: str, test: str) -> int:
    """Examples that the TFDS split expressions `train` and `test` both select, each counted once."""
    trained, tested = _rows(splits, train), _rows(splits, test)
    return sum(int((tested[file] & trained[file]).sum()) for file in tested.keys() & trained)


def _rows(splits: SplitDict, expression: str) -> dict[str, np.ndarray]:
    """Which rows of each file are selected."""
    known: Any = splits
    found: dict[str, np.ndarray] = {}
    for part in known[expression].file_instructions:
        rows = found.setdefault(part.filename, np.zeros(part.examples_in_shard, bool))
        rows[part.skip : part.skip + part.take] = True
    return found
