"""Encoded images: what their header says, and their pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from llrflow.base.errors import line_of

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


Window = Callable[[int, int], tuple[float, float, float, float]]
"""(height, width) of an image in pixels -> (top, left, height, width) of a part of it."""


class CorruptImage(ValueError):
    """A file that is no JPEG or PNG image, or a damaged one; the message says what is wrong."""


def allowed_corrupt(share: float, n: int) -> int:
    """How many of n images may be corrupt: the whole number below n times the share, and not one less by rounding."""
    return int(share * n + 1e-9)


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    height: int
    width: int
    gray: bool
    """Whether it has neither colours nor transparency."""
    turned: bool = False
    """Whether its metadata asks viewers to turn or mirror it (EXIF orientation), which nothing here does."""


def header_of(source: IO[bytes]) -> Header:
    """The header of a JPEG or PNG file, without decoding it. Raises CorruptImage."""
    image = _opened(source)
    return Header(image.height, image.width, image.mode in ("1", "L"), _turned(image))


_ORIENTATION, _UPRIGHT = 0x0112, 1


def _turned(image: Any) -> bool:
    if not image.info.get("exif"):  # elsewhere Pillow would have to decode a PNG to look
        return False
    try:
        return image.getexif().get(_ORIENTATION, _UPRIGHT) in range(2, 9)
    except Exception:  # Pillow raises whatever it likes of metadata, which is no reason to refuse an image
        return False


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


def decode_into(content: bytes, out: np.ndarray) -> None:
    """Fill `out` uint8 [H, W, C] with an image of that very size. Raises CorruptImage."""
    if _jpeg_size(content, out.shape[-1]) == out.shape[:2] and _jpeg(content, out.shape[-1], buffer=out) is not None:
        return
    pixels = decode(content, out.shape[-1])
    if pixels.shape != out.shape:
        sizes = (f"{shape[0]} x {shape[1]}" for shape in (pixels.shape, out.shape))
        raise CorruptImage("is {}, not {}".format(*sizes))
    out[:] = pixels


def decode_window(content: bytes, out: np.ndarray, window: Window) -> None:
    """Fill `out` uint8 [h, w, C] with a window of an image of any size.

    It is cut at whole pixels and resized: bilinearly, or by area where it shrinks to half or less. A JPEG of which the
    window is at least twice too large is decoded at a half, a quarter or an eighth of its size. Raises CorruptImage.
    """
    import cv2

    height, width, channels = out.shape
    original, pixels = _jpeg_size(content, channels), None
    if original is None:
        pixels = decode(content, channels)
        original = (pixels.shape[0], pixels.shape[1])
    top, left, tall, wide = window(*original)
    if pixels is None:
        pixels = _jpeg(
            content,
            channels,
            min_height=math.ceil(original[0] * min(1, height / tall)),
            min_width=math.ceil(original[1] * min(1, width / wide)),
            min_factor=2,  # sizes between a half and the whole take libjpeg-turbo longer than the whole
        )
    if pixels is None:
        pixels = decode(content, channels)
    rows = _whole(top, tall, pixels.shape[0] / original[0], pixels.shape[0])
    columns = _whole(left, wide, pixels.shape[1] / original[1], pixels.shape[1])
    cut = pixels[rows, columns]
    if cut.shape != out.shape:
        halved = max(cut.shape[0] / height, cut.shape[1] / width) >= 2
        by = cv2.INTER_AREA if halved else cv2.INTER_LINEAR
        cut = cv2.resize(cut, (width, height), dst=out, interpolation=by)
    if not np.may_share_memory(cut, out):
        out[:] = cut.reshape(out.shape)


def _whole(start: float, length: float, scale: float, end: int) -> slice:
    """The whole pixels, one at least, of an image of `end` that come nearest to a stretch of the unscaled one."""
    first = min(round(start * scale), end - 1)
    return slice(first, max(first + 1, min(round((start + length) * scale), end)))


_JPEG = {1: ("Gray",), 3: ("Gray", "YCbCr")}
"""By channels: colour spaces of the JPEG files that simplejpeg decodes to the same pixels as Pillow."""


def _jpeg_size(content: bytes, channels: int) -> tuple[int, int] | None:
    """(H, W) of a JPEG that `_jpeg` can decode; None for any other file."""
    import simplejpeg

    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return (int(height), int(width)) if space in _JPEG.get(channels, ()) else None


def _jpeg(content: bytes, channels: int, **options: Any) -> np.ndarray | None:
    """The pixels of a JPEG, in less than half of Pillow's time; None where Pillow has to say what is wrong with it."""
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB", **options)
    except ValueError:
        return None


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
