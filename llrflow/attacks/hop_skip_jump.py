"""HopSkipJump: the nearest adversarial image by labels alone, from walks along the decision boundary."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erfinv
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, misclassified, restart_keys
from llrflow.method.batched import choose, spread
from llrflow.method.threat import Threat, clip_to_box, unit

FIRST_PROBE = 0.1
"""Length in pixel units of the random directions of the first round (the authors' code)."""
FINEST = 1e-6
"""Least tolerance of a bisection: float32 has no finer shares."""

START, BISECT, ESTIMATE, LEAP = range(4)
"""What an example's next query is for."""


class State(NamedTuple):
    """Where an example stands in its walk; what one query changes is little, so that every query can be a step."""

    keys: jax.Array
    """Raw random keys, one per example and run."""
    phase: jax.Array
    """START, BISECT, ESTIMATE or LEAP, [B]."""
    at: jax.Array
    """The adversarial perturbation that the phase works from: beyond the boundary, after BISECT on it, [B,H,W,C]."""
    low: jax.Array
    """BISECT: largest share of `at` that is correct, [B]."""
    high: jax.Array
    """BISECT: smallest share of `at` that is misclassified, [B]."""
    round: jax.Array
    """Times that the boundary was reached, [B]."""
    asked: jax.Array
    """ESTIMATE: directions asked so far, [B]."""
    votes: jax.Array
    """ESTIMATE: sum of the answers, 1 for misclassified and -1 for correct, [B]."""
    signed: jax.Array
    """ESTIMATE: sum of the directions times their answers, [B,H,W,C]."""
    plain: jax.Array
    """ESTIMATE: sum of the directions; LEAP: where to, [B,H,W,C]."""
    size: jax.Array
    """ESTIMATE: length of the directions; LEAP: of the leap, [B]."""
    best: jax.Array
    """The nearest adversarial perturbation, zero while nothing was found, [B,H,W,C]."""
    distance: jax.Array
    """||best|| in the threat's norm, [B]; infinite while nothing was found."""


@register("attack", "hop_skip_jump")
class HopSkipJump(Attack):
    """Decision-based minimum-norm attack: sees the predicted class alone.

    Chen et al. 2020 (arXiv:1904.02144), untargeted. From an image of uniform noise that is misclassified, round t

    1. goes to the boundary, by bisection on the way to the clean image (along the segment for l2, through shrinking
       balls for linf), to a share theta = gamma D^-1.5 (l2) or gamma D^-2 (linf) of it;
    2. asks about `initial_directions` sqrt(t) random directions u_b from there, of a length of sqrt(D) theta (l2) or
       D theta (linf) times the distance (0.1 in round 1). With phi_b = 1 where they end misclassified and -1 elsewhere,
       v = sum_b (phi_b - mean phi) u_b estimates the boundary's normal;
    3. leaps along v / ||v||_2 (l2) or sign(v) (linf), by the distance over sqrt(t), or half of that and so on, until it
       lands on a misclassified image.

    Every step is one query of every example, for whatever that example needs next: none waits for another. Of all
    images that were asked about, the nearest adversarial one counts (the authors': the last on the boundary), so the
    search may end anywhere. Where noise is never misclassified nothing is found.
    """

    minimum_norm: ClassVar[bool] = True
    step_cost: ClassVar[StepCost] = StepCost(1, 0)

    queries: int = Field(default=5000, ge=1)
    """Forward passes of one run."""

    initial_directions: int = Field(default=100, ge=1)
    """Random directions of the first estimate; that of round t has sqrt(t) times as many."""

    max_directions: int = Field(default=10_000, ge=1)
    """Most random directions of an estimate."""

    gamma: Annotated[float, Traced(gt=0)] = 1.0
    """theta times D^1.5 (l2) or D^2 (linf)."""

    @property
    def length(self) -> int:
        """Queries."""
        return self.queries

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> State:
        """Nothing asked yet; a misclassified clean image is its own nearest adversarial one."""
        probe = probes()
        nothing, zeros = jnp.zeros_like(probe.x), jnp.zeros(len(probe.x), probe.x.dtype)
        none = jnp.zeros(len(probe.x), jnp.int32)
        distance = jnp.where(misclassified(probe.logits(), probe.y), zeros, jnp.inf)
        rest = (zeros, zeros, none, none, none, nothing, nothing, zeros, nothing, distance)
        return State(jax.random.key_data(keys), none + START, nothing, *rest)

    def advance(self, probes: ProbeFactory, threat: Threat, state: State, index: jax.Array) -> State:
        """One query of each example, and what follows from the answer."""
        probe, keys = probes(), restart_keys(jax.random.wrap_key_data(state.keys), index)
        shape, dtype = probe.x.shape[1:], probe.x.dtype
        drawn = jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, -1.0, 1.0))(keys)
        # A uniform draw is normal after erfinv, up to the scale: one draw is noise, and a direction for either norm.
        # It may be -1, where erfinv is not finite: once in 2^23 numbers, that is in some image of every evaluation.
        inner = jnp.maximum(drawn, jnp.nextafter(jnp.asarray(-1.0, dtype), jnp.zeros((), dtype)))
        direction = unit(drawn if threat.norm == "linf" else erfinv(inner))
        asked = (
            (drawn + 1.0) / 2.0 - probe.x,
            shrunk(threat, state.at, (state.low + state.high) / 2.0),
            state.at + spread(state.size) * direction,
            state.at + spread(state.size) * state.plain,
        )
        delta = clip_to_box(_of_phase(state.phase, *asked), probe.x)
        wrong, distance = misclassified(probe.logits(delta), probe.y), threat.distance(delta)
        nearer = wrong & (distance < state.distance)
        best, distance = choose(nearer, delta, state.best), jnp.where(nearer, distance, state.distance)
        state = state._replace(best=best, distance=distance)
        followed = (
            _beyond(state, delta, wrong, state),
            self._bisected(threat, state, wrong),
            self._estimated(threat, state, delta, wrong),
            self._leapt(threat, state, delta, wrong),
        )
        return jax.tree.map(lambda *after: _of_phase(state.phase, *after), *followed)

    def finish(self, probes: ProbeFactory, threat: Threat, state: State) -> jax.Array:
        """The nearest adversarial perturbation, zero where none was found, [B,H,W,C]."""
        return state.best

    def settled(self, state: State) -> jax.Array:
        """Examples that were misclassified from the start."""
        return state.distance == 0

    def _bisected(self, threat: Threat, state: State, wrong: jax.Array) -> State:
        """Half of the interval; once that is short enough the boundary, and on to an estimate there."""
        middle = (state.low + state.high) / 2.0
        low, high = jnp.where(wrong, state.low, middle), jnp.where(wrong, middle, state.high)
        theta = self._tolerance(threat, state)
        at = shrunk(threat, state.at, high)
        size = jnp.where(state.round == 0, FIRST_PROBE, _scale(threat, at) * theta * threat.distance(at))
        none, nothing = jnp.zeros_like(state.asked), jnp.zeros_like(at)
        arrived = state._replace(phase=jnp.full_like(state.phase, ESTIMATE), at=at, round=state.round + 1, size=size)
        arrived = arrived._replace(asked=none, votes=none, signed=nothing, plain=nothing)
        return _either(high - low <= theta, arrived, state._replace(low=low, high=high))

    def _estimated(self, threat: Threat, state: State, delta: jax.Array, wrong: jax.Array) -> State:
        """One direction more; after the last the normal of the boundary, and on to a leap along it."""
        # As far as it stayed in the box.
        direction, answer = (delta - state.at) / spread(state.size), jnp.where(wrong, 1, -1)
        asked, votes = state.asked + 1, state.votes + answer
        signed, plain = state.signed + spread(answer).astype(delta.dtype) * direction, state.plain + direction
        more = state._replace(asked=asked, votes=votes, signed=signed, plain=plain)
        mean = spread(votes / asked).astype(delta.dtype)
        normal = jnp.where(jnp.abs(mean) == 1, signed, signed - mean * plain)
        root = jnp.sqrt(state.round.astype(delta.dtype))
        size = threat.distance(state.at) / root
        ended = state._replace(phase=jnp.full_like(state.phase, LEAP), plain=threat.steepest(normal), size=size)
        wanted = jnp.minimum(jnp.floor(self.initial_directions * root), self.max_directions)
        return _either(asked >= wanted, ended, more)

    def _leapt(self, threat: Threat, state: State, delta: jax.Array, wrong: jax.Array) -> State:
        """On to a bisection from where the leap landed, or a leap half as long."""
        # Too short to be told from standing still: the boundary was rounding alone. Once more from the nearest image.
        lost = ~wrong & (state.size < FINEST * threat.distance(state.at))
        return _beyond(state, choose(lost, state.best, delta), wrong | lost, state._replace(size=state.size / 2.0))

    def _tolerance(self, threat: Threat, state: State) -> jax.Array:
        """The share of `at` to which a bisection goes, a scalar."""
        pixels = math.prod(state.at.shape[1:])
        share = self.gamma * pixels ** (-2.0 if threat.norm == "linf" else -1.5)
        return jnp.maximum(jnp.asarray(share, state.at.dtype), FINEST)


