"""Components: every thing a spec chooses with `type:` is a frozen pydantic model that is its own schema."""

from __future__ import annotations

import difflib
import functools
import importlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    LiteralString,
    NoReturn,
    TypeVar,
    cast,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from llrflow.errors import PluginError, SpecError
from llrflow.signatures import check_methods

KINDS = (
    "term",
    "model",
    "attack",
    "augmentation",
    "mixing",
    "dataset",
    "schedule",
    "optimizer",
    "step",
    "start",
    "gradient",
    "domain",
    "scheduler",
)

# Imported on the first look-up only, so that `import llrflow` stays light.
BUILTIN_MODULES = (
    "llrflow.terms",
    "llrflow.models",
    "llrflow.ascent",
    "llrflow.gradients",
    "llrflow.attacks",
    "llrflow.data",
    "llrflow.optimizers",
    "llrflow.sweep.domains",
    "llrflow.sweep.schedulers",
)


PLACE_FIELDS = {
    "term": ("at", "weight", "allow_negative"),
    "mixing": ("p",),
    "optimizer": ("clip_norm", "decayed", "scale_for_batch", "base_batch"),
    "domain": ("path", "when"),
}
"""Fields that the place of a component adds to it (see `Chosen`); no component of the kind may define them."""


class Component(BaseModel):
    """A frozen, strict block of a spec. Registered subclasses are chosen by `type:` and call themselves.

    Plain `float` fields also accept fractions written as text (`8/255`). Mark a number with
    `Annotated[float, Traced()]` when the compiled step should take it as an input instead of a constant.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    registered_as: ClassVar[tuple[str, str] | None] = None
    """(kind, type name), set by `register`."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys_and_fractions(cls, raw: Any) -> Any:
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, Mapping):
            raise invalid("mapping", "needs a mapping of its fields")
        fields = dict(raw)
        for key, value in raw.items():
            field = cls.model_fields.get(key)
            if field is None:
                message = f"is not a field of {cls.label()}; {suggest(key, cls.model_fields)}"
                raise_at((key,), value, "unknown_key", message)
            if field.annotation is float and not field.metadata and isinstance(value, str):
                try:
                    fields[key] = parse_number(value)
                except PydanticCustomError as error:
                    raise_at((key,), value, error.type, error.message())
        return fields

    @model_serializer(mode="wrap")
    def _with_type(self, handler: Any) -> dict[str, Any]:
        fields = handler(self)
        return {"type": self.registered_as[1], **fields} if self.registered_as else fields

    @classmethod
    def label(cls) -> str:
        """How messages call this block: `term local_linearity`, or the class name in lower case."""
        return " ".join(cls.registered_as) if cls.registered_as else cls.__name__.lower()


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")]
"""A user's name for a term, perturbation, attack ...: part of dotted paths, metrics and file names."""

ComponentT = TypeVar("ComponentT", bound=type[Component])


@dataclass(frozen=True)
class Entry:
    """A registered component class and where it came from (`llrflow`, `optax`, or a plugin's file)."""

    cls: type[Component]
    origin: str


_entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
_origin = "llrflow"


def register(kind: str, name: str) -> Callable[[ComponentT], ComponentT]:
    """Class decorator that makes a Component available as `type: name` among the `kind` components.

    Raises PluginError when the kind is unknown or the name is taken by another class.
    """

    def decorate(cls: ComponentT) -> ComponentT:
        if kind not in _entries:
            raise PluginError(cls.__qualname__, f"unknown component kind {kind!r}", suggest(kind, KINDS))
        taken = _entries[kind].get(name)
        if taken is not None:
            raise PluginError(
                cls.__qualname__,
                f"the {kind} name {name!r} is already registered by {taken.origin}",
                "choose another name",
            )
        reserved = {"type", *PLACE_FIELDS.get(kind, ())} & set(cls.model_fields)
        if reserved:
            raise PluginError(
                cls.__qualname__, f"field {min(reserved)!r} is reserved for every {kind}", "rename the field"
            )
        check_methods(kind, cls)
        cls.registered_as = (kind, name)
        _entries[kind][name] = Entry(cls, _origin)
        return cls

    return decorate


def forget(origin: str) -> None:
    """Take back what an origin registered: its file has changed and is about to be imported anew."""
    for kind, known in _entries.items():
        _entries[kind] = {name: entry for name, entry in known.items() if entry.origin != origin}


def import_as(origin: str, load: Callable[[], Any]) -> Any:
    """Run `load` (an import) with every component it registers credited to `origin`; undo on failure."""
    global _origin
    before, previous = {kind: dict(entries) for kind, entries in _entries.items()}, _origin
    _origin = origin
    try:
        return load()
    except BaseException:
        _entries.update(before)
        raise
    finally:
        _origin = previous


