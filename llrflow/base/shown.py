"""Configurations and values in a few words, for tables and lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def description(config: Mapping[str, Any]) -> str:
    """A component's configuration in a few words: its type, and fields that are numbers or choices."""
    fields = {k: v for k, v in config.items() if k != "type" and isinstance(v, str | int | float) and v is not False}
    nested = {k: v["type"] for k, v in config.items() if isinstance(v, Mapping) and "type" in v}
    listed = ", ".join(f"{name} {value}" for name, value in {**fields, **nested}.items())
    return f"{config.get('type', '')} ({listed})" if listed else str(config.get("type", ""))


def short(value: Any) -> str:
    """A swept value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return description(value)
    return str(value)


def named(parameters: Mapping[str, Any]) -> str:
    """Swept values with their names: `lambda 4.2, mu 3.15`."""
    return ", ".join(f"{name} {short(value)}" for name, value in parameters.items())


def trained_on_test(count: int | None, n: int) -> str | None:
    """What to tell where `count` of n test images are trained on; None where none are, or nobody knows."""
    if not count:
        return None
    return f"trained on test images: {count:,} of {n:,}, so accuracies on them say nothing of new images"
