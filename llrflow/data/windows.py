"""Which part of an image that is of any size becomes the square image to train or evaluate on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llrflow.base.errors import DataError
from llrflow.data.crops import TRIES, RandomResizedCrop
from llrflow.data.images import Window

CENTRE = 224 / 256
"""Side of the central square as a share of the shorter side: as if that were resized to 256 and 224 pixels cut out."""


def centre(height: int, width: int) -> tuple[float, float, float, float]:
    """The central square of evaluation, and of training without random_resized_crop."""
    side = min(height, width) * CENTRE
    return (height - side) / 2, (width - side) / 2, side, side


class OriginalCrop(NamedTuple):
    """A random_resized_crop that is applied to original images while they are decoded."""

    name: str
    """Under `data.augment`; like every augmentation's it keys the stream of random numbers."""
    crop: RandomResizedCrop

    def window(self, seed: int, step: int, example: int) -> Window:
        """The window of one example in one training step."""
        purpose = zlib.crc32(f"augment {self.name}".encode())
        # Counter-based, so that a window needs no other; raw bits are what NumPy promises for ever (NEP 19).
        bits = np.random.Philox(
            key=np.array([(seed << 32) | purpose, step], np.uint64), counter=np.array([0, 0, 0, example], np.uint64)
        ).random_raw(2 * TRIES + 2)
        draws = (bits >> np.uint64(11)) * 2.0**-53
        areas, ratios, places = draws[:TRIES], draws[TRIES : 2 * TRIES], draws[2 * TRIES :]

        def window(height: int, width: int) -> tuple[float, float, float, float]:
            found = self.crop.window_of(height, width, areas, ratios, places, np)
            top, left, tall, wide = map(float, found)
            return top, left, tall, wide

        return window


def original_crop(augment: Mapping[str, Any], varies: bool) -> OriginalCrop | None:
    """The augmentation that is applied to original images, which only those that vary in size have.

    Raises DataError where it is not the first one.
    """
    if not varies:
        return None
    for place, (name, augmentation) in enumerate(augment.items()):
        if getattr(augmentation, "cuts_originals", False):
            if place:
                got = f"({augmentation.label()}) comes after {next(iter(augment))}, but is applied while decoding"
                raise DataError(f"data.augment.{name}", got, "put it first")
            return OriginalCrop(name, augmentation)
    return None


def on_device(augment: Mapping[str, Any], varies: bool) -> dict[str, Any]:
    """The augmentations that are left for the device."""
    crop = original_crop(augment, varies)
    return {name: augmentation for name, augmentation in augment.items() if crop is None or name != crop.name}
