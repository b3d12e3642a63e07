"""Examples on their way into a dataset: pixels or encoded files with their labels, one after the other."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

_CHUNK = 1000

Image = np.ndarray | bytes
"""Pixels, uint8 [H, W, C], or the bytes of a PNG or JPEG file."""


FILES = "files"
"""Label of examples that are files instead of pixels."""


@dataclass(frozen=True)
class Examples:
    """One split, read example by example and as often as asked, so that memory holds no more than a few of them."""

    count: int
    """How many there are at most: fewer come when unreadable ones are left out."""

    size: int
    """Bytes that they take on disk, roughly and not less."""

    label: str
    """What the checksum of the content starts with: the shape of the images, or that they are files."""

    read: Callable[[], Iterable[tuple[Image, int]]]
    """Starts anew and yields (image, class) in order."""


Splits = Mapping[str, tuple[np.ndarray, np.ndarray]] | Mapping[str, Examples]
"""Splits by name: (images uint8 [N, H, W, C], labels int [N]), or what reads them."""

_OVERHEAD = 200  # bytes of an example beside its pixels: headers of record and PNG, the label
_RECORDS = 2**17  # bytes of an array_record file with next to nothing in it


def of_arrays(images: np.ndarray, labels: np.ndarray) -> Examples:
    """The examples in arrays: images uint8 [N, H, W, C], labels int [N]."""
    return of_chunks(images.shape, labels, lambda: (images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)))


def of_chunks(shape: tuple[int, ...], labels: np.ndarray, chunks: Callable[[], Iterable[np.ndarray]]) -> Examples:
    """Examples whose images [N, H, W, C] come in chunks [., H, W, C], the same at every call."""

    def read() -> Iterator[tuple[Image, int]]:
        rest = iter(labels.tolist())
        for chunk in chunks():
            yield from zip(chunk, rest, strict=False)

    size = int(np.prod(shape, dtype=object)) * 101 // 100 + _OVERHEAD * len(labels) + _RECORDS
    return Examples(len(labels), size, str(tuple(shape)), read)


def of_files(count: int, size: int, read: Callable[[], Iterable[tuple[bytes, int]]]) -> Examples:
    """Examples that are stored as the files that they come in; `size` is the sum of the files' sizes."""
    return Examples(count, size + _OVERHEAD * count + _RECORDS, FILES, read)


def as_examples(splits: Splits) -> dict[str, Examples]:
    """Splits in either form, as examples."""
    return {name: part if isinstance(part, Examples) else of_arrays(*part) for name, part in splits.items()}


class Checksum:
    """SHA-256 over the images and labels of one split, whatever they come from or go to."""

    def __init__(self, examples: Examples) -> None:
        self._digest = hashlib.sha256(examples.label.encode())
        self._labels: list[int] = []

    def add(self, image: Image, label: int) -> None:
        """Take in the next example."""
        if isinstance(image, bytes):  # files differ in length: without it two could trade bytes
            self._digest.update(len(image).to_bytes(8, "little"))
            self._digest.update(image)
        else:
            self._digest.update(np.ascontiguousarray(image).data)
        self._labels.append(label)

    def result(self) -> str:
        """The sum over all that was added, in hex."""
        digest = self._digest.copy()
        digest.update(np.array(self._labels, "<i8").data)
        return digest.hexdigest()


def content_sha256(splits: Splits) -> dict[str, str]:
    """The checksum of every split; reads them all."""
    sums = {}
    for name, examples in as_examples(splits).items():
        checksum = Checksum(examples)
        for image, label in examples.read():
            checksum.add(image, label)
        sums[name] = checksum.result()
    return sums


def encoded(image: Image) -> io.BytesIO:
    """An image as a file: a PNG of its pixels, or the file that it is. TFDS would need TensorFlow to encode it."""
    if isinstance(image, bytes):
        return io.BytesIO(image)
    from PIL import Image as pillow

    file = io.BytesIO()
    pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file
