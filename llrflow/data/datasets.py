"""Datasets that prepare themselves without a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from llrflow.components.registry import Component, register
from llrflow.data.examples import Examples, of_chunks
from llrflow.data.writer import write_tfds

_CHUNK_PIXELS = 2**21


class Known(NamedTuple):
    """What is known of a dataset that is not prepared."""

    size: tuple[int, int] | None
    """Height and width of its images; None where they vary."""
    channels: int
    classes: int
    splits: Mapping[str, int]
    """Labelled examples by split."""
    configs: str = ""
    """How the names end of the TFDS configs that have these splits."""


class Dataset(Component):
    """Base of a dataset that a `data:` block can name without anyone having prepared it."""

    @property
    def config(self) -> str | None:
        """TFDS config that these options make; None for the defaults."""
        return None

    @property
    def known(self) -> Known | None:
        """What it holds, for who only wants to know; None where that shows when it is prepared."""
        return None

    def prepare(self, data_dir: Path) -> None:
        """Write the TFDS dataset of this name and config as array_record under `data_dir`, unless it is there."""
        raise NotImplementedError


@register("dataset", "digits")
class Digits(Dataset):
    """UCI handwritten digits as they ship with scikit-learn: 1,797 grayscale images of 8 x 8 pixels in 10 classes.

    Their 17 grey levels 0..16 become round(level * 255 / 16). Every fifth image, counted from the first, is a test
    image (360); the other 1,437 are for training.
    """

    @property
    def known(self) -> Known:
        """1,437 images to train on and 360 to test."""
        return Known((8, 8), 1, 10, {"train": 1437, "test": 360})

    def prepare(self, data_dir: Path) -> None:
        """Write `digits` under `data_dir`, unless it is there."""
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        images = np.rint(np.asarray(levels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = np.asarray(labels)
        test = np.arange(len(images)) % 5 == 0
        write_tfds(
            "digits",
            data_dir,
            {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])},
            classes=10,
            description="UCI optical recognition of handwritten digits (test part), from scikit-learn.",
            source={"format": "scikit-learn", "dataset": "load_digits", "test": "every fifth image"},
        )


@register("dataset", "synthetic")
class Synthetic(Dataset):
    """Made-up images for timing and tests, by default of CIFAR-10's shape: 2,048 to train on, 512 to test, 10 classes.

    Each class is a fixed coarse pattern (4 x 4 fields); every image is 0.6 times its class's pattern plus 0.4 times
    uniform noise, so that any network learns it. Deterministic; labels take turns.
    """

    height: int = Field(32, ge=1, le=4096)
    """Pixels from top to bottom."""

    width: int = Field(32, ge=1, le=4096)
    """Pixels from left to right."""

    channels: Literal[1, 3] = 3
    """1 for gray images, 3 for colours."""

    classes: int = Field(10, ge=2, le=10_000)
    """Number of classes."""

    train: int = Field(2048, ge=1)
    """Images to train on."""

    test: int = Field(512, ge=1)
    """Images to test on."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Another seed makes other patterns and other noise."""

    @property
    def config(self) -> str | None:
        """`64x64x3-10-2048-512-0`: shape, classes, images to train on and to test, seed."""
        if self == Synthetic.model_validate({}):
            return None
        numbers = (self.classes, self.train, self.test, self.seed)
        return f"{self.height}x{self.width}x{self.channels}-" + "-".join(map(str, numbers))

    @property
    def known(self) -> Known:
        """What its fields say."""
        return Known((self.height, self.width), self.channels, self.classes, {"train": self.train, "test": self.test})

    def prepare(self, data_dir: Path) -> None:
        """Write `synthetic` under `data_dir`, unless it is there; memory does not grow with its size."""
        splits = {"train": self._examples(0, self.train), "test": self._examples(self.train, self.test)}
        write_tfds(
            "synthetic",
            data_dir,
            splits,
            classes=self.classes,
            description="Made-up images: a fixed pattern per class plus noise.",
            source={"format": "synthetic", "generator": f"Philox({self.seed})"},
            config=self.config,
            image_shape=(self.height, self.width, self.channels),
        )

    def _examples(self, first: int, count: int) -> Examples:
        """Images number `first` and following of the endless row of them."""
        shape = (self.height, self.width, self.channels)
        labels = np.arange(first, first + count) % self.classes
        chunk = max(1, _CHUNK_PIXELS // int(np.prod(shape)))

        def chunks() -> Iterator[np.ndarray]:
            rng = np.random.Generator(np.random.Philox(self.seed))
            coarse = rng.random((self.classes, 4, 4, self.channels))
            patterns = coarse[:, np.arange(self.height) * 4 // self.height][
                :, :, np.arange(self.width) * 4 // self.width
            ]
            for start in range(0, first, chunk):  # what comes before is drawn and thrown away
                rng.random((min(chunk, first - start), *shape))
            for start in range(0, count, chunk):
                some = labels[start : start + chunk]
                noise = rng.random((len(some), *shape))
                yield np.rint(255 * (0.6 * patterns[some] + 0.4 * noise)).astype(np.uint8)

        return of_chunks((count, *shape), labels, chunks)
