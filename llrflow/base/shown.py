"""Configurations and values in a few words, for tables and lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def telling(values: Iterable[Any]) -> Callable[[Any], str]:
    """Names values by what differs among them: `terms.kl` beside `terms.gamma, terms.slope`, or `weight 4` beside
    `weight 1`; those that are no mappings, and mappings that nothing tells apart, as `short` does."""
    maps: list[Mapping[Any, Any]] = []
    for value in values:
        if isinstance(value, Mapping) and value not in maps:
            maps.append(value)

    def text(value: Any) -> str:
        parts = list(_own(value, maps)) if isinstance(value, Mapping) and len(maps) > 1 else []
        whole = ", ".join(parts)
        return (whole if len(whole) <= WIDE else f"{whole[: WIDE - 1]}…") or short(value)

    return text


WIDE = 60
"""Most characters of a value's name."""


def _own(value: Mapping[Any, Any], others: Sequence[Mapping[Any, Any]], path: str = "") -> Iterator[str]:
    """What of a mapping not all of the others have: the paths that some lack, and values that are not the same."""
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        held = [other[key] for other in others if key in other]
        if len(held) == len(others) and all(isinstance(other, Mapping) for other in held) and isinstance(item, Mapping):
            yield from _own(item, held, here)
        elif len(held) < len(others) or any(other != item for other in held):
            yield here if isinstance(item, Mapping) else f"{here.removesuffix('.type')} {short(item)}"


def named(parameters: Mapping[str, Any], tell: Mapping[str, Callable[[Any], str]] = {}) -> str:
    """Swept values with their names: `lambda 4.2, mu 3.15`; `tell` has a `telling` by parameter."""
    return ", ".join(f"{name} {tell.get(name, short)(value)}" for name, value in parameters.items())


def measured(metric: str, mean: float | None, spread: float | None = None) -> str:
    """A metric, accuracies in per cent; with the standard deviation of a mean. Empty where there is none."""
    share = metric.endswith("accuracy")
    if mean is None:
        return ""
    if spread is None:
        return f"{mean:.2%}" if share else f"{mean:.4g}"
    return f"{mean:.2%} ± {100 * spread:.2f}" if share else f"{mean:.4g} ± {spread:.2g}"


def trained_on_test(count: int | None, n: int) -> str | None:
    """What to tell where `count` of n test images are trained on; None where none are, or nobody knows."""
    if not count:
        return None
    return f"trained on test images: {count:,} of {n:,}, so accuracies on them say nothing of new images"
