"""Read pickles that hold nothing but dict, list, tuple, text, bytes, numbers and integer NumPy arrays; run nothing.

A pickle is a program, and the usual reader calls whatever function it names. CIFAR's "python version" comes as pickles
(protocol 2 of Python 2), so they are read here in three steps of distrust: only the opcodes that such files need, only
the names by which NumPy announces an array, and own classes in place of what those names stand for.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from llrflow.base.errors import line_of

_STRUCTURE = "PROTO FRAME STOP MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET"
_VALUES = (
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_COLLECTIONS = "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
_ARRAYS = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_OPCODES = frozenset(f"{_STRUCTURE} {_VALUES} {_COLLECTIONS} {_ARRAYS}".split())


RUNS = ", which could run any program"


class UnsafePickle(Exception):
    """A pickle that asks for more than plain data and arrays of whole numbers."""


class Dtype:
    """Stands for numpy.dtype: an integer type by its code, with the byte order that follows as state."""

    codes: ClassVar[tuple[str, ...]] = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if code not in self.codes:
            raise UnsafePickle(f"holds an array of type {str(code)[:20]!r}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise UnsafePickle(f"holds an array of byte order {str(order)[:20]!r}")
        self.order = order


class Array:
    """Stands for numpy.ndarray: keeps shape, type and bytes until the whole pickle is read."""

    values: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
            raise UnsafePickle("holds an array of objects")
        self.values = np.frombuffer(content, np.dtype(dtype.order + dtype.code)).reshape(
            shape, order="F" if fortran else "C"
        )


def _reconstruct(*_: Any) -> Array:
    """Stands for numpy's _reconstruct(ndarray, (0,), b"b"), which makes an array to be filled by its state."""
    return Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """Stands for numpy's _frombuffer, which makes an array in protocol 5."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content) if isinstance(content, bytearray) else content))
    return array


def _scalar(dtype: Any, content: Any) -> Array:
    """Stands for numpy's scalar: an array without dimensions."""
    return _frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype, (), "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise UnsafePickle(f"encodes text as {encoding!r}")
    return text.encode("latin1")


NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}
"""What stands for what a pickle of data and arrays names."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, names: Mapping[tuple[str, str], Any], outside: Any) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._names, self._outside = names, outside

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise UnsafePickle(f"asks for {module}.{name}"[:100] + RUNS)
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return self._outside(pid)


def unpickle(
    content: bytes,
    names: Mapping[tuple[str, str], Any] = NAMES,
    outside: Callable[[Any], Any] | None = None,
) -> Any:
    """The data in a pickle; text of Python 2 comes as bytes.

    `names` are all that it may ask for, by module and name; what they make that is no plain data is an `Array`, whose
    `values` come in its place. `outside` gives what the pickle refers to and does not hold. Raises UnsafePickle when it
    asks for more than data and arrays, ValueError when it is truncated or damaged.
    """
    opcodes = _OPCODES if outside is None else _OPCODES | {"BINPERSID"}
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in opcodes:
                raise UnsafePickle(f"uses the opcode {opcode.name}{RUNS}")
            # The memo is an array, as long as the greatest index that the file writes down.
            if (
                opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
                and isinstance(argument, int)
                and argument > len(content)
            ):
                raise ValueError(f"memo index {argument}")
        left = itertools.count(len(content), -1)  # without references to one thing many times a value takes a byte
        return _filled(_Unpickler(content, names, outside).load(), left)
    except UnsafePickle:
        raise
    except Exception as error:  # damaged pickles raise whatever the bytes happen to say
        raise ValueError(line_of(error)[:100]) from None


def _filled(value: Any, left: Iterator[int], depth: int = 0) -> Any:
    """The value with arrays in place of what stood for them; of as many values as are `left`."""
    if depth > 8:
        raise ValueError("nested too deeply")
    if next(left) < 0:
        raise ValueError("holds more than its bytes could say")
    if isinstance(value, Array):
        if value.values is None:
            raise ValueError("an array without content")
        return value.values if isinstance(value.values, np.ndarray) else _filled(value.values, left, depth + 1)
    if isinstance(value, dict):
        return {key: _filled(item, left, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, left, depth + 1) for item in value)
    if not isinstance(value, (bytes, str, int, float, bool, type(None))):
        raise UnsafePickle(f"holds a {type(value).__name__}")
    return value
