"""Small JSON files that are believed only as they were written, under the name that they were written under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""The last key of a sealed file: SHA-256 of its name and of all that it holds besides."""


def digest_of(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sealed(data: Mapping[str, Any], name: str) -> bytes:
    """The text of a JSON file of a name, sealed."""
    plain = json.loads(json.dumps(data))  # keys as they will be read
    return (json.dumps({**plain, SEAL: digest_of([name, plain])}, indent=2, ensure_ascii=False) + "\n").encode()


def unsealed(content: bytes, name: str) -> Any:
    """What the JSON file of a name holds, without its seal; one that has none is an earlier version's.

    Raises ValueError where it is no JSON, or no longer what was sealed.
    """
    try:
        data = json.loads(content)
        if isinstance(data, dict) and SEAL in data and data.pop(SEAL) != digest_of([name, data]):
            raise ValueError("it is not what was written there: it has changed, or is another file")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data
