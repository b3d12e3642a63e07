"""The reference of the spec: every block with its fields, from the pydantic models and the JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from llrflow.components.fields import Chosen
from llrflow.components.registry import Component
from llrflow.spec.catalog import json_schema
from llrflow.spec.schema import Spec
from llrflow_docs.fields import fields_table, kind_of, parts
from llrflow_docs.prose import markdown

TITLE = "Reference of the spec"
HEAD = f"""# {TITLE}

Every block and field, made from the code; [the spec](../spec.md) explains how to write one. A path such as
`objective.terms.NAME` is what `--set` takes, with a name of your own for NAME. Numbers may be fractions (`8/255`).
`llrflow schema` prints the same as JSON Schema, for editors."""


def spec_page() -> dict[str, str]:
    """The page, by path below the reference."""
    schema = json_schema()
    sections, anchors = [], {}
    for path, cls, kind in _walk(Spec, ""):
        definition = schema if cls is Spec else _definition(cls, kind, schema["$defs"])
        anchors.setdefault(cls.__name__, path)
        sections.append((path, cls, kind, definition))

    def link(name: str) -> str:
        if kind := kind_of(name):
            return f"[{kind}](components/{kind}.md)"
        return f"[block](#{_slug(anchors[name])})"

    texts = [HEAD]
    for path, cls, kind, definition in sections:
        title = f"`{path}`" if path else "The whole"
        listed = f"And the fields of its type: [{kind} components](components/{kind}.md)." if kind else ""
        text = "" if cls.__doc__ == Component.__doc__ else markdown(cls.__doc__)
        texts += [f"## {title}", text, fields_table(cls, definition, link, _notes(cls)), listed]
    return {"spec.md": "\n\n".join(texts) + "\n"}


def paths() -> list[str]:
    """The path of every block, `` for the whole."""
    return [path for path, _, _ in _walk(Spec, "")]


def _walk(cls: type[Component], path: str) -> Iterator[tuple[str, type[Component], str | None]]:
    """(path, class, kind of the component whose place it is) of a block and all below it."""
    yield path, cls, None
    for name, info in cls.model_fields.items():
        below = f"{path}.{name}".removeprefix(".")
        below += ".NAME" if "dict[" in str(info.annotation) else ""
        for part in parts(info.annotation, info.metadata):
            if isinstance(part, Chosen):
                if part.entry is not None:
                    yield below, part.entry, part.kind
                    yield from islice(_walk(part.entry, below), 1, None)
            else:
                yield from _walk(part, below)


def _notes(cls: type[Component]) -> dict[str, str]:
    """What the blocks below say of themselves, for fields without a description of their own."""
    docs = {name: [part.__doc__ for part in parts(info.annotation)] for name, info in cls.model_fields.items()}
    return {name: " ".join((found[0] or "").split("\n\n")[0].split()) for name, found in docs.items() if found}


def _definition(cls: type[Component], kind: str | None, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a block; of a component's place, that of any component there."""
    if kind is None:
        return definitions[cls.__name__]
    return definitions[f"{kind}_in_{cls.__name__.lower()}"]["anyOf"][0]


def _slug(path: str) -> str:
    """The anchor that MyST gives to the heading of a path."""
    return path.replace(".", "").lower() if path else "the-whole"
