"""The safetensors format: 8 bytes with the length of a JSON header, the header, and the arrays one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llrflow.base.arrays import NotArrays
from llrflow.base.errors import line_of
from llrflow.base.files import open_regular
from llrflow.base.validation import listing

_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(kind): code for code, kind in _TYPES.items()}
_LARGEST_HEADER = 10**8
"""Bytes, as the format has it."""


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, views of it that cannot be written to. Raises NotArrays.

    As the format has it, arrays fill the file: what lies between them, or in two of them, is refused.
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise NotArrays(f"its header has {length} bytes")
            header = json.loads(file.read(length))
            empty = file.seek(0, 2) <= 8 + length  # which cannot be mapped
            whole = np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, "r", 8 + length)
        header.pop("__metadata__", None)
        arrays = {name: _array(whole, name, **entry) for name, entry in header.items()}
        at = 0
        for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
            if begin != at:
                raise NotArrays(f"its arrays leave a gap or overlap at byte {begin}")
            at = end
        if at != len(whole):
            raise NotArrays(f"its arrays have {at} of its {len(whole)} bytes")
        return arrays
    except NotArrays:
        raise
    except Exception as error:  # of whatever the header says
        raise NotArrays(line_of(error)) from None


def _array(whole: np.ndarray, name: str, dtype: Any, shape: list[int], data_offsets: tuple[int, int]) -> np.ndarray:
    if dtype not in _TYPES:
        raise NotArrays(f"{name} is of type {dtype!r}, and what is read is {listing(_TYPES)}")
    kind, (begin, end) = np.dtype(_TYPES[dtype]), data_offsets
    if not all(type(n) is int and n >= 0 for n in (begin, *shape)):
        raise NotArrays(f"holds an array of shape {shape} at byte {begin}")
    if end - begin != math.prod(shape) * kind.itemsize:
        raise NotArrays(f"{name} has {end - begin} bytes, and its shape is {shape} of {dtype}")
    return whole[begin:end].view(kind).reshape(shape)


def safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of a file of arrays."""
    header, at = {"__metadata__": dict(metadata)}, 0
    for name, array in arrays.items():
        entry = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        header[name], at = entry, at + array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays.values())])
