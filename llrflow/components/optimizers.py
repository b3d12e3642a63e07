"""Optimizers and schedules: optax's own factories, wrapped as components by reading their signatures."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import optax
from docstring_parser import google
from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic_core import core_schema

from llrflow.base.validation import invalid, raise_at
from llrflow.components.fields import Traced
from llrflow.components.parameters import weights_of
from llrflow.components.registry import Component, entries, import_as, register

OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad", "fromage",
    "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "optimistic_gradient_descent", "radam", "rmsprop",
    "rprop", "sgd", "sign_sgd", "sm3", "yogi",
)  # fmt: skip
SCHEDULES = (
    "constant_schedule", "cosine_decay_schedule", "cosine_onecycle_schedule", "exponential_decay",
    "linear_onecycle_schedule", "linear_schedule", "piecewise_constant_schedule", "polynomial_schedule",
    "warmup_constant_schedule", "warmup_cosine_decay_schedule", "warmup_exponential_decay_schedule",
)  # fmt: skip

NOT_DATA = {"mask", "weight_decay_mask", "trust_ratio_mask", "mu_dtype", "accumulator_dtype", "dtype_momentum"}
"""Parameters that plain data cannot express: callables and dtypes."""

MASKS = {"mask", "weight_decay_mask"}
"""Parameters that say which of a network's parameters optax decays."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?) *(%|epochs?|steps?)")


@dataclass(frozen=True)
class Duration:
    """Annotation for a number of training steps: an integer, `5%` of the training, or `2 epochs`.

    Kept as written until `resolve_duration` knows the number of steps in an epoch and in all.
    """

    as_key: bool = False
    """Whether it is the key of a mapping, which JSON turns into text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def check(raw: Any) -> int | str:
            if self.as_key and isinstance(raw, str) and raw.isdigit():
                raw = int(raw)
            if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
                return raw
            if isinstance(raw, str) and _DURATION.fullmatch(raw.strip()):
                return raw.strip()
            raise invalid("number", "is not a duration; write steps (200), `2 epochs` or `5%`")

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}


def _distinct(raw: Any) -> Any:
    """The mapping, unless two of its keys are one Duration, of which one would win without a word."""
    seen: dict[Any, Any] = {}
    for key in raw if isinstance(raw, Mapping) else ():
        found = _DURATION.fullmatch(f"{key} steps" if str(key).isdigit() else str(key).strip())
        amount = (float(found[1]), found[2][0]) if found else key
        if amount in seen:
            raise invalid("twice", f"has {seen[amount]!r} and {key!r}, which are one step; delete one of them")
        seen[amount] = key
    return raw


def has_duration_keys(annotation: Any) -> bool:
    """Whether a field's type is a mapping whose keys are Durations."""
    key = typing.get_args(annotation)
    return any(map(has_duration_keys, key)) or any(isinstance(m, Duration) and m.as_key for m in key)


def resolve_duration(value: int | str, steps_per_epoch: int, total_steps: int) -> int:
    """Steps of a Duration."""
    if isinstance(value, int):
        return value
    number, unit = typing.cast(re.Match[str], _DURATION.fullmatch(value)).groups()
    scale = {"%": total_steps / 100, "e": steps_per_epoch, "s": 1}[unit[0]]
    return round(float(number) * scale)


class OptaxComponent(Component):
    """A factory of optax with its own parameters as fields; `build` calls it.

    An optimizer without weight decay gets one: `weight_decay` times the parameters is added to the gradient, before
    momentum and whatever else the optimizer does with it, as in PyTorch's SGD.
    """

    model_config = ConfigDict(use_attribute_docstrings=False)  # made without source: looking for it takes 20 ms each

    def build(self) -> Any:
        """The optax object."""
        kind, name = typing.cast(tuple[str, str], self.registered_as)
        fields = entries(kind)[name].cls.model_fields  # without those of the place it stands in
        factory = getattr(optax, name)
        known = inspect.signature(factory).parameters.keys()
        mask = weights_of if getattr(self, "decayed", "all") == "weights" else None
        masks = {} if mask is None else dict.fromkeys(known & MASKS, mask)
        built = factory(**{field: getattr(self, field) for field in fields if field in known}, **masks)
        added = None if "weight_decay" in known else getattr(self, "weight_decay", None)
        return built if added is None else optax.chain(optax.add_decayed_weights(added, mask), built)

    @property
    def decays_all_alike(self) -> bool:
        """Whether it decays all parameters or none, and cannot leave some out."""
        known = inspect.signature(getattr(optax, type(self).__name__)).parameters.keys()
        return "weight_decay" in known and not known & MASKS


