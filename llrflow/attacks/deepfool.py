"""DeepFool: Newton steps onto the nearest linearised decision boundary, until the class changes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost, mean_logits
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, misclassified
from llrflow.method.batched import choose, spread
from llrflow.method.threat import Threat, clip_to_box


class Walk(NamedTuple):
    """The sum of the steps so far [B,H,W,C], and whether it ends at a misclassified point [B]."""

    total: jax.Array
    wrong: jax.Array


@register("attack", "deepfool")
class DeepFool(Attack):
    """Steps onto the nearest of the linearised decision boundaries until the image is misclassified: minimum-norm.

    With c the class predicted for the clean image, f_k = z_k - z_c and w_k = grad f_k at the iterate, one step is
    r = (|f_k| / ||w_k||_2 + push) w_k / ||w_k||_2 for l2, (|f_k| / ||w_k||_1 + push) sign(w_k) for linf, with the k
    of least |f_k| / ||w_k||; the iterate is x + (1 + overshoot) sum(r). Each example stops at its first misclassified
    iterate, so the result is a quick upper bound of the minimal distance, not the best that can be found.
    Moosavi-Dezfooli et al. 2016 (arXiv:1511.04599).
    """

    minimum_norm: ClassVar[bool] = True

    steps: int = Field(default=50, ge=1)
    """Most steps of an example."""

    candidates: int = Field(default=10, ge=2)
    """Classes considered, the likeliest on the clean image: the predicted one and its rivals (all, if there are
    fewer; the count of backward passes then is an upper bound)."""

    overshoot: Annotated[float, Traced(ge=0)] = 0.02
    """Share by which the sum of the steps is lengthened, to get across the boundary."""

    push: Annotated[float, Traced(ge=0)] = 1e-4
    """Added to the length of every step in pixel units, so that one that ends on the boundary crosses it (the
    authors' code)."""

    @property
    def length(self) -> int:
        """Steps."""
        return self.steps

    @property
    def step_cost(self) -> StepCost:
        """One forward pass, and a backward pass for every rival: f_k is differentiated as the difference that it is."""
        return StepCost(1, self.candidates - 1)

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Walk:
        """The clean image."""
        probe = probes()
        return Walk(jnp.zeros_like(probe.x), misclassified(probe.logits(), probe.y))

    def advance(self, probes: ProbeFactory, threat: Threat, state: Walk, index: jax.Array) -> Walk:
        """One step, unless the iterate is misclassified already."""
        probe = probes()
        logits, pull, judged = jax.vjp(partial(mean_logits, probes), self._delta(state, probe.x), has_aux=True)
        wrong = misclassified(judged, probe.y)
        classes = jax.lax.top_k(probe.logits(), min(self.candidates, logits.shape[1]))[1]
        pairs = jax.nn.one_hot(classes[:, 1:], logits.shape[1]) - jax.nn.one_hot(classes[:, :1], logits.shape[1])
        gaps = jnp.sum(pairs * logits[:, None], axis=2)
        normals = jax.vmap(lambda pair: pull(pair)[0], in_axes=1, out_axes=1)(pairs)
        step = nearest_boundary(gaps, normals, threat, self.push)
        return Walk(choose(wrong, state.total, state.total + step), wrong)

    def finish(self, probes: ProbeFactory, threat: Threat, state: Walk) -> jax.Array:
        """The last iterate, [B,H,W,C]."""
        return self._delta(state, probes().x)

    def settled(self, state: Walk) -> jax.Array | None:
        """Examples whose iterate is misclassified."""
        return state.wrong

    def _delta(self, state: Walk, x: jax.Array) -> jax.Array:
        # The paper has no box. Iterates are cut to it, so that what is judged is an image; the sum of steps is not cut.
        return clip_to_box((1.0 + self.overshoot) * state.total, x)


def nearest_boundary(gaps: jax.Array, normals: jax.Array, threat: Threat, push: float) -> jax.Array:
    """The step that ends `push` beyond the nearest hyperplane: f_k [B,N], w_k [B,N,H,W,C] -> [B,H,W,C].

    A hyperplane without (finite) normal is out of reach; an example that has no other does not move.
    """
    lengths = threat.geometry.dual_length(normals.reshape(*gaps.shape, -1))
    reachable = (lengths > 0) & jnp.isfinite(lengths) & jnp.isfinite(gaps)
    distances = jnp.where(reachable, jnp.abs(gaps) / jnp.where(reachable, lengths, 1.0), jnp.inf)
    nearest = jnp.argmin(distances, axis=1)[:, None]
    distance = jnp.take_along_axis(distances, nearest, axis=1)[:, 0]
    normal = jnp.take_along_axis(normals, nearest[:, :, None, None, None], axis=1)[:, 0]
    movable = spread(jnp.isfinite(distance))
    return jnp.where(movable, spread(distance + push) * threat.steepest(normal), 0.0)
