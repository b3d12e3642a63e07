"""Auto-PGD: projected ascent with momentum that chooses its own step sizes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from llrflow.attacks.base import Attack, aimed_class
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, gradient_over_draws, misclassified
from llrflow.method.batched import choose, spread
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import dlr, targeted_dlr
from llrflow.method.threat import Threat

# Croce & Hein 2020, section 3.1 and appendix C.
FIRST_SIZE = 2.0
"""The first step size, in epsilons."""
ALPHA = 0.75
"""Weight of the new step; the previous update keeps the rest (momentum)."""
FIRST_SPAN, SHRINKAGE, LEAST_SPAN = 22, 3, 6
"""Spans between checkpoints in per cent of the steps: the first, how much shorter each next one is, the shortest."""


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


class APGD(Attack):
    r"""Base of the APGD attacks (Croce & Hein 2020, arXiv:2003.01690, algorithm 1), each of which names its loss f.

    $$z = P(x_k + \eta s_k), \quad x_{k+1} = P(x_k + \alpha (z - x_k) + (1 - \alpha)(x_k - x_{k-1})), \alpha = 0.75,$$

    s the steepest direction of f, P the projection, eta = 2 epsilon at first. At checkpoints eta is halved, and the
    search goes on from the best point, if too few steps since the last one increased f, or if neither eta nor the best
    value changed since.

    As in the authors' code a checkpoint acts on the iterate it falls on (the paper: one step later), a share of
    increases equal to rho halves too, and x_0 is uniform (l2: Gaussian) noise scaled to norm epsilon. As in the paper
    checkpoints are fractions of the steps, which the code rounds down to whole steps early (the same for 100 steps),
    the first increase is that over f(x_0), where the code compares with an element of another step, and the second
    condition counts from step 0. Images that are misclassified as they stand are left unperturbed.
    """

    steps: int = Field(default=100, ge=1)
    """Number of ascent steps of a run."""

    restarts: int = Field(default=1, ge=1)
    """Independent starts, of which each example keeps its best."""

    rho: Annotated[float, Traced(ge=0, le=1, schedule=False)] = 0.75
    """Share of steps between two checkpoints that must increase the loss, else the step size is halved."""

    @property
    def length(self) -> int:
        """Ascent steps."""
        return self.steps

    def runs(self, classes: int) -> int:
        """Restarts."""
        return self.restarts

    def value(self, probe: SearchProbe, delta: jax.Array, target: jax.Array) -> jax.Array:
        """The loss f that is maximised, [B]."""
        raise NotImplementedError

    def aim(self, probe: SearchProbe, run: jax.Array) -> jax.Array:
        """The class that a run is about, [B]."""
        return probe.y

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Ascent:
        """At noise of norm epsilon, from `keys` [B]."""
        probe = probes()
        x = probe.x
        noise = threat.uniform(keys, x)
        start = threat.project(noise * spread(threat.epsilon / jnp.maximum(threat.distance(noise), 1e-12)), x)
        zero, nothing, no = jnp.zeros_like(x), jnp.full(len(x), -jnp.inf, x.dtype), jnp.zeros(len(x), bool)
        return Ascent(
            delta=start,
            previous=start,
            target=self.aim(probe, run),
            size=jnp.full(len(x), FIRST_SIZE * threat.epsilon, x.dtype),
            best=zero,
            best_gradient=zero,
            best_value=nothing,
            adversarial=zero,
            wrong=misclassified(probe.logits(), probe.y),
            value=-nothing,
            increases=jnp.zeros(len(x), jnp.int32),
            checked_value=nothing,
            halved=no,
        )

    def advance(self, probes: ProbeFactory, threat: Threat, state: Ascent, index: jax.Array) -> Ascent:
        """Judge the iterate, adapt the step size where `index` is a checkpoint, and take one step."""

        judge = partial(self._judge, target=state.target)
        gradient, value, wrong = gradient_over_draws(probes, judge, state.delta)
        state = state._replace(value=value, increases=state.increases + (value > state.value))
        state = _keep_better(state, gradient, value, wrong)
        state, gradient = self._checkpoint(state, gradient, jnp.asarray(_spans(self.steps))[index])
        x, delta = probes().x, state.delta
        z = threat.project(delta + spread(state.size) * threat.steepest(gradient), x)
        alpha = jnp.where(index == 0, 1.0, ALPHA)
        moved = delta + alpha * (z - delta) + (1.0 - alpha) * (delta - state.previous)
        return state._replace(delta=threat.project(moved, x), previous=delta)

    def finish(self, probes: ProbeFactory, threat: Threat, state: Ascent) -> jax.Array:
        """A misclassified iterate, or that of the largest value, [B,H,W,C]."""
        value, wrong = self._judge(probes(), state.delta, state.target)
        last = _keep_better(state, state.best_gradient, value, wrong & ~state.wrong)
        return choose(last.wrong, last.adversarial, last.best)

    def settled(self, state: Ascent) -> jax.Array | None:
        """Examples that are misclassified at an iterate."""
        return state.wrong

    def objective(self, probe: SearchProbe, delta: jax.Array) -> jax.Array:
        """The loss that was maximised, [B]."""
        return self.value(probe, delta, probe.y)

    def _judge(self, probe: SearchProbe, delta: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.value(probe, delta, target), misclassified(probe.logits(delta), probe.y)

    def _checkpoint(self, state: Ascent, gradient: jax.Array, span: jax.Array) -> tuple[Ascent, jax.Array]:
        """The state and the gradient to go on with, where the last checkpoint was `span` steps ago."""
        oscillates = state.increases <= self.rho * span
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


@register("attack", "apgd_ce")
class APGDCE(APGD):
    """APGD that maximises the cross-entropy (Croce & Hein 2020, arXiv:2003.01690)."""

    def value(self, probe: SearchProbe, delta: jax.Array, target: jax.Array) -> jax.Array:
        """l(x + delta) in nats, [B]."""
        return probe.loss(delta)


@register("attack", "apgd_dlr")
class APGDDLR(APGD):
    """APGD that maximises the difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690, equation 6).

    -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)) with z_(i) the i-th largest logit; needs 3 classes.
    """

    def value(self, probe: SearchProbe, delta: jax.Array, target: jax.Array) -> jax.Array:
        """The ratio, [B]."""
        return dlr(probe.logits(delta), probe.y)

    @property
    def needs_classes(self) -> int:
        """Least number of classes."""
        return 3


@register("attack", "apgd_t")
class APGDT(APGD):
    """APGD on the targeted difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690, equation 7).

    For each of the likeliest wrong classes t of the clean image it maximises
    -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) with z_(i) the i-th largest logit; needs 4 classes. An example is done
    as soon as any wrong class is predicted; others keep the run with the largest untargeted ratio.
    """

    targets: int = Field(default=9, ge=1)
    """Number of wrong classes aimed at in turn, the likeliest first; at most all of them."""

    def runs(self, classes: int) -> int:
        """Restarts times targets."""
        return self.restarts * min(self.targets, classes - 1)

    def aim(self, probe: SearchProbe, run: jax.Array) -> jax.Array:
        """The run's wrong class, [B]."""
        return aimed_class(probe, run % min(self.targets, probe.logits().shape[1] - 1))

    def value(self, probe: SearchProbe, delta: jax.Array, target: jax.Array) -> jax.Array:
        """The targeted ratio, [B]."""
        return targeted_dlr(probe.logits(delta), probe.y, target)

    def objective(self, probe: SearchProbe, delta: jax.Array) -> jax.Array:
        """The untargeted ratio, by which runs of different targets are compared, [B]."""
        return dlr(probe.logits(delta), probe.y)

    @property
    def needs_classes(self) -> int:
        """Least number of classes."""
        return 4


def checkpoints(steps: int) -> list[int]:
    """Numbers of the steps, from 1, after which the step size is reconsidered."""
    percent, span, found = 0, FIRST_SPAN, []
    while percent + span <= 100:
        percent += span
        found.append(-(-percent * steps // 100))
        span = max(span - SHRINKAGE, LEAST_SPAN)
    return list(dict.fromkeys(found))  # few steps make some coincide


def _spans(steps: int) -> np.ndarray:
    """Of each iterate the steps since the last checkpoint, if it is one (the start counts as one), else -1."""
    spans, last = np.full(steps + 1, -1, np.int32), 0
    spans[0] = 0
    for checkpoint in checkpoints(steps):
        spans[checkpoint], last = checkpoint - last, checkpoint
    return spans


def _keep_better(state: Ascent, gradient: jax.Array, value: jax.Array, wrong: jax.Array) -> Ascent:
    better = value > state.best_value
    return state._replace(
        best=choose(better, state.delta, state.best),
        best_gradient=choose(better, gradient, state.best_gradient),
        best_value=jnp.where(better, value, state.best_value),
        adversarial=choose(wrong, state.delta, state.adversarial),
        wrong=state.wrong | wrong,
    )
