"""The adversarial images that an evaluation leaves: a few to look at, and all of them where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.base.files import open_atomic
from llrflow.runs.predictions import Predictions
from llrflow.runs.verdicts import Verdicts


def write_shown(
    path: Path, predicted: Predictions, ids: np.ndarray, made: Mapping[str, list[tuple[Attack, Verdicts]]]
) -> None:
    """Write evaluation/<step><label>.npz: a few images, and each with the perturbation that changed it.

    `ids` [N] are those of all images in their split. A perturbation is that of the first attack that
    changed the image; where none did, that of the last attack on it.
    """
    rows = predicted.shown
    images, labels = predicted.examples(rows)
    delta, changed = np.zeros_like(images), np.zeros(len(rows), bool)
    names = np.full(len(rows), "none", dtype="U64")
    for name, part, verdicts in ((n, *stage) for n, found in made.items() for stage in found):
        wrong = verdicts.arrays["wrong"][rows]
        take = verdicts.candidates[rows] & ~changed & (wrong | (not part.minimum_norm))
        delta[take] = verdicts.perturbations(rows[take])
        names[take] = name
        changed |= take & wrong
    found = {"ids": ids[rows], "labels": labels, "images": images}
    found |= {"delta": delta, "attacks": names, "changed": changed}
    clean, attacked = (predicted.probabilities(x) for x in (images, images + delta))
    with open_atomic(path) as file:
        np.savez(file, allow_pickle=False, **found, clean=clean, attacked=attacked)


def write_adversarial(path: Path, predicted: Predictions, verdicts: Verdicts) -> None:
    """Write evaluation/<step><label>.<attack>.adversarial.npz: the image that an attack made of each it was run on."""
    rows = np.flatnonzero(verdicts.candidates)
    images, labels = predicted.examples(rows)
    x_adv = images + verdicts.perturbations(rows)
    found = {field: verdicts.arrays[field][rows] for field in ("ids", "distance", "predicted")}
    with open_atomic(path) as file:
        wrong = verdicts.arrays["wrong"][rows]
        np.savez(file, allow_pickle=False, x_adv=x_adv, labels=labels, success=wrong, **found)
