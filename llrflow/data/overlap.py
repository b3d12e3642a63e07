"""Which examples two split expressions share: by files and rows, whatever the expressions say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tensorflow_datasets.core.splits import SplitDict


def overlap(splits: SplitDict, split: str, other: str) -> np.ndarray:
    """Which of the n examples of the TFDS split expression `split`, in its order, `other` selects too: bool [n]."""
    known: Any = splits
    chosen: dict[str, np.ndarray] = {}
    for part in known[other].file_instructions:
        rows = chosen.setdefault(part.filename, np.zeros(part.examples_in_shard, bool))
        rows[part.skip : part.skip + part.take] = True
    parts = known[split].file_instructions
    found = [chosen.get(p.filename, np.zeros(p.examples_in_shard, bool))[p.skip : p.skip + p.take] for p in parts]
    return np.concatenate([np.zeros(0, bool), *found])
