"""A network of any JAX library, or of none: a function of a plugin that tells how to begin and how to compute it."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from pydantic import PrivateAttr, model_validator

from llrflow.base.errors import PluginError
from llrflow.base.validation import raise_at
from llrflow.components.calls import file_of, is_array, reported, shape_text, structure_of
from llrflow.components.plugins import function_of
from llrflow.components.registry import Component, register
from llrflow.models.network import AXIS

Arrays = dict[str, dict[str, Any]]
"""By module and name, as Haiku keeps them."""


@register("model", "python")
class Python(Component):
    """A network of Equinox, Flax NNX or plain JAX, made by a function of a plugin of the spec.

    function(classes, image_shape, **arguments) -> (init, apply), where init(key) -> (params, state) and
    apply(params, state, images, batch_statistics) -> (logits, state), for images [B,H,W,C] in [0,1], logits [B,K] and
    any pytrees: floating-point arrays of `params` are trained, and leaves that are no arrays stay as `init` makes them.
    """

    call: str
    """`PLUGIN:function`, PLUGIN as `plugins` lists it, a file without its folder and `.py`: `networks:small`."""

    arguments: dict[str, Any] = {}
    """Keyword arguments of the function, besides `classes` and `image_shape` [H,W,C]."""

    _function: Callable[..., Any] = PrivateAttr()

    @model_validator(mode="after")
    def _known(self) -> Python:
        try:
            self._function = function_of(self.call)
        except PluginError as error:
            raise_at(("call",), self.call, "call", f"{error.got}; {error.fix}")
        return self

    @property
    def plugin(self) -> str:
        """The name of the plugin that the function is of."""
        return self.call.partition(":")[0]

    def __call__(self, images: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K], inside a Haiku transform, which holds the arrays.

        Floating-point arrays of a state that a pass with `batch_statistics` leaves are averaged over the devices, so
        that these agree whatever the network does. Raises PluginError for what the function and its results do wrong.
        """
        arguments = json.dumps(self.arguments, sort_keys=True)
        made = self._run(lambda: _made(self._function, self._described, arguments, classes, images.shape[1:]))
        # Not lift_with_state, which would put a module's name before those of the network.
        variables, updater = hk.transparent_lift_with_state(lambda key: _begun(made, key))
        params, state = variables(hk.next_rng_key() if hk.running_init() else None)
        if hk.running_init():  # which gives what it begins with, whatever a pass comes to
            updater.ignore_update()
            return jnp.zeros((len(images), classes))
        trees = made.params.filled(params), made.state.filled(state)
        returned = self._run(lambda: made.apply(*trees, images, batch_statistics))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise self._wrong("apply", "is no pair", "return (logits, state)")
        logits, left = returned
        if not is_array(logits) or logits.shape != (len(images), classes):
            raise self._wrong("apply", f"has logits {shape_text(logits)}", f"return {[len(images), classes]}")
        if structure_of(left := _arrays_of(left, "/state")) != structure_of(state):
            got = f"leaves the state {structure_of(left)}, and it began as {structure_of(state)}"
            raise self._wrong("apply", got, "return the same arrays in the same places")
        updater.update(jax.tree.map(_averaged, left) if batch_statistics else left)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _run(self, call: Callable[[], Any]) -> Any:
        return reported(self._described, file_of(self._function), call)

    def _wrong(self, what: str, got: str, fix: str) -> PluginError:
        return PluginError(self._described, f"what {what} returns {got}", fix)

    @property
    def _described(self) -> str:
        return f"python ({self.call})"


class _Outline(NamedTuple):
    """A pytree without its arrays."""

    tree: Any
    leaves: list[Any]
    """Those that are no arrays; of an array its module and name."""

    def filled(self, arrays: Mapping[str, Mapping[str, Any]]) -> Any:
        """The tree with these arrays."""
        leaves = [arrays[leaf.module][leaf.name] if isinstance(leaf, _Place) else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)


class _Place(NamedTuple):
    """Where an array is kept."""

    module: str
    name: str


class _Made(NamedTuple):
    """What the function of a plugin made, and what that begins with."""

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., Any]
    params: _Outline
    state: _Outline


@functools.lru_cache(maxsize=8)
def _made(
    function: Callable[..., Any], described: str, arguments: str, classes: int, image_shape: tuple[int, ...]
) -> _Made:
    """A step passes through the network many times, and traces each of them."""
    with jax.ensure_compile_time_eval():  # arrays that it makes itself must outlive the trace that asks first
        pair = function(classes=classes, image_shape=image_shape, **json.loads(arguments))
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(callable, pair)):
        raise PluginError(described, f"returns a {type(pair).__name__}, no pair of functions", "return (init, apply)")
    found: list[Any] = []

    def begin(key: jax.Array) -> Any:
        begun = pair[0](key)
        if not isinstance(begun, tuple) or len(begun) != 2:
            raise PluginError(described, "has an init that returns no pair", "return (params, state)")
        found[:] = [_outline(begun[0], "", described), _outline(begun[1], "/state", described)]
        return _arrays_of(begun[0], ""), _arrays_of(begun[1], "/state")

    params, state = jax.eval_shape(begin, jax.random.key(0))
    _check_kinds(described, "params", params, jnp.floating)
    _check_kinds(described, "state", state, jnp.number, jnp.bool_)
    return _Made(*pair, *found)


def _begun(made: _Made, key: jax.Array) -> tuple[Arrays, Arrays]:
    params, state = made.init(key)
    return _arrays_of(params, ""), _arrays_of(state, "/state")


def _outline(tree: Any, suffix: str, described: str) -> _Outline:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_place(path, suffix) if is_array(leaf) else leaf for path, leaf in paths]
    (place, count), *_ = Counter(leaf for leaf in leaves if isinstance(leaf, _Place)).most_common(1) or [((), 0)]
    if count > 1:
        raise PluginError(described, f"has {count} arrays at {'/'.join(place)}", "give them names of their own")
    return _Outline(structure, leaves)


def _arrays_of(tree: Any, suffix: str) -> Arrays:
    """The arrays of a pytree by module and name: of `model.layers[0].weight`, `layers/0` and `weight`.

    The suffix keeps the modules of a state apart from those of parameters.
    """
    arrays: Arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_array(leaf):
            module, name = _place(path, suffix)
            arrays.setdefault(module, {})[name] = jnp.asarray(leaf)
    return arrays


def _place(path: Any, suffix: str) -> _Place:
    module, _, name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
    return _Place((module or "network") + suffix, name or "value")


def _check_kinds(described: str, what: str, arrays: Arrays, *kinds: Any) -> None:
    for module, held in arrays.items():
        for name, array in held.items():
            if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
                got = f"begins with {what} that cannot be {array.dtype}: {module}/{name}"
                raise PluginError(described, got, "keep floating-point numbers in `params`, other numbers in `state`")


def _averaged(array: jax.Array) -> jax.Array:
    return jax.lax.pmean(array, AXIS) if jnp.issubdtype(array.dtype, jnp.floating) else array
