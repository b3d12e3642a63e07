"""Calls of components that may be plugins: what they raise, or return in a wrong shape, becomes a PluginError."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.base.errors import LlrflowError, PluginError, line_of
from llrflow.components.registry import KINDS, Component, entries

OWN = ("llrflow", "optax")
"""Origins of components that are no plugin's."""


def guarded(component: Component, call: Callable[[], Any]) -> Any:
    """The result of a call of a plugin's component; what it raises becomes a PluginError with its file and line."""
    if not is_plugin(component):
        return call()
    return reported(described(component), file_of(type(component)), call)


def reported(what: str, file: str | None, call: Callable[[], Any]) -> Any:
    """The result of a call of a plugin's code in that file; what it raises becomes a PluginError with the line."""
    try:
        return call()
    except LlrflowError:
        raise
    except Exception as error:
        got = f"failed{raised_at(error, [file])}: {type(error).__name__}: {line_of(error)}"
        raise PluginError(what, got, "fix the plugin; --verbose shows the traceback") from error


def file_of(made: Any) -> str | None:
    """The file of the module that a class or a function is defined in."""
    return getattr(sys.modules.get(made.__module__), "__file__", None)


def raised_at(error: Exception, files: Collection[str | None]) -> str:
    """` at FILE:LINE` of the last place in some files that an error comes from, or that the traceback of another
    process names which it quotes; empty where there is none."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    frames += re.findall(r'File "(.+?)", line (\d+)', str(error))
    own = [(name, line) for name, line in frames if name in files]
    return f" at {own[-1][0]}:{own[-1][1]}" if own else ""


def plugin_files() -> set[str | None]:
    """The files of all components that plugins have registered."""
    known = [entry for kind in KINDS for entry in entries(kind).values() if entry.origin not in OWN]
    return {file_of(entry.cls) for entry in known}


def is_plugin(component: Component) -> bool:
    """Whether a plugin has registered a component."""
    return _origin(component) not in OWN


def shaped(component: Component, shape: tuple[int, ...], call: Callable[[], Any]) -> Any:
    """As `guarded`; PluginError too when the result is not an array of that shape."""
    made = guarded(component, call)
    if not is_array(made) or made.shape != shape:
        raise PluginError(described(component), f"returns {shape_text(made)}", f"return an array {list(shape)}")
    return made


@contextmanager
def placed(path: str) -> Iterator[None]:
    """Give a PluginError of a component its place in the spec, a dotted path, unless it has one."""
    try:
        yield
    except PluginError as error:
        if error.where.partition(".")[0] in ("objective", "model", "data", "evaluate"):
            raise
        raise PluginError(path, f"{error.where}: {error.got}", error.fix) from error


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX or NumPy, abstract ones included."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def shape_text(value: Any) -> str:
    """`float32[6,5]`, or the type of what is no array."""
    return f"{value.dtype}{list(value.shape)}" if is_array(value) else f"a {type(value).__name__}"


def structure_of(tree: Any) -> str:
    """Paths, dtypes and shapes of a tree's leaves, in words."""
    leaves = {
        jax.tree_util.keystr(path) or "it": f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return ", ".join(f"{path} {leaf}" for path, leaf in leaves.items()) or "nothing"


def described(component: Component) -> str:
    """`term elle (plugins/elle.py)`."""
    return f"{component.label()} ({_origin(component)})"


def _origin(component: Component) -> str:
    kind, name = component.registered_as or ("term", "")
    entry = entries(kind).get(name)
    return entry.origin if entry else "llrflow"
