"""The numbers of a component that a compiled step takes as inputs: find them, and put tracers in their place."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from llrflow.components.fields import Traced
from llrflow.components.registry import Component

C = TypeVar("C", bound=Component)
INPUT = "<input>"


def components(component: Component, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Component]]:
    """The component and every component below it, with their paths."""
    yield path, component
    for name in type(component).model_fields:
        value = getattr(component, name)
        if isinstance(value, Component):
            yield from components(value, (*path, name))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if isinstance(item, Component):
                    yield from components(item, (*path, name, key))


def numbers(component: Component, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float | Component, Traced]]:
    """Every traced number below a component: (dotted path, constant or schedule, its bounds)."""
    for here, part in components(component, path):
        for name, marker in _traced_fields(type(part)):
            value = getattr(part, name)
            if value is not None and not isinstance(value, str):
                yield ".".join((*here, name)), value, marker


@functools.cache
def _traced_fields(cls: type[Component]) -> list[tuple[str, Traced]]:
    """The fields of a component that are marked Traced; a class is asked for each component of a thousand trials."""
    fields = cls.model_fields.items()
    return [(name, marker) for name, field in fields for marker in field.metadata if isinstance(marker, Traced)]


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
