"""Images for people to look at: as they are, attacked, and the difference."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator, Sequence
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


def galleries(evaluated: Sequence[tuple[str, Evaluated]]) -> list[tuple[str, list[Shown]]]:
    """Images of each evaluation, by its name, where it kept any; evaluations of the same test images show the same
    ones, unless they have none in common."""
    most = 8 if len(evaluated) <= 2 else 4
    kept = [(one.record.ids_sha256, _ids(one)) for _, one in evaluated]
    found = []
    for name, one in evaluated:
        alike = [ids for split, ids in kept if split == one.record.ids_sha256 and len(ids)]
        common = functools.reduce(np.intersect1d, alike) if alike else _ids(one)
        found.append((name, list(gallery(one, most, common if len(common) else _ids(one)))))
    return [(name, shown) for name, shown in found if shown]


def _ids(evaluated: Evaluated) -> np.ndarray:
    return np.asarray(evaluated.examples.get("ids", ()), int)


def gallery(evaluated: Evaluated, most: int, among: np.ndarray) -> Iterator[Shown]:
    """At most so many images of an evaluation, evenly spread over those that it kept and whose ids are `among` some."""
    found, rows = evaluated.examples, np.flatnonzero(np.isin(_ids(evaluated), among))
    for i in rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]:
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
