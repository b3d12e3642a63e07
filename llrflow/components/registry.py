"""Components: every thing a spec chooses with `type:` is a frozen pydantic model that is its own schema."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from llrflow.base.errors import PluginError, SpecError
from llrflow.base.validation import first_problem, invalid, listing, parse_number, raise_at, suggest
from llrflow.components.signatures import check_methods

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
    "llrflow.method.terms",
    "llrflow.models",
    "llrflow.method.ascent",
    "llrflow.method.parameter_gradient",
    "llrflow.attacks",
    "llrflow.data",
    "llrflow.components.optimizers",
    "llrflow.sweep.space.domains",
    "llrflow.sweep.decisions.schedulers",
)


PLACE_FIELDS = {
    "term": ("at", "weight", "allow_negative"),
    "mixing": ("p",),
    "model": ("start",),
    "optimizer": ("clip_norm", "decayed", "scale_for_batch", "base_batch"),
    "domain": ("path", "when"),
}
"""Fields that the place of a component adds to it (see `Chosen`); no component of the kind may define them."""


def _takes_fractions(field: FieldInfo) -> bool:
    return field.annotation is float and not field.metadata


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
            if _takes_fractions(field) and isinstance(value, str):
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
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, field in cls.model_fields.items():
            if _takes_fractions(field) and name in properties:
                properties[name]["type"] = ["number", "string"]
        return schema

    @classmethod
    def label(cls) -> str:
        """How messages call this block: `term local_linearity`, or the class name in lower case."""
        return " ".join(cls.registered_as) if cls.registered_as else cls.__name__.lower()


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")]
"""A user's name for a term, perturbation, attack ...: part of dotted paths, metrics and file names."""

RESERVED = {
    "nominal": "the accuracy without an attack",
    "worst_case": "that under all attacks",
    "random": "the noise control",
    "union": "what several threats come to together",
    "all": "all attacks together",
}
"""Names that results use beside those of attacks and threats."""


def _free(name: str) -> str:
    if name in RESERVED:
        raise invalid("reserved", f"is the name of {RESERVED[name]}; choose another")
    return name


ResultName = Annotated[Name, AfterValidator(_free)]
"""A user's name for an attack or a threat, which results are given under."""

ComponentT = TypeVar("ComponentT", bound=type[Component])


@dataclass(frozen=True)
class Entry:
    """A registered component class and where it came from (`llrflow`, `optax`, or a plugin's file)."""

    cls: type[Component]
    origin: str


_entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
_origin = ""
"""What is being imported for a spec; empty otherwise."""


def register(kind: str, name: str) -> Callable[[ComponentT], ComponentT]:
    """Class decorator that makes a Component available as `type: name` among the `kind` components.

    Raises PluginError when the kind is unknown or the name is taken by another class.
    """

    def decorate(cls: ComponentT) -> ComponentT:
        if kind not in _entries:
            raise PluginError(cls.__qualname__, f"unknown component kind {kind!r}", suggest(kind, KINDS))
        taken, origin = _entries[kind].get(name), _origin or _origin_of(cls)
        again = taken is not None and not _origin and taken.origin == origin  # a cell or a module that is run anew
        if taken is not None and not (again and taken.cls.__qualname__ == cls.__qualname__):
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
        _entries[kind][name] = Entry(cls, origin)
        return cls

    return decorate


def _origin_of(cls: type) -> str:
    """Where a class comes from that no spec has asked for: llrflow, or the file (else the module) that it was
    imported from by hand."""
    if cls.__module__.partition(".")[0] == "llrflow":
        return "llrflow"
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return str(Path(file).resolve()) if file else cls.__module__


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
    unsourced = ConfigDict(use_attribute_docstrings=False)  # pydantic would look for its source in every frame, 50 ms
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "model_config": unsourced}
    return types.new_class(cls.__name__, (entry, cls), exec_body=lambda names: names.update(body))
