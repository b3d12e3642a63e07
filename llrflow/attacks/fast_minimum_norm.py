"""FMN and DDN: normalised gradient steps, kept at a distance that shrinks at errors and grows elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, gradient_over_draws, misclassified, restart_keys
from llrflow.method.batched import choose, spread
from llrflow.method.labels import cross_entropy
from llrflow.method.norms import NORMS
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import margin
from llrflow.method.threat import Threat, clip_to_box, unit

LAST_STEP = 0.01
"""The last step's length over the first's (both papers)."""
LAST_GAMMA = 0.001
"""gamma of FMN's last step (the authors' code)."""


class Walk(NamedTuple):
    """The iterate, its distance's bound, and the nearest adversarial perturbation so far."""

    keys: jax.Array
    """Raw random keys, one per example and run."""
    delta: jax.Array
    """[B,H,W,C]."""
    radius: jax.Array
    """The norm that the iterate has or may have, [B]."""
    best: jax.Array
    """The nearest adversarial perturbation, zero while nothing was found, [B,H,W,C]."""
    distance: jax.Array
    """||best|| in the threat's norm, [B]; infinite while nothing was found."""


class Seen(NamedTuple):
    """What was seen at an iterate."""

    wrong: jax.Array
    """[B]."""
    value: jax.Array
    """What is climbed, [B]."""
    gradient: jax.Array
    """[B,H,W,C]."""
    length: jax.Array
    """||delta|| in the threat's norm, [B]."""


