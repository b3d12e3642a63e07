"""How APGD chooses its steps: by momentum and halvings under linf and l2, by sparsity under l1."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.base.norms import NormName
from llrflow.method.batched import choose, spread
from llrflow.method.norms import sparse_sign
from llrflow.method.threat import Threat

# Croce & Hein 2020, section 3.1 and appendix C.
FIRST_SIZE = 2.0
"""The first step size, in epsilons."""
ALPHA = 0.75
"""Weight of the new step; the previous update keeps the rest (momentum)."""
FIRST_SPAN, SHRINKAGE, LEAST_SPAN = 22, 3, 6
"""Spans between checkpoints in per cent of the steps: the first, how much shorter each next one is, the shortest."""

# Croce & Hein 2021, section 4.2 and the authors' code.
FIRST_SHARE = 0.2
"""Share of the components that the first steps move."""
SPAN = 4
"""Span between checkpoints in per cent of the steps."""
FEWER = 0.95
"""The best point has become sparser if it has less than so many of the nonzero components that it had."""
FACTOR, SMALLEST = 1.5, 0.1
"""By what steps shrink, and the support does to the components that a step moves; the smallest step, in epsilons."""


class Ascent(NamedTuple):
    """State of one run."""

    delta: jax.Array
    """The iterate that the next step judges, [B,H,W,C]."""
    previous: jax.Array
    """The iterate before it, [B,H,W,C]."""
    target: jax.Array
    """The class aimed at, of an untargeted attack the label, [B]."""
    size: jax.Array
    """Step size in pixel units, [B]."""
    best: jax.Array
    """The iterate of the largest value, [B,H,W,C]."""
    best_gradient: jax.Array
    """The gradient there, [B,H,W,C]."""
    best_value: jax.Array
    """The value there, [B]."""
    adversarial: jax.Array
    """The iterate that was misclassified last, [B,H,W,C]; a search settles at the first, unless the network is drawn
    anew in each step."""
    wrong: jax.Array
    """Whether there is one, [B]."""
    value: jax.Array
    """The value at the iterate judged last, [B]."""
    increases: jax.Array
    """Steps since the checkpoint that increased the value, [B]."""
    checked_value: jax.Array
    """The best value at the checkpoint, [B]."""
    halved: jax.Array
    """Whether the step size was halved there, [B]."""
    kept: jax.Array
    """Under l1 the components that a step moves, [B]."""
    support: jax.Array
    """Under l1 the nonzero components of the best iterate at the checkpoint, [B]."""


class Scheme:
    """One way to choose steps; spans count the iterates of a search from its start."""

    def start(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Where a search begins, [B,H,W,C], from `keys` [B]."""
        raise NotImplementedError

    def begun(self, threat: Threat, delta: jax.Array, target: jax.Array, wrong: jax.Array, fresh: bool) -> Ascent:
        """The state of a search at its start delta; not `fresh` where another search was there before."""
        zero, ones = jnp.zeros_like(delta), jnp.ones(len(delta), delta.dtype)
        nothing = -jnp.inf * ones
        return Ascent(
            delta=delta,
            previous=delta,
            target=target,
            size=FIRST_SIZE * threat.epsilon * ones,
            best=zero,
            best_gradient=zero,
            best_value=nothing,
            adversarial=zero,
            wrong=wrong,
            value=-nothing,
            increases=jnp.zeros(len(delta), jnp.int32),
            checked_value=nothing,
            halved=jnp.zeros(len(delta), bool),
            kept=ones,
            support=ones,
        )

    def spans(self, steps: int) -> np.ndarray:
        """Of each iterate the steps since the last checkpoint, if it is one (the start counts as one), else -1."""
        raise NotImplementedError

    def checkpoint(
        self, state: Ascent, gradient: jax.Array, span: jax.Array, threat: Threat, rho: jax.Array | float
    ) -> tuple[Ascent, jax.Array]:
        """The state and the gradient to go on with, where the last checkpoint was `span` steps ago."""
        raise NotImplementedError

    def moved(self, state: Ascent, gradient: jax.Array, threat: Threat, x: jax.Array, first: jax.Array) -> jax.Array:
        """The next iterate, [B,H,W,C]; `first` at the start."""
        raise NotImplementedError


