"""A JAX function that is not llrflow's, as attacks see it: its arrays are arguments of what is compiled, never part of
it, so that a function whose weights have changed is asked anew, and one that differs in weights alone compiles nothing.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from llrflow.attacks.network import Examples, Network, looked_at, one_device
from llrflow.base.errors import LlrflowError, SpecError, line_of

_JITTED = type(jax.jit(lambda: None))

ALIKE = 1e-3
"""How far the logits of an image may differ with its batch-mates, as a share of the largest: rounding stays below."""


class Foreign:
    """A function of variables and images, or of these and keys [B], with the arrays that it holds apart:
    ((held, variables), images, *keys) -> logits.

    Two are equal where they run the same code on arrays of the same shapes.
    """

    def __init__(self, call: Callable[..., Any], closed: jex.core.ClosedJaxpr, owner: Any, variables: Any) -> None:
        """`closed` is `call` as traced with such `variables`; `owner` the function that was passed."""
        self._call, self._held = call, (owner, [*_inner_constants(closed.jaxpr)])
        inner = tuple(map(id, self._held[1]))  # what a derivative rule has closed over is part of its code to JAX
        program = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))  # functions of a trace's own, new in each
        self._key = (_identity(owner), program, inner, jax.tree.structure(variables))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __call__(self, arrays: tuple[tuple[Any, ...], Any], *inputs: Any) -> jax.Array:
        """The logits [B,K], of whatever batch. Raises SpecError where the arrays that it holds depend on the batch."""
        held, variables = arrays
        closed, _ = _traced(self._call, (variables, *inputs))
        if [c.shape for c in closed.consts] != [a.shape for a in held]:
            fix = "make such arrays of the images inside the function, by jax.numpy"
            raise SpecError("logits_fn", "holds arrays whose shape depends on the number of images", fix)
        program = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(closed.jaxpr, list(held)))
        (logits,) = program(*jax.tree.leaves((variables, inputs)))
        return logits


def foreign(name: str, logits_fn: Callable[..., jax.Array], x: np.ndarray, size: int, variables: Any = None) -> Any:
    """(network, its arrays, number of classes) of a function that attacks batches of `size` images x [B,H,W,C].

    `name` is what messages call it; `variables`, if they are given, are its first argument. Raises SpecError where it
    is no function of images [B,H,W,C] to float logits [B,K].
    """

    def refuse(got: str, fix: str) -> NoReturn:
        raise SpecError(name, got, fix)

    if not callable(logits_fn):
        refuse(f"is {type(logits_fn).__name__}", "pass a function of images [B,H,W,C] that returns logits [B,K]")
    first = () if variables is None else (variables,)
    try:
        stochastic = _is_stochastic(logits_fn, len(first))
    except TypeError:
        taken = "variables, images" if first else "images"
        hint = "" if first else "; what `variables=` holds comes before these"
        refuse(f"takes {inspect.signature(logits_fn)}", f"pass a function of ({taken}) or ({taken}, key){hint}")
    variables = _arrays_of(variables)

    def call(variables: Any, *inputs: Any) -> Any:
        function = functools.partial(logits_fn, variables) if first else logits_fn
        return (_one_by_one(function) if stochastic else function)(*inputs)

    images = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    inputs = (images, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))) if stochastic else (images,)
    try:
        closed, shapes = _traced(call, (variables, *inputs))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        said = str(error).strip().splitlines()[0]
        refuse(f"leaves JAX ({type(error).__name__}: {said})", "use jax.numpy throughout, or jax.pure_callback")
    except LlrflowError:
        raise
    except Exception as error:  # whatever the function raises, a TypeError or ValueError mostly of a wrong shape
        got = f"fails on images {list(images.shape)}: {type(error).__name__}: {line_of(error)}"
        fix = "pass images as it takes them; [B,H,W,C] is what llrflow means by images"
        fix = fix if isinstance(error, (TypeError, ValueError)) else "fix the function"
        raise SpecError(name, got, fix) from error
    if not isinstance(shapes, jax.ShapeDtypeStruct):
        refuse(f"returns a {type(shapes).__name__}", "return the logits alone, one array [B,K]")
    if len(shapes.shape) != 2 or shapes.shape[0] != size:
        refuse(f"returns {shapes.shape}", f"return [B,K], here [{size}, classes]")
    if not jnp.issubdtype(shapes.dtype, jnp.floating):
        refuse(f"returns {shapes.dtype}", "return float logits, not classes")
    network = Network(Foreign(call, closed, logits_fn, variables), stochastic)
    arrays = tuple(map(jnp.asarray, closed.consts)), variables
    if not stochastic:
        _check_logits(name, network, arrays, x, size)
    return network, arrays, shapes.shape[1]


def _is_stochastic(function: Callable[..., Any], before: int) -> bool:
    """Whether a function must be given a random key behind its images, which come after so many arguments.

    Raises TypeError where it takes neither the one nor the other.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some have none
        return False
    parameters = signature.parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = sum(p.kind in kinds and p.default is p.empty for p in parameters) == before + 2
    signature.bind(*range(before + 1 + found))
    return found


def _arrays_of(variables: Any) -> Any:
    """A pytree with its numbers as arrays. SpecError where it holds something else."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            got = f"hold a {type(leaf).__name__} at {jax.tree_util.keystr(path) or 'their root'}"
            raise SpecError("variables", got, "pass a pytree of arrays, and close over the rest")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), variables)


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
    closed, shapes = jax.make_jaxpr(lambda *given: call(*given), return_shape=True)(*inputs)
    if any(True for _ in _inner_constants(closed.jaxpr)):
        leaves = jax.tree.leaves(inputs)
        closed = jax.make_jaxpr(lambda *given: _written_out(closed.jaxpr, closed.consts, given))(*leaves)
    return closed, shapes


def _written_out(jaxpr: jex.core.Jaxpr, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """What a program returns, without the boundaries of jitted functions in it: arrays that they hold are its own."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, jex.core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        if equation.primitive.name == "jit":
            inner = equation.params["jaxpr"]
            found = _written_out(inner.jaxpr, inner.consts, [value(v) for v in equation.invars])
        else:
            names = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, jex.core.Literal)))
            told = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
            alone = jex.core.Jaxpr((), names, equation.outvars, [equation], equation.effects, told)
            found = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(alone, ()))(*map(value, names))
        known |= zip(equation.outvars, found, strict=True)
    return [value(v) for v in jaxpr.outvars]


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
    if isinstance(value, _JITTED):
        return "jit", _identity(inspect.unwrap(value, stop=lambda inner: not isinstance(inner, _JITTED)))
    if isinstance(value, types.MethodType):
        return "method", id(value.__self__), value.__func__.__code__
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = jax.tree.leaves((cells, value.__defaults__, value.__kwdefaults__))
        return "function", value.__code__, *map(_identity, held)
    if isinstance(value, (jax.Array, np.ndarray, np.generic, int, float, str, bytes, type(None))):
        return None  # arrays are arguments, and the program shows the rest
    return id(value)
