"""A JAX function that is not llrflow's, as attacks see it: its arrays are arguments of what is compiled, never part of
it, so that a function whose weights have changed is asked anew, and one that differs in weights alone compiles nothing.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from llrflow.attacks.network import Examples, Network, looked_at, one_device
from llrflow.base.errors import SpecError

ALIKE = 1e-3
"""How far the logits of an image may differ with its batch-mates, as a share of the largest: rounding stays below."""


class Foreign:
    """A function of images, or of images and keys [B], with its arrays apart: (arrays, images, *keys) -> logits.

    Two are equal where they run the same code on arrays of the same shapes.
    """

    def __init__(self, call: Callable[..., Any], closed: jex.core.ClosedJaxpr, owner: Any) -> None:
        """`closed` is `call` as traced; `owner` the function that was passed."""
        self._call, self._held = call, (owner, [*_inner_constants(closed.jaxpr)])
        inner = tuple(map(id, self._held[1]))  # what a jitted function has closed over is part of its code to JAX
        program = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))  # functions of a trace's own, new in each
        self._key = (_identity(owner), program, inner)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __call__(self, arrays: tuple[Any, ...], *inputs: Any) -> jax.Array:
        """The logits [B,K], of whatever batch."""
        closed, _ = _traced(self._call, inputs)
        assert [c.shape for c in closed.consts] == [a.shape for a in arrays], "its arrays depend on the batch's size"
        (logits,) = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(closed.jaxpr, list(arrays)))(*inputs)
        return logits


def foreign(name: str, logits_fn: Callable[..., jax.Array], x: np.ndarray, size: int) -> Any:
    """(network, its arrays, number of classes) of a function that attacks batches of `size` images x [B,H,W,C].

    `name` is what messages call it. Raises SpecError where it is no function of images [B,H,W,C] to float logits [B,K].
    """

    def refuse(got: str, fix: str) -> NoReturn:
        raise SpecError(name, got, fix)

    if not callable(logits_fn):
        refuse(f"is {type(logits_fn).__name__}", "pass a function of images [B,H,W,C] that returns logits [B,K]")
    stochastic = is_stochastic(logits_fn)
    call = logits_fn if not stochastic else _one_by_one(logits_fn)
    images = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    inputs = (images, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))) if stochastic else (images,)
    try:
        closed, shapes = _traced(call, inputs)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        first = str(error).strip().splitlines()[0]
        refuse(f"leaves JAX ({type(error).__name__}: {first})", "use jax.numpy throughout, or jax.pure_callback")
    if not isinstance(shapes, jax.ShapeDtypeStruct):
        refuse(f"returns a {type(shapes).__name__}", "return the logits alone, one array [B,K]")
    if len(shapes.shape) != 2 or shapes.shape[0] != size:
        refuse(f"returns {shapes.shape}", f"return [B,K], here [{size}, classes]")
    if not jnp.issubdtype(shapes.dtype, jnp.floating):
        refuse(f"returns {shapes.dtype}", "return float logits, not classes")
    network = Network(Foreign(call, closed, logits_fn), stochastic)
    arrays = tuple(map(jnp.asarray, closed.consts))
    if not stochastic:
        _check_logits(name, network, arrays, x, size)
    return network, arrays, shapes.shape[1]


def is_stochastic(logits_fn: Callable[..., jax.Array]) -> bool:
    """Whether a function must be given a second argument, its random key."""
    try:
        parameters = inspect.signature(logits_fn).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) == 2


def _check_logits(name: str, network: Network, arrays: Any, x: np.ndarray, size: int) -> None:
    """Refuse a function whose rows depend on each other, and warn of probabilities in place of logits."""

    def clean(rows: np.ndarray) -> np.ndarray:
        examples = Examples(x[rows], np.zeros(size, np.int32), rows.astype(np.int32), np.zeros(size, np.uint32))
        return np.asarray(looked_at(network, one_device(), arrays, examples, np.zeros(2, np.uint32), size).logits)

    rows = np.arange(size) % len(x)
    logits = clean(rows)
    alone = clean(rows * 0)[0]  # the same shape, so nothing is compiled again
    among, alone = np.nan_to_num([logits[0], alone], posinf=0.0, neginf=0.0)
    apart = np.abs(among - alone).max()
    if apart > ALIKE * max(np.abs(among).max(), 1e-6):
        got = f"gives an image other logits among other images (by {apart:.3g})"
        raise SpecError(name, got, "evaluate it as in prediction: BatchNorm with its moving statistics")
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):
        said = "returns probabilities: losses of them are flat, and attacks look weaker than they are; return logits"
        warnings.warn(f"{name} {said}", stacklevel=4)


def _traced(call: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[jex.core.ClosedJaxpr, Any]:
    """The program of a function as it is now, with its arrays, and the shape of what it returns."""
    # A new function each time: JAX keeps what it has traced by function, with the arrays of that time.
    return jax.make_jaxpr(lambda *given: call(*given), return_shape=True)(*inputs)


def _one_by_one(logits_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of (images, key) as one of (images, keys [B]): every image has a draw of its own."""
    return lambda images, keys: jax.vmap(lambda image, key: logits_fn(image[None], key)[0])(images, keys)


def _inner_constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays that functions inside a jaxpr have closed over."""
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if isinstance(leaf, jex.core.ClosedJaxpr):
                yield from leaf.consts
            if _is_program(leaf):
                yield from _inner_constants(getattr(leaf, "jaxpr", leaf))


def _is_program(value: Any) -> bool:
    return isinstance(value, (jex.core.ClosedJaxpr, jex.core.Jaxpr))


def _identity(value: Any) -> Any:
    """What makes a function the same as another, apart from arrays that it holds: its code, and what else it refers to.

    The traced program tells more, but not the derivative rules that a function brings along.
    """
    if isinstance(value, functools.partial):
        return "partial", _identity(value.func), *map(_identity, jax.tree.leaves((value.args, value.keywords)))
    if isinstance(value, types.MethodType):
        return "method", id(value.__self__), value.__func__.__code__
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = jax.tree.leaves((cells, value.__defaults__, value.__kwdefaults__))
        return "function", value.__code__, *map(_identity, held)
    if isinstance(value, (jax.Array, np.ndarray, np.generic, int, float, str, bytes, type(None))):
        return None  # arrays are arguments, and the program shows the rest
    return id(value)
