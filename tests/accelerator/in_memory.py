"""Examples in memory in place of a prepared dataset: reading one takes TFDS, which a bare machine lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from setting import Setting, facts_of

from llrflow.data.split import Loaded, Request, Split
from llrflow.program.compile import compile_spec


class InMemory(Split):
    """Images uint8 [N,H,W,C] with labels [N]."""

    def __init__(self, split: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
        names = tuple(map(str, range(classes)))
        dataset: Any = SimpleNamespace(classes=classes, class_names=names)
        digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        super().__init__(dataset, split, len(images), images.shape[1:], digest, 0.0)
        self._images, self._labels = images, labels.astype(np.int32)

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        for request in requests:
            yield Loaded(self._images[request.ids], self._labels[request.ids], request.ids.astype(np.int32))


@contextmanager
def reading(splits: Mapping[str, InMemory], setting: Setting) -> Iterator[None]:
    """Runs in the block read these splits, by role, whatever their spec names."""
    facts = facts_of(setting, len(splits["train"]), len(splits["test"]))
    compiling = partial(compile_spec, facts_of=lambda data: facts)
    with (
        mock.patch("llrflow.runs.pipeline.compile_spec", compiling),
        mock.patch("llrflow.runs.pipeline.open_split", lambda data, role, seed: splits[role]),
    ):
        yield


def made_up(setting: Setting, train: int, test: int) -> dict[str, InMemory]:
    """A pattern for each class under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 128, (setting.classes, *setting.image_shape))
    found = {}
    for role, size in {"train": train, "test": test}.items():
        labels = np.arange(size) % setting.classes
        noise = rng.integers(0, 128, (size, *setting.image_shape))
        found[role] = InMemory(role, (patterns[labels] + noise).astype(np.uint8), labels, setting.classes)
    return found
