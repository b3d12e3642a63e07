"""Auto-PGD: projected ascent with momentum that chooses its own step sizes."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from llrflow.attacks.base import Attack, aimed_class
from llrflow.attacks.schemes import SCHEMES, Ascent, Scheme
from llrflow.components.fields import Traced
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, gradient_over_draws, misclassified
from llrflow.method.batched import choose
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import dlr, targeted_dlr
from llrflow.method.threat import Threat

LARGER, SHARE = (3.0, 2.0, 1.0), 0.3
"""Radii of the balls that `larger_balls` searches, in epsilons, and the share of the steps in each but the last."""


class _Iterate(NamedTuple):
    """Where in its search an iterate stands."""

    span: Any
    """As `Scheme.spans`."""
    number: Any
    """From 0, in each ball."""
    ends: Any
    """Whether the next search begins here, in a smaller ball."""
    radius: Any
    """Of the ball, in epsilons."""


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

    Under l1 (Croce & Hein 2021, arXiv:2103.01208) x_{k+1} = P(x_k + eta s_k), s the signs of the largest components of
    the gradient over their number: a fifth of all at first, then 2/3 of the nonzero ones of the best point. Every 4 %
    of the steps the search goes on from the best point with eta = epsilon if that has less than 95 % of the nonzero
    components that it had; else eta is divided by 1.5, to epsilon / 10 at least. x_0 is normal noise, projected.
    """

    norms: ClassVar[tuple[str, ...]] = tuple(SCHEMES)

    steps: int = Field(default=100, ge=1)
    """Number of ascent steps of a run."""

    restarts: int = Field(default=1, ge=1)
    """Independent starts, of which each example keeps its best."""

    rho: Annotated[float, Traced(ge=0, le=1, schedule=False)] = 0.75
    """Share of steps between two checkpoints that must increase the loss, else the step size is halved."""

    larger_balls: Annotated[bool, Field(exclude_if=lambda larger: not larger)] = False
    """Spend 30 % of the steps in a ball of 3 epsilon and 30 % in one of 2, each search beginning at the best point of
    the one before, projected: what AutoAttack does under l1 (Croce & Hein 2021, section 4.3)."""

    @property
    def length(self) -> int:
        """Ascent steps, and one look at where each larger ball's search ended."""
        return sum(steps for _, steps in self._parts) + len(self._parts) - 1

    @property
    def _parts(self) -> list[tuple[float, int]]:
        """(radius in epsilons, steps) of each search."""
        part = math.ceil(SHARE * self.steps)
        if not self.larger_balls or self.steps <= 2 * part:
            return [(1.0, self.steps)]
        return [*((radius, part) for radius in LARGER[:-1]), (1.0, self.steps - 2 * part)]

    def _iterates(self, scheme: Scheme) -> _Iterate:
        """Of all iterates of a run, [length + 1]."""
        found = []
        for radius, steps in self._parts:
            number = np.arange(steps + 1)
            ends = (number == steps) & (radius > 1)
            found.append(_Iterate(scheme.spans(steps), number, ends, np.full(steps + 1, radius)))
        return _Iterate(*map(np.concatenate, zip(*found, strict=True)))

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
        """At noise, from `keys` [B]."""
        probe, scheme = probes(), SCHEMES[threat.norm]
        ball = threat.of_radius(self._parts[0][0] * threat.epsilon)
        start, wrong = scheme.start(ball, probe.x, keys), misclassified(probe.logits(), probe.y)
        return scheme.begun(ball, start, self.aim(probe, run), wrong, fresh=len(self._parts) == 1)

    def advance(self, probes: ProbeFactory, threat: Threat, state: Ascent, index: jax.Array) -> Ascent:
        """Judge the iterate, adapt the step size where `index` is a checkpoint, and take one step."""
        scheme, alone = SCHEMES[threat.norm], len(self._parts) == 1
        here = jax.tree.map(lambda of_each: jnp.asarray(of_each)[index], self._iterates(scheme))
        ball = threat if alone else threat.of_radius(here.radius * threat.epsilon)

        judge = partial(self._judge, target=state.target)
        gradient, value, wrong = gradient_over_draws(probes, judge, state.delta)
        state = state._replace(value=value, increases=state.increases + (value > state.value))
        state = _keep_better(state, gradient, value, wrong & (here.radius == 1))
        x = probes().x

        def stepped(state: Ascent) -> Ascent:
            checked, along = scheme.checkpoint(state, gradient, here.span, ball, self.rho)
            moved = scheme.moved(checked, along, ball, x, here.number == 0)
            return checked._replace(delta=moved, previous=checked.delta)

        def narrowed(state: Ascent) -> Ascent:
            inner = threat.of_radius((here.radius - 1) * threat.epsilon)
            return scheme.begun(inner, inner.project(state.best, x), state.target, state.wrong, fresh=False)

        return stepped(state) if alone else jax.lax.cond(here.ends, narrowed, stepped, state)

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


def _keep_better(state: Ascent, gradient: jax.Array, value: jax.Array, wrong: jax.Array) -> Ascent:
    better = value > state.best_value
    return state._replace(
        best=choose(better, state.delta, state.best),
        best_gradient=choose(better, gradient, state.best_gradient),
        best_value=jnp.where(better, value, state.best_value),
        adversarial=choose(wrong, state.delta, state.adversarial),
        wrong=state.wrong | wrong,
    )
