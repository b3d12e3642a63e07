"""What a checkpoint's network says of the test images."""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import numpy as np
from scipy.special import softmax

from llrflow.base.errors import NonFiniteError
from llrflow.data.batches import padded_chunks
from llrflow.data.split import Request, Split
from llrflow.program.compile import Program
from llrflow.program.state import TrainState
from llrflow.runs.classifier import hash_of

SHOWN = 8
"""Correctly classified images whose perturbations are kept, for people to look at."""


class Predictions:
    """The network of a checkpoint, with the parameters that are evaluated, and the N test images."""

    def __init__(self, program: Program, state: TrainState, split: Split) -> None:
        self.program, self.split, self.step, self.n = program, split, int(state.step), len(split)
        self.parameters: Literal["raw", "ema"] = program.evaluated_parameters
        params = state.ema if self.parameters == "ema" else state.params
        self.variables = program.devices.replicate((params, state.model_state))
        self.sha256 = hash_of((params, state.model_state))
        devices = len(program.devices)
        self.batch_size = -(-program.spec.evaluate.batch_size // devices) * devices

    @functools.cached_property
    def classes(self) -> dict[str, np.ndarray]:
        """`label` and, without any attack, `clean` predicted class of each image, int32 [N]. Raises NonFiniteError.

        A corrupt image has the label -1.
        """
        found = {name: np.zeros(self.n, np.int32) for name in ("label", "clean")}
        chunks, again = itertools.tee(padded_chunks(np.arange(self.n), self.batch_size))
        loaded = self.split.load(Request(ids) for ids, _ in again)
        for (ids, mask), part in zip(chunks, loaded, strict=True):
            logits = self.program.logits(self.variables, _in_unit_range(part.images))
            if not np.isfinite(logits).all():
                raise NonFiniteError(f"the network of checkpoint {self.step} gives logits that are not finite")
            found["label"][ids[mask]], found["clean"][ids[mask]] = part.labels[mask], logits.argmax(-1)[mask]
        return found

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """Which images are classified correctly, [N]. Raises NonFiniteError."""
        return self.classes["clean"] == self.classes["label"]

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """Rows of the images that are kept for people to look at, ascending.

        Correct ones, spread over all by an order that no network has a part in, so that two runs have many in common.
        """
        # Multiples of the golden ratio: the smallest fractions of any number of rows are evenly spread over them.
        order = np.argsort(np.arange(self.n) * ((np.sqrt(5) - 1) / 2) % 1, kind="stable")
        return np.sort(order[self.correct[order]][:SHOWN])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Softmax of the network's logits, [M,K]."""
        chunks = padded_chunks(np.arange(len(images)), self.batch_size)
        logits = [self.program.logits(self.variables, images[rows])[mask] for rows, mask in chunks]
        return softmax(np.concatenate(logits), axis=-1)

    def examples(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [M,H,W,C] in [0, 1] and labels [M] of some ids."""
        images, labels, _ = self.split.read(ids)
        return _in_unit_range(images), labels


def spread(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly spread."""
    return ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int)]


def _in_unit_range(images: np.ndarray) -> np.ndarray:
    """uint8 as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255.0)