ADDED_DECAY = Field(
    default=None,
    exclude_if=lambda decay: decay is None,  # so that specs without it stay the specs that they were
    description="Adds this times the parameters to the gradient, before momentum (PyTorch's SGD); after `clip_norm`.",
)


def component_of(kind: str, name: str, factory: Callable[..., Any]) -> type[Component]:
    """A component class whose fields are those parameters of a factory that plain data can express."""
    fields: dict[str, Any] = {}
    text = inspect.getdoc(getattr(factory, "func", factory)) or ""
    described = {argument.arg_name: argument.description for argument in google.parse(text).params}
    for field, parameter in inspect.signature(factory).parameters.items():
        if field not in NOT_DATA:
            required = parameter.default is inspect.Parameter.empty
            info = Field(... if required else parameter.default, description=_plain(described.get(field)))
            fields[field] = (_field_type(kind, field, parameter), info)
    if kind == "optimizer" and not fields.keys() & {"weight_decay", "weight_decay_rate"}:
        fields["weight_decay"] = (Annotated[float | None, Traced(ge=0)], ADDED_DECAY)
    summary = text.split("\n\n")[0].replace("\n", " ")
    cls = create_model(name, __base__=OptaxComponent, __module__=__name__, __doc__=summary, **fields)
    return register(kind, name)(cls)


def _plain(text: str | None) -> str | None:
    """A description without Sphinx's markup, on one line."""
    return text and " ".join(re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`").split())


def _field_type(kind: str, name: str, parameter: inspect.Parameter) -> Any:
    number: Any = float | None if parameter.default is None else float
    if parameter.annotation is bool:
        return bool
    if kind == "optimizer":
        return (
            int if parameter.annotation is int else Annotated[number, Traced(ge=0 if name == "learning_rate" else None)]
        )
    if name == "boundaries_and_scales":
        return Annotated[dict[Annotated[Any, Duration(as_key=True)], float] | None, BeforeValidator(_distinct)]
    return Annotated[Any, Duration()] if parameter.annotation is int else number


def _register_optax() -> None:
    for kind, names in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        for name in names:
            component_of(kind, name, getattr(optax, name))


@register("schedule", "piecewise")
class Piecewise(Component):
    """One value or schedule after another: at step t that of the last piece which begins at t or before.

    Schedules inside count steps from the start of the training, not from that of their piece.
    """

    pieces: Annotated[
        dict[Annotated[Any, Duration(as_key=True)], Annotated[Any, Traced()]],
        Field(min_length=1),
        BeforeValidator(_distinct),
    ]
    """By the step at which each begins; the first at 0."""

    @model_validator(mode="after")
    def _from_the_start(self) -> Piecewise:
        if 0 not in self.pieces:
            raise_at(("pieces",), list(self.pieces), "start", "has no piece for the first steps; add one at 0")
        return self

    def build(self) -> Callable[[Any], Any]:
        """step -> value."""
        pieces = [
            (begin, piece.build() if isinstance(piece, Component) else lambda step, piece=piece: piece)  # type: ignore[attr-defined]
            for begin, piece in sorted(self.pieces.items())
        ]

        def value(step: Any) -> Any:
            found = pieces[0][1](step)
            for begin, piece in pieces[1:]:
                found = jnp.where(step >= begin, piece(step), found)
            return jnp.asarray(found, jnp.float32)

        return value


@register("schedule", "equal_average")
class EqualAverage(Component):
    """The decay n / (n + 1) at step `begin` + n, and 0 before.

    As `train.ema` it makes the moving average the plain mean of all parameters from `begin` on: stochastic weight
    averaging (Izmailov et al. 2018, arXiv:1803.05407).
    """

    begin: Annotated[Any, Duration()] = "75%"
    """First step whose parameters count."""

    def build(self) -> Callable[[Any], Any]:
        """step -> decay."""
        return lambda step: jnp.maximum(step - self.begin, 0) / (jnp.maximum(step - self.begin, 0) + 1)


import_as("optax", _register_optax)