def shrunk(threat: Threat, delta: jax.Array, share: jax.Array) -> jax.Array:
    """Drawn to the clean image until a share [B] of its norm is left: scaled for l2, clipped for linf; [B,H,W,C]."""
    if threat.norm == "l2":
        return spread(share) * delta
    limit = spread(share * threat.distance(delta))
    return jnp.clip(delta, -limit, limit)


def _scale(threat: Threat, delta: jax.Array) -> float:
    """Length of an estimate's directions over theta times the distance."""
    pixels = math.prod(delta.shape[1:])
    return float(pixels) if threat.norm == "linf" else math.sqrt(pixels)


def _beyond(state: State, delta: jax.Array, there: jax.Array, otherwise: State) -> State:
    """On to a bisection from `delta` where that is beyond the boundary (`there`, [B])."""
    ends = {"low": jnp.zeros_like(state.low), "high": jnp.ones_like(state.high)}
    return _either(there, state._replace(phase=jnp.full_like(state.phase, BISECT), at=delta, **ends), otherwise)


def _either(where: jax.Array, new: State, old: State) -> State:
    return jax.tree.map(partial(choose, where), new, old)


def _of_phase(phase: jax.Array, *each: jax.Array) -> jax.Array:
    """For every example that of START, BISECT, ESTIMATE, LEAP which its phase says, [B,...]."""
    return jax.lax.select_n(jnp.broadcast_to(spread(phase, each[0].ndim), each[0].shape), *each)
