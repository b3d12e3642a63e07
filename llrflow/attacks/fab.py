"""FAB-T: projections onto one linearised decision boundary and the box, drawn to the clean image."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost, aimed_class, mean_logits
from llrflow.base.norms import NormName
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, misclassified
from llrflow.method.batched import choose, spread
from llrflow.method.labels import at_label
from llrflow.method.norms import NORMS
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import margin, wrong_classes
from llrflow.method.threat import Threat, clip_to_box

ACROSS = 1e-4
"""How far beyond the predicted boundary the final search goes, as a share of the segment that it searches."""


class Track(NamedTuple):
    """The iterate and the nearest adversarial perturbation so far [B,H,W,C], its distance and the target [B]."""

    delta: jax.Array
    best: jax.Array
    distance: jax.Array
    target: jax.Array


@register("attack", "fab_t")
class FABT(Attack):
    """Targeted fast adaptive boundary attack: minimum-norm, one wrong class t a run; the nearest of all runs counts.

    At the iterate x_i the boundary {z_t = z_y} is replaced by its tangent plane. With d and d0 the steps that bring x_i
    and the clean image x to the nearest point of that plane inside the box, and a = min(|d| / (|d| + |d0|), alpha_max),

        x_{i+1} = clip((1 - a) (x_i + eta d) + a (x + eta d0)).

    A misclassified x_{i+1} is kept if it is the nearest yet, and then drawn to the clean image: x + beta (x_{i+1} - x).
    Croce & Hein 2020 (arXiv:1907.02044); targets and settings as in AutoAttack (arXiv:2003.01690).
    """

    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)
    minimum_norm: ClassVar[bool] = True

    # The gradient at the iterate (one forward, one backward pass), and the class of the next iterate.
    step_cost: ClassVar[StepCost] = StepCost(2, 1)

    steps: int = Field(default=100, ge=1)
    """Iterations of a run."""

    targets: int = Field(default=9, ge=1)
    """Wrong classes tried, the likeliest on the clean image (all, if there are fewer)."""

    restarts: int = Field(default=1, ge=1)
    """Runs per target: the first from the clean image, further ones from random points at distance epsilon / 2."""

    alpha_max: Annotated[float, Traced(ge=0, le=1)] = 0.1
    """Largest weight of the clean image's projection."""

    eta: Annotated[float, Traced(ge=1)] = 1.05
    """Extrapolation of each projection, to get across the boundary."""

    beta: Annotated[float, Traced(gt=0, lt=1)] = 0.9
    """Share of its distance that a misclassified iterate keeps in the backward step."""

    final_search: int = Field(default=3, ge=0)
    """Steps on the segment from x to the nearest adversarial image found, by linear interpolation of the logits: one
    forward pass each and one more, beyond the counted queries. 3: the paper; 0: AutoAttack."""

    @property
    def length(self) -> int:
        """Iterations."""
        return self.steps

    def runs(self, classes: int) -> int:
        """Restarts times targets: the first run of every target, then the second."""
        return self.restarts * self._tried(classes)

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Track:
        """The clean image, or a random point near it."""
        probe = probes()
        tried = self._tried(probe.logits().shape[1])
        target = aimed_class(probe, run % tried)
        nothing = jnp.zeros_like(probe.x)
        start = choose(run // tried > 0, _near(threat, probe.x, keys), nothing)
        wrong = misclassified(probe.logits(), probe.y)
        return Track(start, nothing, jnp.where(wrong, 0.0, jnp.inf).astype(probe.x.dtype), target)

    def advance(self, probes: ProbeFactory, threat: Threat, state: Track, index: jax.Array) -> Track:
        """One iteration."""
        probe = probes()
        delta = self._moved(probes, threat, state)
        distance = threat.distance(delta)
        wrong = misclassified(probe.logits(delta), probe.y)
        better = wrong & (distance < state.distance)
        return state._replace(
            delta=choose(wrong, self.beta * delta, delta),
            best=choose(better, delta, state.best),
            distance=jnp.where(better, distance, state.distance),
        )

    def finish(self, probes: ProbeFactory, threat: Threat, state: Track) -> jax.Array:
        """The nearest adversarial perturbation after the final search, [B,H,W,C]; zero where none was found."""
        return self._searched(probes(), state.best) if self.final_search else state.best

    def _moved(self, probes: ProbeFactory, threat: Threat, state: Track) -> jax.Array:
        probe = probes()

        def difference(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, _ = mean_logits(probes, delta)
            gap = at_label(logits, state.target) - at_label(logits, probe.y)
            return jnp.sum(gap), gap

        normal, gap = jax.grad(difference, has_aux=True)(state.delta)
        # One example's overflow must not turn its perturbation into NaN, which no projection mends.
        usable = jnp.isfinite(gap) & jnp.all(jnp.isfinite(normal), axis=(1, 2, 3))
        normal, gap = jnp.where(spread(usable), normal, 0.0), jnp.where(usable, gap, 0.0)
        at_clean = gap - jnp.sum(normal * state.delta, axis=(1, 2, 3))
        points = jnp.concatenate([probe.x + state.delta, probe.x])
        planes = jnp.concatenate([normal, normal]), jnp.concatenate([gap, at_clean])
        step, from_clean = jnp.split(project_hyperplane_box(points, *planes, threat.norm), 2)
        near, far = (jnp.maximum(threat.distance(d), 1e-8) for d in (step, from_clean))
        alpha = spread(jnp.minimum(near / (near + far), self.alpha_max))
        return clip_to_box((1 - alpha) * (state.delta + self.eta * step) + alpha * self.eta * from_clean, probe.x)

    def _searched(self, probe: SearchProbe, best: jax.Array) -> jax.Array:
        """Regula falsi on x + s * best between a correct s and an adversarial one."""
        low, high = jnp.zeros(len(best), best.dtype), jnp.ones(len(best), best.dtype)
        low_logits, high_logits = probe.logits(), probe.logits(best)
        for _ in range(self.final_search):
            rival = wrong_classes(high_logits, probe.y)[:, 0]
            below = at_label(low_logits, probe.y) - at_label(low_logits, rival)
            above = margin(high_logits, probe.y)
            # The paper goes to the predicted boundary itself, where rounding alone decides on the side.
            share = 1.0 - above / (below + above) + ACROSS
            between = jnp.isfinite(share) & (share >= 0) & (share <= 1)
            middle = jnp.where(between, low + share * (high - low), high)
            logits = probe.logits(spread(middle) * best)
            wrong = misclassified(logits, probe.y)
            low, high = jnp.where(wrong, low, middle), jnp.where(wrong, middle, high)
            low_logits = choose(wrong, low_logits, logits)
            high_logits = choose(wrong, logits, high_logits)
        return spread(high) * best

    def _tried(self, classes: int) -> int:
        return min(self.targets, classes - 1)


def _near(threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
    """A random perturbation at distance epsilon / 2, cut to the box."""
    # The paper's min(u, epsilon) / 2, where u, the least distance yet, is infinite: runs know nothing of each other.
    random = jax.vmap(lambda key: threat.geometry.direction(key, x.shape[1:], x.dtype))(keys)
    return clip_to_box(spread(threat.epsilon / 2 / jnp.maximum(threat.distance(random), 1e-12)) * random, x)


def project_hyperplane_box(x: jax.Array, w: jax.Array, b: jax.Array, norm: NormName) -> jax.Array:
    r"""The step d [B,...] of least norm from x to the hyperplane {z : <w, z - x> + b = 0} within the box [0, 1].

    x, w [B,...], x in the box; b [B] is the value at x of the affine function whose zeros are the hyperplane (not its
    value at 0: near the hyperplane that would be lost in <w, x>). With r_i the room of x_i in the direction
    -sign(b w_i),

        d_i = -sign(b w_i) min(t s_i, r_i),    s_i = 1 for linf, |w_i| for l2 (0 where w_i = 0),

    with the least t such that \sum_i |w_i| min(t s_i, r_i) = |b|. For l1 d_i = -sign(b w_i) r_i where |w_i| is
    largest, until that closes the gap. Where the hyperplane misses the box, the corner of the box next to it. Where
    w = 0, zero. Croce & Hein 2020 (arXiv:1907.02044), eq. 5 to 7.
    """
    flat, normal = x.reshape(len(x), -1), w.reshape(len(w), -1)
    # Scaled first: the hyperplane stays the same, and squares of tiny or huge gradients leave float32.
    largest = jnp.max(jnp.abs(normal), axis=1)
    scale = jnp.where(largest > 0, largest, 1.0)
    normal, gap = normal / scale[:, None], jnp.abs(b) / scale
    towards = -jnp.sign(normal) * jnp.where(b < 0, -1.0, 1.0)[:, None]
    room = jnp.maximum(jnp.where(towards > 0, 1.0 - flat, flat) * jnp.abs(towards), 0.0)
    return (towards * NORMS[norm].least(jnp.abs(normal), room, gap)).reshape(x.shape)
