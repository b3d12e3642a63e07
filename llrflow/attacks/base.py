"""What an attack is: a per-example search of a fixed number of steps, against a model whose parameters are constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.base.validation import listing
from llrflow.components.registry import Component
from llrflow.method.ascent import ProbeFactory, drawn_probes
from llrflow.method.labels import at_label
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.classification import margin, wrong_classes
from llrflow.method.threat import Threat


class StepCost(NamedTuple):
    """What one step asks of the model for each example."""

    queries: int
    """Forward passes, those of gradients included."""
    gradients: int
    """Backward passes to the image."""

    @property
    def forwards(self) -> int:
        """Forward-equivalents."""
        return self.queries + self.gradients

    def over(self, draws: int) -> StepCost:
        """With the pass that is differentiated taken under so many draws of the network."""
        return StepCost(self.queries + (draws - 1 if self.gradients else 0), self.gradients * draws)


def mean_logits(probes: ProbeFactory, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f(x + delta) averaged over the network's draws, to be linearised, and of one draw, to be judged; [B,K] each."""
    drawn = [probe.logits(delta) for probe in drawn_probes(probes)]
    return jnp.mean(jnp.stack(drawn), axis=0), drawn[0]


def aimed_class(probe: SearchProbe, rank: jax.Array) -> jax.Array:
    """The wrong class of that rank on the clean image, 0 the likeliest: [B] -> [B]."""
    return at_label(wrong_classes(probe.logits(), probe.y), rank.astype(int))


class Attack(Component):
    """Base of attacks. One *run* (a restart, a target) is `begin`, `length` times `advance`, `finish`.

    All three are pure and per example: every array of the state that `begin` makes has the batch as its first axis,
    and no example sees another. `probes()` makes a SearchProbe: `logits(delta)` [B,K], `loss(delta)` [B] and their
    derivatives with respect to delta [B,H,W,C]; what it says of the clean images (`delta` None) costs nothing. It is of
    one draw of a stochastic network, anew in each step: `llrflow.method.ascent.gradient_over_draws` averages gradients.
    The program around an attack (`llrflow.attacks.program`) compiles it, drops settled examples, projects and judges
    the result, and keeps each example's best run.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """Norms of the threat that the attack knows."""

    minimum_norm: ClassVar[bool] = False
    """Whether it looks for the nearest adversarial image in the box, and not for any within epsilon."""

    step_cost: ClassVar[StepCost] = StepCost(1, 1)
    """What one step asks of the model."""

    needs_surrogate: ClassVar[bool] = False
    """Whether it searches on another model than the one it attacks."""

    eot: int = Field(default=1, ge=1)
    """Draws of a stochastic model over which each gradient is averaged (expectation over transformation, Athalye et al.
    2018). Values and verdicts are of single draws; no effect on a deterministic model, or without gradients."""

    @property
    def white_box(self) -> bool:
        """Whether it sees gradients of the attacked model."""
        return self.step_cost.gradients > 0 and self.length > 0 and not self.needs_surrogate

    @property
    def length(self) -> int:
        """Steps of one run."""
        raise NotImplementedError

    def unknown(self, norm: str) -> tuple[str, str] | None:
        """What is wrong with a threat of that norm, and what to do; None where the attack knows it."""
        if norm in self.norms:
            return None
        return f"knows no {norm} threat", f"choose an attack for {norm}, or one of its norms: {listing(self.norms)}"

    def runs(self, classes: int) -> int:
        """Runs of an example that stays correct, on a model of so many classes: restarts, targets."""
        return 1

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Any:
        """The state before the first step; `keys` [B] belong to each example's run, `run` [B] is its number."""
        raise NotImplementedError

    def advance(self, probes: ProbeFactory, threat: Threat, state: Any, index: jax.Array) -> Any:
        """The state after step number `index` (a scalar from 0)."""
        raise NotImplementedError

    def finish(self, probes: ProbeFactory, threat: Threat, state: Any) -> jax.Array:
        """The perturbation that was found, [B,H,W,C]; a minimum-norm attack may leave the ball, none the box."""
        raise NotImplementedError

    def settled(self, state: Any) -> jax.Array | None:
        """Examples [B] that further steps would not change for the better; None where that never happens.

        Not asked on a stochastic network, where the next draw may say otherwise.
        """
        return None

    def objective(self, probe: SearchProbe, delta: jax.Array) -> jax.Array:
        """The value [B] by which runs that agree in success are ranked (of a minimum-norm attack: -distance)."""
        return margin(probe.logits(delta), probe.y)

    def stages(self, threat: Threat, classes: int) -> Mapping[str, Attack]:
        """The attacks it consists of, each run on what the earlier ones left correct; itself, if it is one."""
        return {"": self}

    def forwards(self, threat: Threat, classes: int) -> int:
        """Forward-equivalents spent on an example that stays correct."""
        return sum(s.runs(classes) * s.length * s.step_cost.forwards for s in self.stages(threat, classes).values())
