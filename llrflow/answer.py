"""What a term answers, and the one place where terms are called: their contract is enforced here."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llrflow.errors import LlrflowError, PluginError
from llrflow.probe import Probe
from llrflow.registry import Component, entries
from llrflow.traced import components


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
    for name, part, allowed in (
        ("its value", answer.value, (batch,)),
        *((f"the metric {name!r}", part, (batch, ())) for name, part in answer.metrics.items()),
    ):
        if jnp.shape(part) not in allowed or not jnp.issubdtype(jnp.result_type(part), jnp.floating):
            got = f"{name} is {jnp.result_type(part)}{list(jnp.shape(part))}"
            raise PluginError(described(term), got, f"return one number per example, float[{len(probe.x)}]")
    if is_stateful(term) and _structure(answer.state) != _structure(state):
        got = f"its next state is {_structure(answer.state)}, init_state() gave {_structure(state)}"
        raise PluginError(
            described(term), got, "return Answer(value, metrics, state) with a state of the same structure"
        )
    return answer


def first_state(term: Component) -> Any:
    """A stateful term's state before the first step, as arrays."""
    return jax.tree.map(jnp.asarray, term.init_state())  # type: ignore[attr-defined]


def guarded(component: Component, call: Callable[[], Any]) -> Any:
    """The result of a call of a plugin's component; what it raises becomes a PluginError with its file and line."""
    try:
        return call()
    except LlrflowError:
        raise
    except Exception as error:
        origin = _origin(component)
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin]
        if origin in ("llrflow", "optax"):
            raise
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        first = str(error).strip().split("\n")[0]
        got = f"failed{place}: {type(error).__name__}: {first}"
        raise PluginError(described(component), got, "fix the plugin; --verbose shows the traceback") from error


def lacking_classes(component: Component, classes: int, path: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """(dotted path, what is wrong) of the first term at or below a component that needs more classes."""
    for where, part in components(component, path):
        if (needed := getattr(part, "needs_classes", 2)) > classes:
            return ".".join(where), f"({part.label()}) needs {needed} classes, the model has {classes}"
    return None


def described(component: Component) -> str:
    """`term elle (plugins/elle.py)`."""
    return f"{component.label()} ({_origin(component)})"


def _origin(component: Component) -> str:
    kind, name = component.registered_as or ("term", "")
    entry = entries(kind).get(name)
    return entry.origin if entry else "llrflow"


def _structure(tree: Any) -> str:
    leaves = {
        jax.tree_util.keystr(path) or "state": f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return ", ".join(f"{path} {leaf}" for path, leaf in leaves.items()) or "nothing"
