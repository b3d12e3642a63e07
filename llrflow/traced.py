"""The numbers of a component that a compiled step takes as inputs: find them, and put tracers in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from llrflow.registry import Component, Traced

C = TypeVar("C", bound=Component)
INPUT = "<input>"


def components(component: Component, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Component]]:
    """The component and every component below it, with their paths."""
    yield path, component
    for name in type(component).model_fields:
        value = getattr(component, name)
        below = value.items() if isinstance(value, Mapping) else ((None, value),)
        for key, item in below:
            if isinstance(item, Component):
                yield from components(item, (*path, name) if key is None else (*path, name, key))


def numbers(component: Component, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float | Component, Traced]]:
    """Every traced number below a component: (dotted path, constant or schedule, its bounds)."""
    for here, part in components(component, path):
        for name, field in type(part).model_fields.items():
            marker, value = next((m for m in field.metadata if isinstance(m, Traced)), None), getattr(part, name)
            if marker is not None and value is not None and not isinstance(value, str):
                yield ".".join((*here, name)), value, marker


def bind(component: C, values: Mapping[str, Any]) -> C:
    """A copy of the component with each number named in `values` (dotted paths) replaced, unvalidated."""
    update: dict[str, Any] = {}
    for name in type(component).model_fields:
        if name in values:
            update[name] = values[name]
            continue
        below, value = _under(values, name), getattr(component, name)
        if not below:
            continue
        if isinstance(value, Component):
            update[name] = bind(value, below)
        else:
            update[name] = {key: bind(item, _under(below, key)) for key, item in value.items()}
    return component.model_copy(update=update)


def static_key(component: Component) -> str:
    """JSON of everything but the traced numbers: components with equal keys share one compiled program."""
    blank = {path: INPUT for path, _, _ in numbers(component)}
    return json.dumps(bind(component, blank).model_dump(), sort_keys=True)


def _under(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {path[len(key) + 1 :]: v for path, v in values.items() if path.startswith(key + ".")}
