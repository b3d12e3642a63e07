"""Carlini & Wagner: the nearest adversarial image by Adam, in a space where no box constrains it; under l2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, gradient_over_draws, misclassified
from llrflow.method.batched import choose
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import margin
from llrflow.method.threat import Threat

INSIDE = 0.999999
"""Images are shrunk by this factor about their middle grey, so that artanh of a pixel at 0 or 1 is finite."""
CHECKS = 10
"""How often in `steps` the loss is compared with what it was (the authors' code)."""
PROGRESS = 0.9999
"""Ratio of two such losses above which a search is stuck (the authors' code)."""


class Descent(NamedTuple):
    """Adam in tanh space, and the nearest adversarial image that it passed."""

    w: jax.Array
    """The image in tanh space, [B,H,W,C]."""
    adam: Any
    step: jax.Array
    """Steps since it began anew, [B]."""
    best: jax.Array
    """The nearest adversarial perturbation, zero while nothing was found, [B,H,W,C]."""
    distance: jax.Array
    """||best|| in the threat's norm, [B]; infinite while nothing was found."""


class Judged(NamedTuple):
    """What was seen at the image from which a step was taken, all [B]."""

    loss: jax.Array
    adversarial: jax.Array
    distance: jax.Array


class TanhAttack(Attack):
    """Base of the attacks of Carlini & Wagner: Adam on size(x' - x) + c max(z_y - max_{k != y} z_k + confidence, 0).

    x' = (tanh(w) + 1) / 2 is in the box for every w, and z are its logits. How size is measured, and how c is chosen,
    tells the attacks apart. Of all iterates the nearest adversarial one counts.
    """

    minimum_norm: ClassVar[bool] = True
    step_cost: ClassVar[StepCost] = StepCost(1, 1)

    learning_rate: Annotated[float, Traced(gt=0)] = 0.01
    """Adam's, in tanh space."""

    confidence: Annotated[float, Traced(ge=0)] = 0.0
    """Margin, in logits, by which an image must be misclassified to count."""

    def clean(self, probes: ProbeFactory) -> Descent:
        """The clean image, its own nearest adversarial one where it is misclassified."""
        probe = probes()
        w, count, zeros = to_tanh(probe.x), jnp.zeros(len(probe.x), jnp.int32), jnp.zeros(len(probe.x), probe.x.dtype)
        distance = jnp.where(self._adversarial(probe.logits(), probe.y), zeros, jnp.inf)
        return Descent(w, jax.vmap(self._adam.init)(w), count, jnp.zeros_like(probe.x), distance)

    def anew(self, at: Descent, w: jax.Array) -> Descent:
        """The descent with which Adam begins anew at w."""
        return at._replace(w=w, adam=jax.vmap(self._adam.init)(w), step=jnp.zeros_like(at.step))

    def descend(
        self, probes: ProbeFactory, threat: Threat, at: Descent, constant: jax.Array, size: Callable[..., jax.Array]
    ) -> tuple[Descent, Judged]:
        """Judge the image and take one step from it; constant [B], `size` maps a perturbation [B,D] to [B]."""

        def objective(probe: SearchProbe, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            # Measured from the shrunk image, so that a pixel without influence has no gradient and stays.
            moved = from_tanh(w) - from_tanh(to_tanh(probe.x))
            delta = from_tanh(w) - probe.x
            logits = probe.logits(delta)
            hinge = jnp.maximum(self.confidence - margin(logits, probe.y), 0.0)
            return size(moved.reshape(len(w), -1)) + constant * hinge, (delta, logits)

        gradient, loss, (delta, logits) = gradient_over_draws(probes, objective, at.w)
        adversarial, distance = self._adversarial(logits, probes().y), threat.distance(delta)
        nearer = adversarial & (distance < at.distance)
        move: Any
        move, adam = jax.vmap(self._adam.update)(gradient, at.adam)
        best, least = choose(nearer, delta, at.best), jnp.where(nearer, distance, at.distance)
        return Descent(at.w + move, adam, at.step + 1, best, least), Judged(loss, adversarial, distance)

    def finish(self, probes: ProbeFactory, threat: Threat, state: Any) -> jax.Array:
        """The nearest adversarial perturbation, zero where none was found, [B,H,W,C]."""
        return state.at.best

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def _adversarial(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        return misclassified(logits, y) & ~(margin(logits, y) < self.confidence)


class State(NamedTuple):
    """The search with the present constant, and the bisection over constants."""

    at: Descent
    checked: jax.Array
    """Loss at the last check, [B]."""
    found: jax.Array
    """Whether an iterate of the present constant was adversarial, [B]."""
    tried: jax.Array
    """Constants finished with, [B]."""
    constant: jax.Array
    low: jax.Array
    """Largest constant that failed, [B]."""
    high: jax.Array
    """Smallest constant that succeeded, [B]."""


@register("attack", "carlini_wagner")
class CarliniWagner(TanhAttack):
    """The nearest adversarial image under l2: Adam on ||x' - x||_2^2 + c max(z_y - max_{k != y} z_k + confidence, 0).

    Carlini & Wagner 2017 (arXiv:1608.04644), untargeted: x' = (tanh(w) + 1) / 2 is in the box for every w, z are its
    logits, and the constant c is ten times larger after each failure until it succeeds, then bisected. Of all
    iterates the nearest adversarial one counts. l2 only: under linf take the same paper's `carlini_wagner_linf`. What
    many papers call CW under linf (from Madry et al. 2018 on) is projected ascent on the margin, here `pgd`, whose
    default it is.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    search_steps: int = Field(default=9, ge=1)
    """Constants tried."""

    steps: int = Field(default=1000, ge=1)
    """Adam steps with each constant, at most."""

    initial_constant: Annotated[float, Traced(gt=0)] = 1e-3
    """The first c."""

    abort_early: bool = True
    """Leave a constant when a tenth of `steps` has not lowered the loss by 0.01 %, and save the queries."""

    @property
    def length(self) -> int:
        """Adam steps with all constants."""
        return self.search_steps * self.steps

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> State:
        """The clean image and the first constant."""
        at = self.clean(probes)
        zeros, no = jnp.zeros_like(at.distance), jnp.zeros(len(at.w), bool)
        return State(at, zeros + jnp.inf, no, at.step, zeros + self.initial_constant, zeros, zeros + jnp.inf)

    def advance(self, probes: ProbeFactory, threat: Threat, state: State, index: jax.Array) -> State:
        """Judge the iterate and take one Adam step from it; every example counts its own steps and constants."""
        at, judged = self.descend(probes, threat, state.at, state.constant, lambda moved: jnp.sum(moved**2, axis=1))
        stuck, checked = self._progress(state, judged.loss)
        state = state._replace(at=at, checked=checked, found=state.found | judged.adversarial)
        ended = stuck | (at.step == self.steps)
        return jax.tree.map(partial(choose, ended), self._next_constant(probes, state), state)

    def settled(self, state: State) -> jax.Array:
        """Examples that are done with all constants, or were misclassified from the start."""
        # The authors try the last of ten constants or more with the smallest that succeeded: the same search again.
        return (state.tried == self.search_steps) | (state.at.distance == 0)

    def _progress(self, state: State, loss: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which examples are stuck [B], and the loss that the next check compares with [B].

        The authors look at the loss of the whole batch; here no example sees another.
        """
        if not self.abort_early:
            return jnp.zeros(len(loss), bool), state.checked
        check = state.at.step % -(-self.steps // CHECKS) == 0
        return check & ~(loss <= PROGRESS * state.checked), jnp.where(check, loss, state.checked)

    def _next_constant(self, probes: ProbeFactory, state: State) -> State:
        """The state with which the search over the next constant begins anew."""
        high = jnp.where(state.found, jnp.minimum(state.high, state.constant), state.high)
        low = jnp.where(state.found, state.low, jnp.maximum(state.low, state.constant))
        constant = jnp.where(jnp.isinf(high), 10 * state.constant, (low + high) / 2)
        at = self.anew(state.at, to_tanh(probes().x))
        nothing = jnp.full_like(state.checked, jnp.inf)
        return State(at, nothing, jnp.zeros_like(state.found), state.tried + 1, constant, low, high)


def to_tanh(x: jax.Array) -> jax.Array:
    """artanh of images in [0, 1], shrunk; any shape."""
    return jnp.arctanh((2.0 * x - 1.0) * INSIDE)


def from_tanh(w: jax.Array) -> jax.Array:
    """The image (tanh(w) + 1) / 2; any shape."""
    return (jnp.tanh(w) + 1.0) / 2.0
