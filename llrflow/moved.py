"""Names that plugins imported before there was `llrflow.plugin`; they go with version 0.3."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved(old: str, *homes: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that is no more: a DeprecationWarning, and the name from where it is now."""

    def found(name: str) -> Any:
        for home in ("llrflow.plugin", *homes):
            module = importlib.import_module(home)
            if name in vars(module):
                message = f"{old}.{name} has moved: write `from {home} import {name}`"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return found