@functools.cache
def load_builtins() -> None:
    """Import the modules that register llrflow's own components."""
    for module in BUILTIN_MODULES:
        importlib.import_module(module)


def entries(kind: str) -> Mapping[str, Entry]:
    """All components of a kind, by type name."""
    load_builtins()
    return _entries[kind]


def make(kind: str, config: str | Mapping[str, Any] | Component) -> Any:
    """Build one component from its configuration, e.g. `make("term", {"type": "gradient_norm", "p": 1})`.

    Raises SpecError naming the field, the value and the nearest valid name.
    """
    try:
        return validate(kind, config)
    except (ValidationError, PydanticCustomError) as error:
        _, got, fix = first_problem(error)
        raise SpecError(f"{kind} configuration", got, fix) from None


def validate(kind: str, raw: Any, entry: type[Component] | None = None, default: str | None = None) -> Component:
    """As `make`, for use inside pydantic validation.

    `entry` adds fields of the place the component stands in; `default` is the type where none is given.
    """
    known = entries(kind)
    if isinstance(raw, str):
        raw = {"type": raw}
    if isinstance(raw, Component) and raw.registered_as and raw.registered_as[0] == kind:
        if entry is None or isinstance(raw, entry):
            return raw
        raw = raw.model_dump()
    if not isinstance(raw, Mapping):
        raise invalid("mapping", f"needs a mapping with `type:` and the fields of one {kind}")
    name = raw.get("type", default)
    if name is None:
        raise invalid("no_type", f"has no `type`; one of {listing(known)}")
    if not isinstance(name, str) or name not in known:
        raise_at(("type",), name, "unknown_type", f"is not a known {kind}; {suggest(name, known)}")
    cls = known[name].cls
    cls = cls if entry is None else standing_in(entry, cls)
    return cls.model_validate({key: value for key, value in raw.items() if key != "type"})


@functools.cache
def standing_in(entry: type[Component], cls: type[Component]) -> type[Component]:
    """A subclass of a component that also carries its place's own fields (a term's `at` and `weight`)."""
    return types.new_class(
        cls.__name__, (entry, cls), exec_body=lambda body: body.update(__module__=cls.__module__, __doc__=cls.__doc__)
    )


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


def parse_number(raw: Any) -> float:
    """A float from a number or from text such as `8/255` (exact fraction, nothing is evaluated)."""
    if isinstance(raw, str):
        try:
            decimals = [Decimal(part.strip()) for part in raw.split("/", 1)]
            if any(abs(d.adjusted()) > 400 for d in decimals):  # as a Fraction it would fill the memory
                raise OverflowError
            above, *below = map(Fraction, decimals)
            raw = float(above / below[0] if below else above)
        except ZeroDivisionError:
            raise invalid("number", "divides by zero; write a number or a fraction such as 8/255") from None
        except (ArithmeticError, ValueError):
            raise invalid("number", "is not a number; write a number or a fraction such as 8/255") from None
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise invalid("number", "is not a number; write a number or a fraction such as 8/255")
    number = float(raw)
    if number != number or number in (float("inf"), float("-inf")):
        raise invalid("number", "is not finite; write a finite number")
    return number


def invalid(code: str, message: str) -> PydanticCustomError:
    """A validation problem of the value at hand; what follows `; ` in the message is the fix."""
    return PydanticCustomError(cast(LiteralString, code), cast(LiteralString, message))


def raise_at(path: tuple[str | int, ...], value: Any, code: str, message: str) -> NoReturn:
    """Raise a pydantic ValidationError for one problem below the value being validated."""
    error = invalid(code, message)
    raise ValidationError.from_exception_data("spec", [InitErrorDetails(type=error, loc=path, input=value)])


def first_problem(error: ValidationError | PydanticCustomError) -> tuple[tuple[str | int, ...], str, str]:
    """(path, what came at that path, what to do) of the first problem that pydantic found."""
    if isinstance(error, PydanticCustomError):
        message, _, fix = error.message().partition("; ")
        return (), message, fix
    problem = error.errors(include_url=False)[0]
    path = tuple(part for part in problem["loc"] if part != "[key]")
    message, _, fix = problem["msg"].replace("Input should", "should", 1).partition("; ")
    value = repr(problem["input"])
    if problem["type"] == "missing":
        message, fix = "is missing", "add it"
    elif not isinstance(problem["input"], (Mapping, BaseModel)):
        message = f"= {value if len(value) <= 60 else value[:57] + '...'} {message}"
    return path, f"{'.'.join(map(str, path))} {message}".strip(), fix


def suggest(name: Any, known: Any) -> str:
    """`did you mean ...?` with the nearest valid name, or the list of names."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from {listing(known)}"


def listing(names: Any) -> str:
    """Names in order, joined by commas."""
    return ", ".join(sorted(map(str, names)))
