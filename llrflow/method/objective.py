"""The training objective: a loss plus weighted terms at shared perturbations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.base.norms import NormName
from llrflow.components.calls import placed
from llrflow.components.fields import Chosen, Traced
from llrflow.components.registry import Component, Name
from llrflow.method.ascent import Search, maximise
from llrflow.method.probe import Probe, asked_constants
from llrflow.method.term import ask
from llrflow.method.threat import Threat, clip_to_box

CLEAN, LOSS = "clean", "loss"


class TermEntry(Component):
    """A term's place in the objective: where it is evaluated and how much it weighs."""

    at: str = CLEAN
    """`clean`, or the name of a perturbation."""

    weight: Annotated[float, Traced()] = 1.0
    """Factor of the term in the objective; a number or a schedule over training steps."""

    allow_negative: bool = False
    """Allow a negative weight, which rewards what the term measures."""


class Perturbation(Search):
    """A named perturbation that terms share: the result of one search per batch."""

    steps: int = Field(default=10, ge=0)
    """Number of ascent steps; 0 keeps the start."""

    norm: NormName | None = None
    """Norm of this search's ball; default the threat's. Another norm needs an epsilon of its own."""

    epsilon: Annotated[float | None, Traced(ge=0)] = None
    """Radius of this search, a number or a schedule (warm-up); default the threat's."""

    onto: Literal["ball", "box"] = "ball"
    """Project every iterate onto the ball, or only onto the pixel box (N-FGSM, de Jorge et al. 2022)."""

    def ball(self, threat: Threat) -> Threat:
        """The ball that this search runs in."""
        own = {"norm": self.norm, "epsilon": self.epsilon}
        return threat.model_copy(update={name: value for name, value in own.items() if value is not None})

    def project(self, threat: Threat, delta: jax.Array, x: jax.Array) -> jax.Array:
        """The iterate inside its ball and the box, or the box alone."""
        return super().project(threat, delta, x) if self.onto == "ball" else clip_to_box(delta, x)


class Objective(Component):
    """mean over the batch of  loss + sum_t weight_t * term_t(delta_at_t)."""

    loss: Annotated[Any, Chosen("term", TermEntry, "cross_entropy")] = Field(
        default="cross_entropy", validate_default=True
    )
    """The classification loss, and where it is evaluated (`at`): clean, or an adversarial perturbation."""

    perturbations: dict[Name, Perturbation] = {}
    """Named inner maximisations."""

    terms: dict[Name, Annotated[Any, Chosen("term", TermEntry)]] = {}
    """Named penalties."""

    gradient: Annotated[Any, Chosen("gradient", default="plain")] = Field(default="plain", validate_default=True)
    """How the parameter gradient is computed; plugins may wrap it (adversarial weight perturbation)."""

    def entries(self) -> dict[str, Any]:
        """The loss (as `loss`) and all terms."""
        return {LOSS: self.loss, **self.terms}

    def places(self) -> dict[str, str]:
        """Dotted path of the loss and of each term in a spec, by name."""
        return {LOSS: "objective.loss", **{name: f"objective.terms.{name}" for name in self.terms}}


def perturb(
    objective: Objective,
    probe: Probe,
    threat: Threat,
    keys: Callable[[str], jax.Array],
    by: Literal["unroll", "scan"],
) -> dict[str, jax.Array]:
    """The perturbations [B,H,W,C] that the objective's searches find, by name; constants to any later derivative.

    keys(name) are per-example keys [B] for one perturbation. Searches see the network as `probe` does, and take what
    they need of the clean images from its clean pass.
    """
    deltas: dict[str, jax.Array] = {}
    for name, search in objective.perturbations.items():
        ball = search.ball(threat)
        with placed(f"objective.perturbations.{name}"):
            asked: set[str] = set()
            if search.steps or search.restarts > 1:  # else the start is the result, whatever is maximised
                tracing = probe.searching(None, ball)
                asked = asked_constants(lambda p, delta, term=search.maximize: ask(term, p, delta).value, tracing)
                probe.searches[name] = [made for made in tracing.passes.values() if made.at != CLEAN]
            searching = partial(probe.searching, probe.constants(asked), ball)
            deltas[name] = maximise(search, searching, ball, keys(name), by)
    return deltas


def foresee(objective: Objective, probe: Probe, terms: Probe, states: Mapping[str, Any], classes: int) -> None:
    """Tell the probes of `evaluate` where the objective will ask for an input gradient, by tracing it on sketches."""
    sketches = {made: made.sketch(classes) for made in (probe, terms)}
    deltas = {name: jnp.zeros_like(probe.x) for name in objective.perturbations}
    jax.eval_shape(lambda: evaluate(objective, sketches[probe], deltas, states, sketches[terms]).value)
    for made, sketched in sketches.items():
        made.expect(sketched)


class Outcome(NamedTuple):
    """What an objective amounts to on one batch."""

    value: jax.Array
    """The objective, [B]."""
    metrics: dict[str, jax.Array]
    """`loss` and each term by name, unweighted, and the terms' own metrics: [B] or scalars."""
    states: dict[str, Any]
    """The next running states of stateful terms, by name."""
    logits: jax.Array
    """[B,K], where the loss stands."""


def evaluate(
    objective: Objective,
    probe: Probe,
    perturbations: Mapping[str, jax.Array],
    states: Mapping[str, Any],
    terms: Probe | None = None,
) -> Outcome:
    """The objective at given perturbations; `states` holds the running state of each stateful term.

    `terms` is the probe of the terms where they see the network otherwise than the loss does.
    """
    terms = probe if terms is None else terms
    for name, delta in perturbations.items():
        probe.name(delta, name)
        terms.name(delta, name)
    deltas: dict[str, jax.Array | None] = {CLEAN: None, **perturbations}
    total: Any = 0.0
    metrics: dict[str, jax.Array] = {}
    next_states: dict[str, Any] = {}
    for name, place in objective.places().items():
        term, asked = objective.entries()[name], probe if name == LOSS else terms
        with placed(place):
            answer = ask(term, asked, deltas[term.at], states.get(name))
        total += term.weight * answer.value
        metrics |= {name: answer.value, **{f"{name}.{own}": part for own, part in answer.metrics.items()}}
        if name in states:
            next_states[name] = jax.lax.stop_gradient(answer.state)
    return Outcome(total, metrics, next_states, probe.logits(deltas[objective.loss.at]))
