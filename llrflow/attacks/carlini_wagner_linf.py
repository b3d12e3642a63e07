"""Carlini & Wagner under L-inf: the nearest adversarial image by pulling in whatever exceeds a shrinking threshold."""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from llrflow.attacks.carlini_wagner import Descent, TanhAttack, from_tanh, to_tanh
from llrflow.base.validation import raise_at
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory
from llrflow.method.batched import choose
from llrflow.method.threat import Threat

SOLVED = 1e-4
"""Loss, in units of the constant, below which a threshold counts as kept (the authors' code)."""


class State(NamedTuple):
    """The search with the present threshold and constant."""

    at: Descent
    tau: jax.Array
    """Threshold in pixel units, [B]."""
    constant: jax.Array


@register("attack", "carlini_wagner_linf")
class CarliniWagnerLinf(TanhAttack):
    """The nearest adversarial image under linf: Adam on sum_i max(|delta_i| - tau, 0) + c max(margin + confidence, 0).

    Carlini & Wagner 2017 (arXiv:1608.04644), section VI.C, untargeted: margin is z_y - max_{k != y} z_k, and delta =
    (tanh(w) + 1) / 2 - x, in the box for every w. As soon as an adversarial delta has a loss below 1e-4 c, tau (at
    first 1) becomes `decrease_factor` times the smaller of tau and ||delta||_inf, and Adam begins anew from there.
    Whenever `steps` pass without, c is multiplied by `constant_factor`, and Adam goes on. Of all iterates the nearest
    adversarial one counts. If Adam finds whatever can be found for a tau, no image is nearer than `decrease_factor`
    times (the distance found - 1e-4 c).

    Values and stopping rule are those of the authors' code, with one difference: it lets a delta count by the loss
    there and the class one step later, ours by loss and class at the same delta, which saves a query.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    steps: int = Field(default=1000, ge=1)
    """Adam steps with each threshold and constant, at most."""

    learning_rate: Annotated[float, Traced(gt=0)] = 5e-3
    """Adam's, in tanh space."""

    decrease_factor: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """What the threshold is multiplied by; the nearest image of all may be nearer by this factor than what is found."""

    smallest_threshold: Annotated[float, Field(gt=0, lt=1)] = 1 / 256
    """The search ends when the threshold is no larger, in pixel units."""

    initial_constant: Annotated[float, Field(gt=0)] = 1e-5
    """The first c."""

    largest_constant: Annotated[float, Field(gt=0)] = 20.0
    """The search ends when c is no smaller."""

    constant_factor: Annotated[float, Field(gt=1)] = 2.0
    """What c is multiplied by."""

    @model_validator(mode="after")
    def _has_a_constant(self) -> CarliniWagnerLinf:
        if self.largest_constant <= self.initial_constant:
            path, limit = ("largest_constant",), f"must be > initial_constant = {self.initial_constant:g}"
            raise_at(path, self.largest_constant, "out_of_bounds", limit)
        return self

    @property
    def length(self) -> int:
        """Most steps that a search can take: it ends with the last constant or the last threshold."""
        # Each example begins anew at most so often: once for every constant and every threshold but one.
        constants = _multiplications(self.initial_constant, self.constant_factor, self.largest_constant)
        thresholds = _multiplications(1.0, self.decrease_factor, self.smallest_threshold)
        return (constants + thresholds - 1) * self.steps

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> State:
        """The clean image, the whole pixel range and the first constant."""
        at = self.clean(probes)
        ones = jnp.ones_like(at.distance)
        return State(at, ones, self.initial_constant * ones)

    def advance(self, probes: ProbeFactory, threat: Threat, state: State, index: jax.Array) -> State:
        """Judge the iterate and take one Adam step from it, or begin anew there; every example counts its own steps."""
        tau, constant = state.tau, state.constant

        def excess(moved: jax.Array) -> jax.Array:
            return jnp.sum(jnp.maximum(jnp.abs(moved) - tau[:, None], 0.0), axis=1)

        at, judged = self.descend(probes, threat, state.at, constant, excess)
        kept = judged.adversarial & (judged.loss < SOLVED * constant)
        failed = ~kept & (at.step == self.steps)
        at = at._replace(step=jnp.where(failed, 0, at.step))
        # Shrunk again, as in the authors' code: a pixel that reached 0 or 1 can leave.
        anew = self.anew(at, to_tanh(from_tanh(state.at.w)))
        at = jax.tree.map(functools.partial(choose, kept), anew, at)
        smaller = self.decrease_factor * jnp.minimum(tau, judged.distance)
        larger = self.constant_factor * constant
        return State(at, jnp.where(kept, smaller, tau), jnp.where(failed, larger, constant))

    def settled(self, state: State) -> jax.Array:
        """Examples that are done with all thresholds or all constants, or were misclassified from the start."""
        ended = (state.tau <= self.smallest_threshold) | (state.constant >= self.largest_constant)
        return ended | (state.at.distance == 0)


@functools.cache
def _multiplications(value: float, factor: float, goal: float) -> int:
    """How often `value` is multiplied by `factor` until it is past `goal`, or there, rounded as the search rounds."""
    number, count = np.float32(value), 0
    while (number < np.float32(goal)) if factor > 1 else (number > np.float32(goal)):
        number, count = number * np.float32(factor), count + 1
    return count
