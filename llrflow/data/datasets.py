"""Datasets that prepare themselves without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llrflow.data.writer import write_tfds
from llrflow.registry import Component, register


class Dataset(Component):
    """Base of a dataset that a `data:` block can name without anyone having prepared it."""

    def prepare(self, data_dir: Path) -> None:
        """Write the TFDS dataset of this name in array_record format under `data_dir`, unless it is there."""
        raise NotImplementedError


@register("dataset", "digits")
class Digits(Dataset):
    """UCI handwritten digits as they ship with scikit-learn: 1,797 grayscale images of 8 x 8 pixels in 10 classes.

    Their 17 grey levels 0..16 become round(level * 255 / 16). Every fifth image, counted from the first, is a test
    image (360); the other 1,437 are for training.
    """

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
    """Made-up images of CIFAR-10's shape, for timing and tests: 2,048 to train on, 512 to test, 10 classes.

    Each class is a fixed smooth pattern; every image mixes its class's pattern with noise. Deterministic.
    """

    def prepare(self, data_dir: Path) -> None:
        """Write `synthetic` under `data_dir`, unless it is there."""
        rng = np.random.Generator(np.random.Philox(0))
        patterns = np.kron(rng.random((10, 4, 4, 3)), np.ones((1, 8, 8, 1)))
        labels = np.arange(2560) % 10
        images = 0.6 * patterns[labels] + 0.4 * rng.random((2560, 32, 32, 3))
        images = np.rint(255 * images).astype(np.uint8)
        write_tfds(
            "synthetic",
            data_dir,
            {"train": (images[:2048], labels[:2048]), "test": (images[2048:], labels[2048:])},
            classes=10,
            description="Made-up images: a fixed pattern per class plus noise.",
            source={"format": "synthetic", "generator": "Philox(0)"},
        )
