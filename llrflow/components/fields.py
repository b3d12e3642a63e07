"""Annotations of a component's fields: another component, or a number that the compiled step takes as an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticCustomError, core_schema

from llrflow.base.validation import invalid, listing, parse_number
from llrflow.components.registry import PLACE_FIELDS, Component, validate

CHOICE = "llrflow_choice"
"""Key that stands for a `$ref` to all components of a kind until the whole JSON Schema is put together."""


class Chosen:
    """Annotation for a field that holds a component: `Annotated[Any, Chosen("term")]`.

    Resolved when a value is validated, not when the class is built, so plugins may register later.
    """

    def __init__(self, kind: str, entry: type[Component] | None = None, default: str | None = None) -> None:
        self.kind, self.entry, self.default = kind, entry, default
        assert entry is None or set(entry.model_fields) == set(PLACE_FIELDS[kind])

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def check(raw: Any) -> Any:
            return (
                None
                if raw is None and NoneType in get_args(source)
                else validate(self.kind, raw, self.entry, self.default)
            )

        return core_schema.no_info_plain_validator_function(
            check, serialization=core_schema.plain_serializer_function_ser_schema(dump)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {CHOICE: self.definition}

    @property
    def definition(self) -> str:
        """Name of this choice in the JSON Schema's `$defs`."""
        return self.kind if self.entry is None else f"{self.kind}_in_{self.entry.__name__.lower()}"


@dataclass(frozen=True)
class Traced:
    """Annotation for a number that the compiled step takes as an input, and that may follow a schedule.

    Changing it never recompiles. In a spec it is a number, a fraction such as `8/255`, or a `schedule`
    component (`{type: linear_schedule, init_value: 0, end_value: 4, transition_steps: 2 epochs}`).
    Bounds apply to the constant, or to every value that the schedule takes.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    schedule: bool = True

    def check(self, number: float) -> str | None:
        """What is wrong with the number, or None."""
        for symbol, bound, fine in (
            ("> ", self.gt, lambda b: number > b),
            (">= ", self.ge, lambda b: number >= b),
            ("< ", self.lt, lambda b: number < b),
            ("<= ", self.le, lambda b: number <= b),
        ):
            if bound is not None and not fine(bound):
                return f"must be {symbol}{bound:g}"
        return None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        words = [w for option in get_args(source) if get_origin(option) is Literal for w in get_args(option)]
        optional = NoneType in get_args(source)

        def check(raw: Any) -> Any:
            if (raw is None and optional) or (isinstance(raw, str) and raw in words):
                return raw
            if isinstance(raw, (Mapping, Component)):
                if not self.schedule:
                    raise invalid("no_schedule", "cannot follow a schedule; give one number")
                return validate("schedule", raw)
            try:
                number = parse_number(raw)
            except PydanticCustomError as error:
                raise invalid(error.type, error.message() + (f", or {listing(words)}" if words else "")) from None
            problem = self.check(number)
            if problem:
                raise invalid("out_of_bounds", problem)
            return number

        return core_schema.no_info_plain_validator_function(
            check, serialization=core_schema.plain_serializer_function_ser_schema(dump)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        number: dict[str, Any] = {"type": ["number", "string"]}
        bounds = {"exclusiveMinimum": self.gt, "minimum": self.ge, "exclusiveMaximum": self.lt, "maximum": self.le}
        number |= {key: bound for key, bound in bounds.items() if bound is not None}
        return {"anyOf": [number, {CHOICE: "schedule"}]} if self.schedule else number


def dump(value: Any) -> Any:
    """Plain data of a component, or the value itself."""
    return value.model_dump() if isinstance(value, Component) else value
