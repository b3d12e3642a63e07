"""`llrflow.attack`: any attack on any JAX function, without a spec."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from llrflow.attacks.examined import Examined
from llrflow.attacks.function import foreign
from llrflow.attacks.search import Findings, InMemory
from llrflow.base.errors import SpecError
from llrflow.base.validation import first_problem
from llrflow.components.registry import make
from llrflow.method.term import lacking_classes
from llrflow.method.threat import Threat

BATCH = 128
"""Images attacked at a time unless the caller says otherwise. On CPU larger batches cost as much an image, and leave
less room for packing what still stands into fewer."""


class AttackResult(NamedTuple):
    """Outcome of `llrflow.attack`."""

    x_adv: jax.Array
    """Images [B,H,W,C] in [0,1]. A fixed-budget attack keeps them in the ball; a minimum-norm attack gives the nearest
    adversarial image that it found, and x itself where it found none."""
    success: jax.Array
    """Misclassified within the threat model, [B]; of a stochastic model in one new draw, which no search has seen."""
    distance: jax.Array
    """||x_adv - x|| in the threat's norm, [B]; of a minimum-norm attack that found nothing, infinity."""
    loss: jax.Array
    """Cross-entropy at x_adv in nats, [B]."""
    queries: jax.Array
    """Forward passes used for each example, those of gradients included, [B]."""
    gradients: jax.Array
    """Backward passes used for each example, [B]."""


def attack(
    logits_fn: Callable[..., jax.Array],
    x: jax.Array,
    y: jax.Array,
    threat: Threat | Mapping[str, Any],
    config: Mapping[str, Any] | str,
    key: jax.Array,
    surrogate: Callable[..., jax.Array] | None = None,
    batch_size: int | None = None,
    variables: Any = None,
) -> AttackResult:
    """Attack any JAX function [B,H,W,C] -> [B,K] within a threat model, without a spec.

    x [B,H,W,C] in [0,1]; y [B] integer labels; threat and config as they stand in YAML, for example
    `{"norm": "linf", "epsilon": "8/255"}` and `{"type": "pgd", "steps": 50, "restarts": 5}`.
    The threat's epsilon may be an array [B]: each image's own radius.
    A stochastic model is a function (images, key). With `variables`, a pytree of arrays, the function is one of
    (variables, images) or (variables, images, key). `surrogate` is the function that a `transfer` attack searches on.
    At most `batch_size` images (default 128) are attacked at a time. Randomness follows from `key` and the example's
    row. Programs are kept, with the arrays that the functions hold as arguments: another call with the same code and
    shapes compiles nothing, whatever has become of the weights (those of a function under `jax.jit` stay what they were
    when JAX traced it). Images of half precision are attacked in float32. A class whose logit is -inf is one that is
    never predicted; NaN and +inf are errors of the model and count as misclassified. Raises SpecError for a wrong
    threat, config or batch, and for a function that leaves JAX or whose rows depend on each other.
    """
    key = jax.random.wrap_key_data(random_words(key))  # whatever generator it belongs to
    x, y = jnp.asarray(x), jnp.asarray(y)
    ball, radii = ball_of(threat, len(x) if x.ndim else 0)
    if batch_size is not None and batch_size < 1:
        raise SpecError("batch_size", f"= {batch_size}", f"give a positive number, or none for {BATCH}")
    x = checked("attack", x, y)
    images, labels, size = np.asarray(x), np.asarray(y), batch_size or min(len(y), BATCH)
    network, arrays, classes = foreign("logits_fn", logits_fn, images, size, variables)
    check_labels("attack", labels, classes)
    other, others, count = (None, None, classes) if surrogate is None else foreign("surrogate", surrogate, images, size)
    if count != classes:
        raise SpecError("surrogate", f"has {count} classes, the attacked function {classes}", "pass one with as many")
    whole = make("attack", config)
    if whole.needs_surrogate != (surrogate is not None):
        got = "searches on another model" if whole.needs_surrogate else "searches on the attacked model itself"
        raise SpecError(whole.label(), got, "pass `surrogate` with a transfer attack, and with no other")
    examined = Examined(network, arrays, classes, images, labels, ball, size, radii)
    standing, found = np.ones(len(y), bool), None
    for stage, part in whole.stages(ball, classes).items():
        if lacking := lacking_classes(part, classes, ("attack",)):
            raise SpecError(*lacking, "choose another term, target or attack")
        stage_key = jax.random.fold_in(key, zlib.crc32(stage.encode())) if stage else key
        findings = examined.search(part, standing, part.minimum_norm and not stage, stage_key, other, others)
        found = findings if found is None else _later(found, findings, standing, part.minimum_norm)
        standing = standing & ~findings.arrays["wrong"]
    assert found is not None
    names = ("wrong", "distance", "loss", "queries", "gradients")
    return AttackResult(jnp.asarray(images + found.delta), *(jnp.asarray(found.arrays[name]) for name in names))


