"""What a split looks like: its examples by class, and a picture of some of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llrflow.data.facts import describe
from llrflow.data.held_back import held_back
from llrflow.data.images import decode
from llrflow.data.reader import Records, count, open_dataset
from llrflow.data.schema import Data

_CHUNK = 200  # of encoded images, which may be large
_CELL, _TEXT, _GAP = 128, 14, 4  # pixels


@dataclass(frozen=True)
class Sample:
    """One split: how many examples of which class, and a few of them."""

    n: int
    image_shape: tuple[int | None, int | None, int]
    class_names: tuple[str, ...]
    histogram: list[int]
    """Examples of every class."""
    ids: list[int]
    """Rows of the examples that are shown, evenly spaced."""
    images: list[np.ndarray]
    """Their pixels, uint8 [H, W, C]."""
    labels: list[int]
    held_back: list[int] | None = None
    """Examples of every class that `validation` of the block holds back, were the split that of training."""

    def to_dict(self) -> dict[str, Any]:
        """All but the pixels, as plain data."""
        classes = dict(zip(self.class_names, self.histogram, strict=True))
        held = {} if self.held_back is None else {"held_back": dict(zip(self.class_names, self.held_back, strict=True))}
        shown = [{"id": i, "label": self.class_names[k]} for i, k in zip(self.ids, self.labels, strict=True)]
        return {"n": self.n, "image_shape": self.image_shape, "classes": classes, **held, "shown": shown}


def sample(data: Data, split: str, examples: int, seed: int = 0) -> Sample:
    """Count a split's classes and decode `examples` of its images, without the cache.

    `seed` is that of the spec whose `data.validation` is asked for. Raises DataError as loading.
    """
    dataset = open_dataset(data)
    n = count(data, dataset, split)
    held = _held_back(data.model_copy(update={"train": split}), seed)
    records, (histogram, back) = Records(dataset, split), np.zeros((2, dataset.classes), np.int64)
    for start in range(0, n, _CHUNK):
        _, labels = records.read(range(start, min(start + _CHUNK, n)))
        histogram += np.bincount(labels, minlength=dataset.classes)
        if held is not None:
            back += np.bincount(labels[held[start : start + _CHUNK]], minlength=dataset.classes)
    ids = np.unique(np.linspace(0, n - 1, min(examples, n)).astype(int)).tolist() if examples else []
    encoded, labels = records.read(ids) if ids else ([], np.zeros(0, int))
    try:
        images = [decode(image, dataset.image_shape[-1]) for image in encoded]
    except ValueError as error:
        raise records.damaged(error) from None
    classes, kept = [int(label) for label in labels], None if held is None else back.tolist()
    return Sample(n, dataset.image_shape, dataset.class_names, histogram.tolist(), ids, images, classes, kept)


def _held_back(data: Data, seed: int) -> np.ndarray | None:
    """Which examples of the block's training split are held back, bool [n]; None where none are to be."""
    if data.validation is None:
        return None
    facts = describe(data)
    return held_back(data, open_dataset(data).builder.info.splits, facts.train + facts.held, seed)


def augmented(found: Sample, augment: Callable[[np.ndarray, np.ndarray], Any]) -> list[np.ndarray]:
    """The sample's images after augment(images float [B, H, W, C] in [0, 1], ids [B]), as uint8."""
    ids = np.array(found.ids, np.int32)
    one_size = len({image.shape for image in found.images}) == 1
    batches = [slice(None)] if one_size else [slice(i, i + 1) for i in range(len(ids))]
    changed = [augment(np.stack(found.images[rows]).astype(np.float32) / 255, ids[rows]) for rows in batches]
    return [np.rint(255 * image).astype(np.uint8) for batch in changed for image in np.asarray(batch)]


def draw_grid(images: Sequence[np.ndarray], titles: Sequence[str]) -> bytes:
    """A PNG with the images side by side, each with its title below; small ones enlarged without smoothing."""
    from PIL import Image, ImageDraw

    columns = min(len(images), max(1, round(np.sqrt(len(images) * 1.6))))
    rows = -(-len(images) // columns)
    step = _CELL + _GAP
    canvas = Image.new("RGB", (columns * step + _GAP, rows * (step + _TEXT) + _GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (pixels, title) in enumerate(zip(images, titles, strict=True)):
        left, top = _GAP + i % columns * step, _GAP + i // columns * (step + _TEXT)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]).convert("RGB")
        scale = _CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
        canvas.paste(image.resize(size, smooth), (left, top))
        pen.text((left, top + _CELL), title.encode("ascii", "replace").decode()[:20], fill="black")
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()
