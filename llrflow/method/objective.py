"""The training objective: a loss plus weighted terms at shared perturbations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.base.norms import NormName
from llrflow.components.calls import placed
from llrflow.components.fields import Chosen, Traced
from llrflow.components.registry import Component, Name
from llrflow.method.ascent import Search, prefer, searched
from llrflow.method.mixture import Member, drawn, maximise_mixed
from llrflow.method.probe import Probe, SearchProbe, asked_constants
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


class Choice(Component):
    """For each example one of several perturbations: training for the union of their balls.

    Their searches maximise the same term. `take: strongest` makes all of them (`max` of Tramer & Boneh 2019,
    arXiv:1904.13000), at the cost of all and of one forward pass each. `take: drawn` makes one of each example's, at
    the cost of the longest (Madaan et al. 2021, arXiv:2006.12135, who draw one for a whole batch).
    """

    of: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    """Names of the perturbations."""

    take: Literal["strongest", "drawn"]
    """The one with the highest value of the term that they maximise, or one drawn uniformly in every step."""


class Objective(Component):
    """mean over the batch of  loss + sum_t weight_t * term_t(delta_at_t)."""

    loss: Annotated[Any, Chosen("term", TermEntry, "cross_entropy")] = Field(
        default="cross_entropy", validate_default=True
    )
    """The classification loss, and where it is evaluated (`at`): clean, or an adversarial perturbation."""

    perturbations: dict[Name, Perturbation] = {}
    """Named inner maximisations."""

    choices: Annotated[dict[Name, Choice], Field(exclude_if=lambda choices: not choices)] = {}
    """Named choices among these, where `at` of a term may name one."""

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

    def used(self) -> set[str]:
        """The perturbations and choices that the loss or a term stands at."""
        return {term.at for term in self.entries().values()} - {CLEAN}

    def points(self) -> list[str]:
        """Those where they may stand: choices, and perturbations that are not there for a choice alone."""
        chosen = {name for choice in self.choices.values() for name in choice.of} - self.used()
        return [name for name in (*self.perturbations, *self.choices) if name not in chosen]

    def members(self, take: Literal["strongest", "drawn"]) -> dict[str, tuple[str, ...]]:
        """Names of the perturbations among which each choice of a kind chooses."""
        return {name: choice.of for name, choice in self.choices.items() if choice.take == take}

    def alone(self) -> list[str]:
        """The perturbations that are searched for by themselves: all but those from which examples are drawn."""
        wanted = {*self.points(), *(name for of in self.members("strongest").values() for name in of)}
        return [name for name in self.perturbations if name in wanted]


def perturb(
    objective: Objective,
    probe: Probe,
    threat: Threat,
    keys: Callable[[str], jax.Array],
    by: Literal["unroll", "scan"],
) -> dict[str, jax.Array]:
    """The perturbations [B,H,W,C] at which terms stand, by name; constants to any later derivative.

    keys(name) are per-example keys [B] for one perturbation or choice. Searches see the network as `probe` does, and
    take what they need of the clean images from its clean pass.
    """

    def probes(name: str, search: Perturbation, ball: Threat, judged: bool) -> Callable[[], SearchProbe]:
        asked: set[str] = set()
        if search.steps or search.restarts > 1 or judged:  # else the start is the result, whatever is maximised
            tracing = probe.searching(None, ball)
            asked = asked_constants(lambda p, delta: ask(search.maximize, p, delta).value, tracing)
            probe.searches[name] = [made for made in tracing.passes.values() if made.at != CLEAN]
        return partial(probe.searching, probe.constants(asked), ball)

    compared, found = {name for of in objective.members("strongest").values() for name in of}, {}
    for name in objective.alone():
        search = objective.perturbations[name]
        ball = search.ball(threat)
        with placed(f"objective.perturbations.{name}"):
            seen = probes(name, search, ball, name in compared)
            found[name] = searched(search, seen, ball, keys(name), by)
    for name, of in objective.members("strongest").items():
        found[name] = reduce(partial(prefer, goal="value"), (found[member] for member in of))
    deltas = {name: jax.lax.stop_gradient(carry.best) for name, carry in found.items()}
    for name, of in objective.members("drawn").items():
        searches = [objective.perturbations[member] for member in of]
        members = [Member(s, s.ball(threat), keys(member)) for s, member in zip(searches, of, strict=True)]
        with placed(f"objective.choices.{name}"):
            longest = max(searches, key=lambda search: search.steps)
            seen = probes(name, longest, threat, judged=False)
            deltas[name] = maximise_mixed(members, seen, drawn(keys(name), len(of)), by)
    return {name: deltas[name] for name in objective.points()}


def foresee(objective: Objective, probe: Probe, terms: Probe, states: Mapping[str, Any], classes: int) -> None:
    """Tell the probes of `evaluate` where the objective will ask for an input gradient, by tracing it on sketches."""
    sketches = {made: made.sketch(classes) for made in (probe, terms)}
    deltas = {name: jnp.zeros_like(probe.x) for name in objective.points()}
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
