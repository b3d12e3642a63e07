"""Tables of fields, from JSON Schema and the pydantic models: type, default, bounds, description."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from llrflow.components.fields import Chosen
from llrflow.components.registry import KINDS, Component
from llrflow_docs.prose import escape, flow, table

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
SIZES = {"minItems": "at least {} of them", "minProperties": "at least {} of them", "maxItems": "at most {} of them"}
NAMES = {"number": "number", "integer": "integer", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}

Link = Callable[[str], str]
"""Markdown for a name below `$defs`: a kind of component, or a block of the spec."""


def fields_table(cls: type[Component], schema: dict[str, Any], link: Link, notes: dict[str, str] | None = None) -> str:
    """All fields of a component or block; `notes` describe those that their class leaves without description."""
    rows = []
    for name, info in cls.model_fields.items():
        node = schema["properties"][name]
        text = node.get("description") or (notes or {}).get(name, "")
        types, bounds = type_text(node, link), ", ".join(dict.fromkeys(bounds_of(node)))
        rows.append((f"`{name}`", types, default_text(info), bounds, escape(text)))
    return table(("field", "type", "default", "bounds", "description"), rows) if rows else "It has no fields."


def default_text(info: Any) -> str:
    """`required`, or the default as YAML."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Component) and value.registered_as is None:
        return "those of the block"
    if isinstance(value, dict):
        value = {key: item.model_dump() if isinstance(item, Component) else item for key, item in value.items()}
    return f"`{flow(value.model_dump() if isinstance(value, Component) else value)}`"


def type_text(node: dict[str, Any], link: Link) -> str:
    """What a schema accepts, in words."""
    if "$ref" in node:
        return link(node["$ref"].rpartition("/")[2])
    if "const" in node or "enum" in node:
        return " or ".join(f"`{flow(value)}`" for value in node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        if any("epochs" in option.get("pattern", "") for option in node["anyOf"]):
            return "[duration](/spec.md#values)"
        return " or ".join(dict.fromkeys(type_text(option, link) for option in node["anyOf"]))
    kinds = node.get("type")
    if kinds == ["number", "string"]:
        return "number"  # the text is a fraction: 8/255
    if isinstance(kinds, list):
        return " or ".join(NAMES[kind] for kind in kinds)
    if kinds == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        return f"list of {' and '.join(type_text(item, link) for item in items)}"
    if kinds == "object":
        values = node.get("additionalProperties")
        inner = f" to {type_text(values, link)}" if isinstance(values, dict) else ""
        patterns = node.get("patternProperties", {})
        return f"mapping of names{inner or ''.join(f' to {type_text(value, link)}' for value in patterns.values())}"
    return NAMES.get(kinds or "", "any value")


def bounds_of(node: dict[str, Any]) -> Iterator[str]:
    """The limits of the numbers and lists of a schema; those of what its values refer to stand with these."""
    for key, sign in BOUNDS.items():
        if key in node:
            yield f"{sign} {flow(node[key])}"
    for key, words in SIZES.items():
        if key in node:
            yield words.format(node[key])
    if "pattern" in node and "epochs" not in node["pattern"]:
        yield f"matches `{node['pattern']}`"
    inner = [*node.get("anyOf", ()), *node.get("prefixItems", ())]
    inner += [node[key] for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)]
    for part in inner:
        if not any("epochs" in option.get("pattern", "") for option in inner):  # a duration says it by its name
            yield from bounds_of(part)


def parts(annotation: Any, metadata: Any = ()) -> Iterator[type[Component] | Chosen]:
    """The blocks and choices of components in a field's annotation."""
    for part in (annotation, *metadata):
        if isinstance(part, Chosen) or (isinstance(part, type) and issubclass(part, Component)):
            yield part
    for argument in get_args(annotation):  # of Annotated, its metadata too
        yield from parts(argument)


def kind_of(definition: str) -> str | None:
    """The kind of component that a name below `$defs` stands for, `term` for `term_in_termentry`."""
    kind = re.sub(r"_in_\w+$", "", definition)
    return kind if kind in KINDS else None
