"""Haiku parameters as DeepMind published them: `np.save` of (parameters, state), dicts by module and name, pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.arrays import NotArrays
from llrflow.base.errors import line_of
from llrflow.base.files import open_regular, read_regular
from llrflow.data.unpickle import NAMES, Array, Dtype, UnsafePickle, unpickle

_LARGEST = 2**33
"""Bytes; those of WRN-70-16 have 2**30."""


class _Any(Dtype):
    codes = (*Dtype.codes, "f2", "f4", "f8", "b1", "O8")


class _Objects(Array):
    """An array, of dicts as well."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state[2], Dtype) and state[2].code == "O8":
            self.values = list(state[4])
        else:
            super().__setstate__(state)


def _reconstruct(*_: Any) -> _Objects:
    return _Objects()


def _mapping(data: Any) -> Any:
    """Stands for the mappings that Haiku had."""
    return data


_HAIKU = {("haiku._src.data_structures", name): _mapping for name in ("FlatMapping", "frozendict", "to_haiku_dict")}
_RECONSTRUCT = {(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")}
_NAMES = {**NAMES, **_HAIKU, **_RECONSTRUCT, ("numpy", "dtype"): _Any}


def read_haiku(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by `MODULE/NAME`, without the `~` that Haiku puts between a module's name and its parts'.

    Raises NotArrays where it holds anything else, or two arrays of one name.
    """
    try:
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file)
            start = file.tell()
        if not dtype.hasobject:
            raise NotArrays("is a single array")
        held = unpickle(read_regular(path, _LARGEST)[start:], _NAMES)
        arrays: dict[str, np.ndarray] = {}
        for name, array in _flat(held, ()):
            if name in arrays:
                raise NotArrays(f"two of its arrays have the name {name}")
            arrays[name] = array
        return arrays
    except NotArrays:
        raise
    except UnsafePickle as error:
        raise NotArrays(f"its pickle {error}: nothing was run") from None
    except Exception as error:  # of whatever bytes there are
        raise NotArrays(line_of(error)) from None


def _flat(held: Any, path: tuple[str, ...]) -> Any:
    if isinstance(held, np.ndarray):
        yield "/".join(part for name in path for part in name.split("/") if part != "~"), held
    elif isinstance(held, dict):
        for name, value in held.items():
            yield from _flat(value, (*path, str(name)))
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from _flat(value, path)