@jax.jit
def _words(key: jax.Array) -> jax.Array:
    """Two words drawn from a key of whatever generator, in one program."""
    return jax.random.bits(key, (2,), jnp.uint32)


def random_words(key: Any) -> jax.Array:
    """Two words drawn from a key. SpecError where it is none."""
    try:
        return _words(key)
    except (TypeError, ValueError):
        raise SpecError("key", f"= {key!r} is no random key", "pass jax.random.key(0)") from None


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """SpecError unless labels [B] are of a model of so many classes."""
    if not 0 <= labels.min() <= labels.max() < classes:
        got = f"got labels from {labels.min()} to {labels.max()}"
        raise SpecError(name, got, f"a label is one of 0 to {classes - 1}")


def ball_of(threat: Threat | Mapping[str, Any], n: int) -> tuple[Threat, np.ndarray | None]:
    """The threat model, and epsilon [n] where every image has its own; then the threat's is the largest. SpecError."""
    fields = dict(threat) if isinstance(threat, Mapping) else {}
    radii = _radii(fields["epsilon"], n) if np.ndim(fields.get("epsilon", 0.0)) else None
    ends = [threat] if radii is None else [{**fields, "epsilon": float(r)} for r in (radii.min(), radii.max())]
    try:
        return [Threat.model_validate(end) for end in ends][-1], radii
    except ValidationError as error:
        _, got, fix = first_problem(error)
        raise SpecError("threat", got, fix) from None


def _radii(epsilon: Any, n: int) -> np.ndarray:
    try:
        radii = np.asarray(epsilon, np.float32)
    except ValueError:
        raise SpecError("threat", "epsilon is an array that does not hold numbers", "give floats [B]") from None
    if radii.shape != (n,):
        got = f"epsilon has the shape {list(radii.shape)}, for {n} images"
        raise SpecError("threat", got, f"give one number, or one for each image [{n}]")
    return radii


def _later(known: InMemory, new: InMemory, attacked: np.ndarray, minimum_norm: bool) -> InMemory:
    """The findings of two stages, of which the later attacked only some examples.

    What a minimum-norm stage found outside the ball is no result of the whole.
    """
    nearer = ~attacked if minimum_norm else new.arrays["loss"] > known.arrays["loss"]
    take = attacked & (new.arrays["wrong"] | nearer)
    for name in Findings.FIELDS:
        if name in Findings.SPENT:
            known.arrays[name] += new.arrays[name]
        else:
            known.arrays[name][take] = new.arrays[name][take]
    known.delta[take] = new.delta[take]
    return known


def checked(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The images, in float32 if they came in half precision; `name` is what messages begin with.

    SpecError unless x [B,H,W,C] are float pixels in [0, 1] and y [B] whole numbers.
    """

    def refuse(got: str, fix: str) -> NoReturn:
        raise SpecError(name, got, fix)

    if x.ndim != 4 or y.shape != x.shape[:1] or not len(x):
        refuse(f"got x {x.shape} and y {y.shape}", "pass x [B,H,W,C] and y [B] with at least one example")
    if not jnp.issubdtype(x.dtype, jnp.floating) or not jnp.issubdtype(y.dtype, jnp.integer):
        refuse(f"got x {x.dtype} and y {y.dtype}", "pass float images in [0, 1] and integer labels")
    pixels = np.asarray(x)  # NumPy compiles nothing
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):
        refuse(f"got pixels in [{low:g}, {high:g}]", "pass images in [0, 1]; the model normalises")
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
