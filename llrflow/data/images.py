"""Encoded images: what their header says, and their pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from llrflow.errors import line_of

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class CorruptImage(ValueError):
    """A file that is no JPEG or PNG image, or a damaged one; the message says what is wrong."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    height: int
    width: int
    gray: bool
    """Whether it has neither colours nor transparency."""


def header_of(source: IO[bytes]) -> Header:
    """The header of a JPEG or PNG file, without decoding it. Raises CorruptImage."""
    image = _opened(source)
    return Header(image.height, image.width, image.mode in ("1", "L"))


def decode(content: bytes, channels: int) -> np.ndarray:
    """The pixels uint8 [H, W, C] of a JPEG or PNG file; gray, palette and CMYK images become what C asks for.

    Transparency is dropped where C has no place for it. Raises CorruptImage.
    """
    image = _opened(io.BytesIO(content))
    try:
        image.load()
        converted = image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
        return np.array(converted, np.uint8).reshape(image.height, image.width, channels)
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise CorruptImage(line_of(error)) from None


def _opened(source: IO[bytes]) -> Any:
    from PIL import Image

    try:
        image = Image.open(source, formats=("JPEG", "PNG"))
    except Exception as error:
        message = (
            "is neither a JPEG nor a PNG image" if isinstance(error, Image.UnidentifiedImageError) else line_of(error)
        )
        raise CorruptImage(message) from None
    if image.mode not in _EIGHT_BIT:
        raise CorruptImage(f"has pixels of more than 8 bits (mode {image.mode})")
    return image
