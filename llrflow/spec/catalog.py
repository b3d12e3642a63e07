"""What a spec may say, as data: the components with their fields, and the JSON Schema of the whole."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llrflow.components.fields import CHOICE, Chosen, Traced
from llrflow.components.optimizers import Duration
from llrflow.components.registry import KINDS, Component, entries, standing_in
from llrflow.spec.schema import Spec

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def catalog(kind: str) -> list[dict[str, Any]]:
    """The components of a kind: type, origin, summary and fields (name, type, default, required, summary)."""
    return [
        {
            "type": name,
            "origin": entry.origin,
            "summary": _summary(entry.cls.__doc__),
            "fields": [_field(field, info) for field, info in entry.cls.model_fields.items()],
        }
        for name, entry in sorted(entries(kind).items())
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a spec with every component that is registered, plugins included."""
    schema = Spec.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for choice in (*(Chosen(kind) for kind in KINDS), *_entry_choices(Spec)):
        options = [_component_schema(choice, name, definitions) for name in sorted(entries(choice.kind))]
        short = [o["properties"]["type"]["const"] for o in options if o["required"] == ["type"]]
        definitions[choice.definition] = {"anyOf": [*options, *([{"enum": short}] if short else [])]}
    text = {"type": "string", "description": "A spec file that this one changes."}
    schema["properties"]["extends"] = {"anyOf": [text, {"type": "array", "items": text}]}
    # A file that extends another may leave out anything.
    needed = {"if": {"not": {"required": ["extends"]}}, "then": {"required": schema.pop("required")}}
    return {"$schema": DRAFT, **_linked(schema), **needed, "title": "llrflow spec"}


def _linked(schema: Any) -> Any:
    if isinstance(schema, dict):
        if CHOICE in schema:
            return {**{k: v for k, v in schema.items() if k != CHOICE}, "$ref": f"#/$defs/{schema[CHOICE]}"}
        return {key: _linked(value) for key, value in schema.items()}
    return [_linked(item) for item in schema] if isinstance(schema, list) else schema


def _entry_choices(cls: type[Component]) -> Iterator[Chosen]:
    """The choices that add fields of their place, anywhere in the blocks below a component."""
    for info in cls.model_fields.values():
        for part in (info.annotation, *get_args(info.annotation), *info.metadata):
            for inner in (part, *get_args(part)):
                if isinstance(inner, Chosen) and inner.entry is not None:
                    yield inner
                elif isinstance(inner, type) and issubclass(inner, Component):
                    yield from _entry_choices(inner)
                for meta in getattr(inner, "__metadata__", ()):
                    if isinstance(meta, Chosen) and meta.entry is not None:
                        yield meta


def _component_schema(choice: Chosen, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    cls = entries(choice.kind)[name].cls
    cls = cls if choice.entry is None else standing_in(choice.entry, cls)
    schema = cls.model_json_schema(ref_template="#/$defs/{model}")
    definitions.update(schema.pop("$defs", {}))
    properties = {"type": {"const": name}, **schema.get("properties", {})}
    return {**schema, "title": name, "properties": properties, "required": ["type", *schema.get("required", ())]}


def _field(name: str, info: FieldInfo) -> dict[str, Any]:
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if isinstance(default, Component):
        default = default.model_dump()
    return {
        "name": name,
        "type": _type_text(info.annotation, info.metadata),
        "required": info.is_required(),
        "default": None if default is PydanticUndefined else default,
        "summary": _summary(info.description),
    }


def _type_text(annotation: Any, metadata: Any = ()) -> str:
    for mark in metadata:
        if isinstance(mark, Chosen):
            return mark.kind
        if isinstance(mark, Duration):
            return "duration"
        if isinstance(mark, Traced):
            return _type_text(annotation) + (" or schedule" if mark.schedule else "")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(argument) for argument in arguments)
    if hasattr(annotation, "__metadata__"):
        return _type_text(arguments[0], annotation.__metadata__)
    if origin is not None:
        inner = ", ".join(_type_text(argument) for argument in arguments if argument is not Ellipsis)
        return f"{origin.__name__} of {inner}"
    names = {float: "number", int: "integer", str: "text", bool: "true | false", types.NoneType: "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _summary(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())