class RadiusAttack(Attack):
    """Base of attacks whose iterates are judged, moved along the gradient and brought to a new norm, `steps` times.

    How the norm changes, and what is climbed, tells them apart. The move after the last judgement is in vain, as in the
    authors' code.
    """

    minimum_norm: ClassVar[bool] = True
    step_cost: ClassVar[StepCost] = StepCost(1, 1)

    steps: int = Field(default=100, ge=1)
    """Gradient steps."""

    step_size: Annotated[float, Traced(gt=0)] = 1.0
    """l2 length of the first step in pixel units; a cosine leads to a hundredth of it."""

    gamma: Annotated[float, Traced(gt=0, lt=1)] = 0.05
    """Share by which the norm shrinks at an error and grows elsewhere."""

    @property
    def length(self) -> int:
        """Gradient steps."""
        return self.steps

    def finish(self, probes: ProbeFactory, threat: Threat, state: Walk) -> jax.Array:
        """The nearest adversarial perturbation, zero where none was found, [B,H,W,C]."""
        return state.best

    def settled(self, state: Walk) -> jax.Array:
        """Examples that were misclassified from the start."""
        return state.distance == 0

    def _clean(self, probes: ProbeFactory, keys: jax.Array, radius: Any) -> Walk:
        """The clean image, its own nearest adversarial one where it is misclassified."""
        probe = probes()
        nothing, zeros = jnp.zeros_like(probe.x), jnp.zeros(len(probe.x), probe.x.dtype)
        distance = jnp.where(misclassified(probe.logits(), probe.y), zeros, jnp.inf)
        return Walk(jax.random.key_data(keys), nothing, zeros + radius, nothing, distance)

    def _judged(
        self, probes: ProbeFactory, threat: Threat, state: Walk, climbed: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> tuple[Walk, Seen]:
        """The state that knows of its iterate, and what was seen there; climbed(logits, y) is [B]."""

        def value_and_verdict(probe: SearchProbe, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = probe.logits(delta)
            return climbed(logits, probe.y), misclassified(logits, probe.y)

        gradient, value, wrong = gradient_over_draws(probes, value_and_verdict, state.delta)
        length = threat.distance(state.delta)
        nearer = wrong & (length < state.distance)
        best, distance = choose(nearer, state.delta, state.best), jnp.where(nearer, length, state.distance)
        return state._replace(best=best, distance=distance), Seen(wrong, value, gradient, length)

    def _along(self, direction: jax.Array, state: Walk, index: jax.Array) -> jax.Array:
        """The iterate after this step along a unit direction, not yet brought to its norm, [B,H,W,C]."""
        return state.delta + annealed(self.step_size, LAST_STEP * self.step_size, index, self.steps) * direction


def annealed(first: Any, last: Any, index: jax.Array, steps: int) -> jax.Array:
    """From `first` at step 0 along half a cosine to `last` at step `steps`."""
    return last + (first - last) * (1.0 + jnp.cos(jnp.pi * index.astype(jnp.float32) / steps)) / 2.0


def within_reach(threat: Threat, x: jax.Array, radius: jax.Array) -> jax.Array:
    """No larger than the norm of the farthest corner of the box, [B]."""
    return jnp.minimum(radius, threat.distance(jnp.maximum(x, 1.0 - x)))


@register("attack", "fmn")
class FMN(RadiusAttack):
    """Fast minimum-norm attack: ascent on the margin inside a ball whose radius follows what was seen.

    delta' = project(delta + alpha_k g / ||g||_2, radius) with g = grad of max_{k != y} z_k - z_y at the iterate. Until
    an adversarial iterate is found, radius = (1 + gamma_k) (||delta||_p + |margin| / ||g||_q), beyond the linearised
    boundary (q is dual to p). From then on it is min((1 - gamma_k) radius, least distance so far) at an adversarial
    iterate and (1 + gamma_k) radius at any other. alpha_k and gamma_k fall along a cosine. Of all iterates the nearest
    adversarial one counts. Pintor et al. 2021 (arXiv:2102.12827), from the clean image; they go to the linearised
    boundary itself, and some searches come ever nearer to it and never cross.
    """

    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Walk:
        """The clean image."""
        return self._clean(probes, keys, jnp.inf)

    def advance(self, probes: ProbeFactory, threat: Threat, state: Walk, index: jax.Array) -> Walk:
        """Judge the iterate and take one step from it."""
        known, seen = self._judged(probes, threat, state, margin)
        gamma, x = annealed(self.gamma, LAST_GAMMA, index, self.steps), probes().x
        slope = threat.geometry.dual_length(seen.gradient.reshape(len(x), -1))
        boundary = (1.0 + gamma) * (seen.length + jnp.abs(seen.value) / jnp.where(slope > 0, slope, 1e-12))
        grown = jnp.where(jnp.isfinite(known.distance), (1.0 + gamma) * state.radius, boundary)
        shrunk = jnp.minimum((1.0 - gamma) * state.radius, known.distance)
        radius = within_reach(threat, x, jnp.where(seen.wrong, shrunk, grown))
        moved = self._along(unit(seen.gradient), state, index)
        ball = threat.of_radius(radius)
        return known._replace(delta=ball.project(moved, x), radius=radius)


@register("attack", "ddn")
class DDN(RadiusAttack):
    """Decoupled direction and norm, l2: ascent on cross-entropy at a norm that changes by a fixed share a step.

    delta' = radius u / ||u||_2, cut to the box, with u = delta + alpha_k g / ||g||_2; radius is (1 - gamma) times what
    it was at a misclassified iterate and (1 + gamma) times at any other. Where the gradient vanishes (in float32, at
    confident logits) g is random. alpha_k falls along a cosine. Of all iterates the nearest adversarial one counts.
    Rony et al. 2019 (arXiv:1811.09600); their rounding of images to 8 bits is left out.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    initial_radius: Annotated[float, Traced(gt=0)] = 1.0
    """The norm of the first step, before it grows or shrinks, in pixel units."""

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Walk:
        """The clean image."""
        return self._clean(probes, keys, self.initial_radius)

    def advance(self, probes: ProbeFactory, threat: Threat, state: Walk, index: jax.Array) -> Walk:
        """Judge the iterate and take one step from it."""
        known, seen = self._judged(probes, threat, state, cross_entropy)
        x, keys = probes().x, restart_keys(jax.random.wrap_key_data(state.keys), index)
        drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        flat = jnp.all(seen.gradient == 0, axis=(1, 2, 3))
        moved = self._along(unit(choose(flat, drawn, seen.gradient)), state, index)
        radius = state.radius * jnp.where(seen.wrong, 1.0 - self.gamma, 1.0 + self.gamma)
        radius = within_reach(threat, x, radius)
        return known._replace(delta=clip_to_box(spread(radius) * unit(moved), x), radius=radius)
