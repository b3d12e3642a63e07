"""Amounts of memory as a spec writes them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import PlainValidator

from llrflow.base.validation import invalid

_UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(raw: Any) -> int:
    """The bytes that `4 GiB`, `4GiB`, `500 MB` or a whole number stand for. Raises a validation error for all else."""
    if type(raw) is int and raw > 0:
        return raw
    amount = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", raw) if isinstance(raw, str) else None
    if amount and amount[2] in _UNITS and (found := int(float(amount[1]) * _UNITS[amount[2]])) > 0:
        return found
    raise invalid("memory", "is no amount of memory; write `2 GiB`, `500 MiB` or a number of bytes")


Bytes = Annotated[int, PlainValidator(parse_bytes, json_schema_input_type=int | str)]
"""A field that holds bytes and is written as an amount."""


def amount(size: float) -> str:
    """Bytes as people read them: `1.43 GiB`."""
    for unit in ("TiB", "GiB", "MiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.3g} {unit}"
    return f"{size:.0f} bytes"
