"""Arrays in .npz files: what their headers announce is checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from llrflow.base.errors import line_of
from llrflow.base.files import open_regular

ALWAYS, RATIO = 2**28, 100
"""Bytes that a compressed file may always unpack to, and otherwise how many times its own size: real images take 2 to
50 times their compressed size, zeros a thousand."""


class NotArrays(ValueError):
    """No file of arrays that can be read: absent, damaged, hostile, or one of others; the message says what."""


class Announced(NamedTuple):
    """What a header says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def budget_of(size: int) -> int:
    """Bytes that a compressed file of some size may unpack to."""
    return max(ALWAYS, RATIO * size)


class Arrays:
    """The arrays of an open .npz file, each read when it is asked for. Made by `open_npz`."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        self._archive, self._infos = archive, {info.filename.removesuffix(".npy"): info for info in infos}
        if len(self._infos) < len(infos):
            raise NotArrays("two of its arrays have one name")
        if sum(info.file_size for info in infos) > budget_of(size):
            raise NotArrays(f"its {size} bytes unpack to more than {budget_of(size)}")

    @property
    def names(self) -> list[str]:
        """Of the arrays, in the file's order."""
        return list(self._infos)

    def announced(self, name: str) -> Announced:
        """What an array is to be, by its header. Raises NotArrays."""
        with _as_not_arrays(f"array {name}"):
            info = self._info(name)
            with self._archive.open(info) as file:
                found, start = _header(file)
            size = math.prod(found.shape) * found.dtype.itemsize
            if start + size != info.file_size:
                raise NotArrays(f"its header announces {size} bytes where there are {info.file_size - start}")
            return found

    def __getitem__(self, name: str) -> np.ndarray:
        """An array. Raises NotArrays where there is none, or none that is intact and of plain numbers or text."""
        self.announced(name)
        with _as_not_arrays(f"array {name}"), self._archive.open(self._info(name)) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._infos:
            raise NotArrays("there is none")
        return self._infos[name]


@contextmanager
def open_npz(path: Path) -> Iterator[Arrays]:
    """The arrays of an .npz file while the block runs. Whatever is wrong with it raises NotArrays."""
    with _as_not_arrays("no .npz file"):
        opened = open_regular(path)
    with opened as file:
        with _as_not_arrays("no intact .npz file"):
            found = Arrays(zipfile.ZipFile(file), file.seek(0, 2))
        yield found


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name. Whatever is wrong with it raises NotArrays."""
    with open_npz(path) as arrays:
        return {name: arrays[name] for name in arrays.names}


def _header(file: IO[bytes]) -> tuple[Announced, int]:
    """What the header of an array says, and where its content begins."""
    version = np.lib.format.read_magic(file)
    read: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise NotArrays(f"is of version {version} of NumPy's format")
    shape, _, dtype = read[version](file)
    if dtype.hasobject:
        raise NotArrays("holds Python objects")
    if any(n < 0 for n in shape):
        raise NotArrays(f"has the shape {shape}")
    return Announced(shape, dtype), file.tell()


@contextmanager
def _as_not_arrays(what: str) -> Iterator[None]:
    """Readers of zip files and of arrays raise whatever damaged bytes lead them to."""
    try:
        yield
    except MemoryError:
        raise NotArrays(f"{what}: too large") from None
    except Exception as error:
        raise NotArrays(f"{what}: {line_of(error)}") from None
