"""Images for people to look at: as they are, attacked, and the difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llrflow.base.norms import ORDERS
from llrflow.report.read import Evaluated

SIDE = 96
"""Longest side in pixels of an image on a page: larger ones are scaled down."""


@dataclass(frozen=True)
class Shown:
    """One image of a gallery, with its pictures as data URIs."""

    id: int
    label: int
    attack: str
    changed: bool
    clean: str
    adversarial: str
    difference: str
    clean_says: str
    """Label and confidence of the network."""
    adversarial_says: str
    distance: str


def gallery(evaluated: Evaluated, most: int) -> Iterator[Shown]:
    """At most so many images of an evaluation, evenly spread over those that it kept."""
    found = evaluated.examples
    kept = len(found.get("ids", ()))
    for i in map(int, np.linspace(0, kept - 1, min(most, kept))):
        image, delta = found["images"][i], found["delta"][i]
        threat = evaluated.record.threat_of(str(found["attacks"][i]))
        size = np.linalg.norm(delta.ravel(), ORDERS[threat["norm"]])
        yield Shown(
            id=int(found["ids"][i]),
            label=int(found["labels"][i]),
            attack=str(found["attacks"][i]),
            changed=bool(found["changed"][i]),
            clean=data_uri(image),
            adversarial=data_uri(image + delta),
            difference=data_uri(0.5 + 0.5 * delta / max(float(np.abs(delta).max()), 1e-12)),
            clean_says=_says(found["clean"][i]),
            adversarial_says=_says(found["attacked"][i]),
            distance=f"{threat['norm']} {size:.4g}",
        )


def _says(probabilities: np.ndarray) -> str:
    label = int(np.argmax(probabilities))
    return f"{label} ({probabilities[label]:.0%})"


def png(image: np.ndarray) -> bytes:
    """An image [H,W,C] in [0, 1], of 1 or 3 channels (of others the first), as PNG of at most SIDE pixels a side."""
    from PIL import Image

    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    made: Any = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    made.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    made.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: np.ndarray) -> str:
    """The PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
