"""Which class each image is taken for, without and under attack, and what that comes to by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.search import Findings
from llrflow.runs.records import ClassesRecord


def taken_for(label: np.ndarray, before: np.ndarray, found: Sequence[tuple[Attack, Findings]]) -> np.ndarray:
    """The class that each image is taken for after an attack's stages, [N]: that at the first which changed it.

    What was taken for another class `before` stays so.
    """
    after = before.copy()
    for _, stage in found:
        changed = stage.candidates & stage.arrays["wrong"] & (after == label)
        after[changed] = stage.arrays["predicted"][changed]
    return after


def classes_record(names: Sequence[str], label: np.ndarray, taken: Mapping[str, np.ndarray]) -> ClassesRecord:
    """The record of labels [N], -1 where an image is corrupt, and of the classes [N] taken for in each situation."""
    known = label >= 0
    n = np.bincount(label[known], minlength=len(names))
    accuracy, matrices = {}, {}
    for situation, classes in taken.items():
        right = np.bincount(label[known & (classes == label)], minlength=len(names))
        shares = zip(right.tolist(), n.tolist(), strict=True)
        accuracy[situation] = [hits / count if count else None for hits, count in shares]
        matrices[situation] = _confusion(label[known], classes[known])
    return ClassesRecord(names=list(names), n=n.tolist(), accuracy=accuracy, taken=matrices)


def _confusion(label: np.ndarray, taken: np.ndarray) -> dict[int, dict[int, int]]:
    rows: dict[int, dict[int, int]] = {}
    pairs, counts = np.unique(np.stack([label, taken]), axis=1, return_counts=True)
    for (true, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        rows.setdefault(true, {})[other] = count
    return rows