class Momentum(Scheme):
    """Croce & Hein 2020 (arXiv:2003.01690), algorithm 1."""

    def start(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Noise of norm epsilon."""
        noise = threat.uniform(keys, x)
        return threat.project(noise * spread(threat.epsilon / jnp.maximum(threat.distance(noise), 1e-12)), x)

    def spans(self, steps: int) -> np.ndarray:
        """Of each iterate the steps since the last checkpoint, if it is one (the start counts as one), else -1."""
        return _spans(steps, checkpoints(steps))

    def checkpoint(
        self, state: Ascent, gradient: jax.Array, span: jax.Array, threat: Threat, rho: jax.Array | float
    ) -> tuple[Ascent, jax.Array]:
        """Halves the step size, and goes back to the best point, where the value oscillates or stalls."""
        oscillates = state.increases <= rho * span
        stalls = ~state.halved & (state.best_value <= state.checked_value)
        halve, here = (span > 0) & (oscillates | stalls), span >= 0
        checked = state._replace(
            delta=choose(halve, state.best, state.delta),
            size=jnp.where(halve, state.size / 2, state.size),
            increases=jnp.where(here, 0, state.increases),
            checked_value=jnp.where(here, state.best_value, state.checked_value),
            halved=jnp.where(here, halve, state.halved),
        )
        return checked, choose(halve, state.best_gradient, gradient)

    def moved(self, state: Ascent, gradient: jax.Array, threat: Threat, x: jax.Array, first: jax.Array) -> jax.Array:
        """P(x_k + alpha (z - x_k) + (1 - alpha)(x_k - x_{k-1})), z the projected steepest step."""
        delta = state.delta
        z = threat.project(delta + spread(state.size) * threat.steepest(gradient), x)
        alpha = jnp.where(first, 1.0, ALPHA)
        return threat.project(delta + alpha * (z - delta) + (1.0 - alpha) * (delta - state.previous), x)


class Sparsity(Scheme):
    """Croce & Hein 2021 (arXiv:2103.01208), section 4: sparse signs, as sparse as the best point suggests."""

    def start(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Normal noise projected onto ball and box: a few components of it."""
        return threat.project(jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys), x)

    def begun(self, threat: Threat, delta: jax.Array, target: jax.Array, wrong: jax.Array, fresh: bool) -> Ascent:
        """Moves a fifth of the components at first, or what the earlier search's sparsity suggests."""
        state = super().begun(threat, delta, target, wrong, fresh)
        support = jnp.full_like(state.support, delta[0].size) if fresh else _support(delta)
        kept = FIRST_SHARE * support if fresh else support / FACTOR
        return state._replace(size=state.size / FIRST_SIZE, kept=kept, support=support)

    def spans(self, steps: int) -> np.ndarray:
        """Of each iterate the steps since the last checkpoint, if it is one (the start counts as one), else -1."""
        span = max(SPAN * steps // 100, 1)
        return _spans(steps, list(range(span, steps + 1, span)))

    def checkpoint(
        self, state: Ascent, gradient: jax.Array, span: jax.Array, threat: Threat, rho: jax.Array | float
    ) -> tuple[Ascent, jax.Array]:
        """Goes back to the best point with long steps where that has become sparser; else steps shrink."""
        here, support = span > 0, _support(state.best)
        sparser = here & (support < FEWER * state.support)
        shrunk = jnp.maximum(state.size / FACTOR, SMALLEST * threat.epsilon)
        checked = state._replace(
            delta=choose(sparser, state.best, state.delta),
            size=jnp.where(sparser, threat.epsilon, jnp.where(here, shrunk, state.size)),
            kept=jnp.where(here, support / FACTOR, state.kept),
            support=jnp.where(here, support, state.support),
        )
        return checked, choose(sparser, state.best_gradient, gradient)

    def moved(self, state: Ascent, gradient: jax.Array, threat: Threat, x: jax.Array, first: jax.Array) -> jax.Array:
        """P(x_k + eta s_k), s_k the signs of the largest components; no momentum."""
        flat = gradient.reshape(len(gradient), -1)
        signs = sparse_sign(flat, jnp.maximum(jnp.ceil(state.kept), 1.0)).reshape(gradient.shape)
        return threat.project(state.delta + spread(state.size) * signs, x)


SCHEMES: dict[NormName, Scheme] = {"linf": Momentum(), "l2": Momentum(), "l1": Sparsity()}


def checkpoints(steps: int) -> list[int]:
    """Numbers of the steps, from 1, after which the step size is reconsidered under linf and l2."""
    percent, span, found = 0, FIRST_SPAN, []
    while percent + span <= 100:
        percent += span
        found.append(-(-percent * steps // 100))
        span = max(span - SHRINKAGE, LEAST_SPAN)
    return list(dict.fromkeys(found))  # few steps make some coincide


def _spans(steps: int, at: list[int]) -> np.ndarray:
    spans, last = np.full(steps + 1, -1, np.int32), 0
    spans[0] = 0
    for checkpoint in at:
        spans[checkpoint], last = checkpoint - last, checkpoint
    return spans


def _support(delta: jax.Array) -> jax.Array:
    """Nonzero components of each example, [B]."""
    return jnp.sum(delta != 0, axis=(1, 2, 3)).astype(delta.dtype)
