"""What `torch.save` writes, read without PyTorch and without running anything: a zip file of a pickle and of storages.

The pickle may name what a state_dict needs (`torch.load(weights_only=True)` allows more), and NumPy's integers; each
tensor is a view of the file, which is read when the tensor is.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llrflow.base.arrays import NotArrays, budget_of
from llrflow.base.errors import line_of
from llrflow.base.files import open_regular
from llrflow.data.unpickle import NAMES, Array, UnsafePickle, unpickle

_STORAGES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_LARGEST_PICKLE = 2**26
"""Bytes of data.pkl; that of a network of a thousand arrays has about 2**17."""


class _Ordered(dict):
    """Stands for collections.OrderedDict; a state_dict's has attributes, which are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(Array):
    """Stands for a storage: numbers in a row, in a file of their own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class _Tensor(Array):
    """Stands for a tensor: what `torch._utils._rebuild_tensor_v2` makes of a part of a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        numbers = [offset, *size, *stride]
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise UnsafePickle("holds a tensor of something else than a storage")
        count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        held = storage.values
        if count > len(held) or (count and last >= len(held)):
            raise ValueError(f"a tensor of shape {list(size)} is larger than its storage")
        steps = [step * held.itemsize for step in stride]
        self.values = np.lib.stride_tricks.as_strided(held[offset:], size, steps, writeable=False)


def _parameter(data: Any, *_: Any) -> Any:
    """Stands for `torch._utils._rebuild_parameter`."""
    return data


_NAMES: dict[tuple[str, str], Any] = {
    **NAMES,
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", f"{name}Storage"): np.dtype(kind) for name, kind in _STORAGES.items()},
}


def read_torch(path: Path) -> Any:
    """What a file of `torch.save` holds: dicts, lists, numbers, text, and arrays that cannot be written to.

    Raises NotArrays where it is damaged, or asks for anything else, such as to run something.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise NotArrays("is no file of torch.save")
            if pickles[0].file_size > _LARGEST_PICKLE:
                raise NotArrays(f"its data.pkl has {pickles[0].file_size} bytes, more than {_LARGEST_PICKLE}")
            folder = pickles[0].filename.removesuffix("data.pkl")
            for info in archive.infolist():
                if info.filename == f"{folder}byteorder" and (info.file_size > 16 or archive.read(info) != b"little"):
                    raise NotArrays("was written on a machine of another byte order")
            whole = np.memmap(file, np.uint8, "r")
            if sum(info.file_size for info in archive.infolist()) > budget_of(len(whole)):
                raise NotArrays(f"its {len(whole)} bytes unpack to more than {budget_of(len(whole))}")
            storages: dict[str, _Storage] = {}

            def storage(pid: Any) -> _Storage:
                kind, dtype, key, _, count = pid
                if kind != "storage" or not isinstance(dtype, np.dtype) or type(count) is not int:
                    raise UnsafePickle("refers to something else than a storage")
                if key not in storages:
                    info = archive.getinfo(f"{folder}data/{key}")
                    storages[key] = _Storage(_numbers(whole, archive, info, dtype, count))
                found = storages[key]
                if found.values.dtype != dtype:
                    raise ValueError(f"storage {key} is of two types")
                return found

            return unpickle(archive.read(pickles[0]), _NAMES, storage)
    except NotArrays:
        raise
    except UnsafePickle as error:
        raise NotArrays(f"its pickle {error}: nothing was run") from None
    except Exception as error:  # readers of zip files raise whatever damaged bytes lead them to
        raise NotArrays(line_of(error)) from None


def _numbers(
    whole: np.ndarray, archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: np.dtype, count: int
) -> np.ndarray:
    """The numbers of a storage: a part of the file, unless it is compressed. Raises ValueError where it is damaged."""
    if count * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, and {count} {dtype} are announced")
    if count == 0:
        return np.zeros(0, dtype)
    if info.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(archive.read(info), dtype, count)
    name, extra = (int(n) for n in whole[info.header_offset + 26 : info.header_offset + 30].view("<u2"))
    begin = info.header_offset + 30 + name + extra
    content = whole[begin : begin + info.file_size]
    if zlib.crc32(content.data) != info.CRC or len(content) != info.file_size:
        raise ValueError(f"{info.filename} is damaged: its CRC-32 is not the one that the file has for it")
    return content[: count * dtype.itemsize].view(dtype)
