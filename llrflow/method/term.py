"""What a term answers, and the one place where terms are called: their contract is enforced here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llrflow.base.errors import PluginError
from llrflow.components.calls import described, guarded, is_array, shape_text, structure_of
from llrflow.components.registry import Component
from llrflow.components.traced import components
from llrflow.method.probe import Probe


class Answer(NamedTuple):
    """A term's value with what else it has to say; a plain array is an Answer with nothing else."""

    value: Any
    """[B], one number per example."""
    metrics: Mapping[str, Any] = MappingProxyType({})
    """Further quantities, each [B] or a scalar; their means are logged as `<name of the term>.<name>`."""
    state: Any = None
    """The term's next running state: arrays shaped like what `init_state()` gave."""


def is_stateful(term: Component) -> bool:
    """Whether a term keeps a running state: `init_state()` makes it, `term(probe, delta, state)` reads it."""
    return hasattr(term, "init_state")


def ask(term: Component, probe: Probe, delta: jax.Array | None, state: Any = None) -> Answer:
    """The answer of a term, its shapes checked; a stateful term is given its state (its first one if None).

    Raises PluginError when the answer has another shape than [B], when the next state differs in structure, or
    when a plugin's term itself raises (with its file and line).
    """
    arguments: tuple[Any, ...] = (probe, delta)
    if is_stateful(term):
        state = first_state(term) if state is None else state
        arguments = (*arguments, state)
    answer = guarded(term, lambda: term(*arguments))  # type: ignore[operator]
    if not isinstance(answer, Answer):
        answer = Answer(answer)
    answer = answer._replace(metrics=dict(answer.metrics))
    batch = (len(probe.x),)
    for name, part, shapes in (
        ("its value", answer.value, (batch,)),
        *((f"the metric {name!r}", part, (batch, ())) for name, part in answer.metrics.items()),
    ):
        if not is_array(part) or part.shape not in shapes or not jnp.issubdtype(part.dtype, jnp.floating):
            got = f"{name} is {shape_text(part)}"
            raise PluginError(described(term), got, f"return one number per example, float[{len(probe.x)}]")
    if is_stateful(term) and structure_of(answer.state) != structure_of(state):
        got = f"its next state is {structure_of(answer.state)}, init_state() gave {structure_of(state)}"
        raise PluginError(
            described(term), got, "return Answer(value, metrics, state) with a state of the same structure"
        )
    return answer


def first_state(term: Component) -> Any:
    """A stateful term's state before the first step, as arrays."""
    return guarded(term, lambda: jax.tree.map(jnp.asarray, term.init_state()))  # type: ignore[attr-defined]


def lacking_classes(component: Component, classes: int, path: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """(dotted path, what is wrong) of the first term at or below a component that needs more classes."""
    for where, part in components(component, path):
        if (needed := getattr(part, "needs_classes", 2)) > classes:
            return ".".join(where), f"({part.label()}) needs {needed} classes, the model has {classes}"
    return None
