"""First-order attacks: projected ascent with its field-standard settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
from pydantic import Field, PlainValidator, model_validator

from llrflow.attacks.base import Attack, aimed_class
from llrflow.base.validation import invalid, raise_at
from llrflow.components.fields import Chosen, Traced
from llrflow.components.registry import register
from llrflow.method.ascent import Carry, Goal, ProbeFactory, Search
from llrflow.method.norms import NORMS
from llrflow.method.probe import SearchProbe
from llrflow.method.term import ask
from llrflow.method.terms.classification import Targeted
from llrflow.method.threat import Threat


class GradientAttack(Search, Attack):
    """A search as an attack: an error is worth more than any value."""

    goal: ClassVar[Goal] = "error"
    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)

    @property
    def length(self) -> int:
        """Ascent steps."""
        return self.steps

    def runs(self, classes: int) -> int:
        """Restarts."""
        return self.restarts

    def finish(self, probes: ProbeFactory, threat: Threat, state: Carry) -> jax.Array:
        """The kept iterate, [B,H,W,C]."""
        return self.judged(probes, state).best

    def objective(self, probe: SearchProbe, delta: jax.Array) -> jax.Array:
        """The term that was maximised, [B]."""
        return ask(self.maximize, probe, delta).value


@register("attack", "pgd")
class PGD(GradientAttack):
    """Projected gradient ascent (Madry et al. 2018), keeping per example the best iterate of all restarts.

    Misclassified iterates come before correct ones, then the larger objective. The default objective is the
    margin, which the LLR author response found stronger than cross-entropy.
    """

    maximize: Annotated[Any, Chosen("term", default="margin")] = Field(default="margin", validate_default=True)
    """The term to maximise."""

    steps: int = Field(default=50, ge=1)
    """Number of ascent steps."""

    keep: Literal["last", "best"] = "best"
    """Keep the last iterate, or the best one visited."""

    stop: Literal["success", "never"] = "success"
    """With `keep: best`, leave an example at its first misclassified iterate, or go on to larger values."""

    def settled(self, state: Carry) -> jax.Array | None:
        """Examples that are misclassified at an iterate."""
        return state.best_wrong if self.keep == "best" and self.stop == "success" else None


@register("attack", "fgsm")
class FGSM(GradientAttack):
    """One steepest step of length epsilon from `start` (Goodfellow et al. 2015)."""

    steps: Literal[1] = 1
    """Always one."""

    reach: Annotated[float, Traced(gt=0)] = 1.0
    """Length of the step, in epsilons."""

    start: Annotated[Any, Chosen("start", default="zero")] = Field(default="zero", validate_default=True)
    """Where the step is taken from."""

    restarts: Literal[1] = 1
    """Always one."""


@register("attack", "noise")
class Noise(GradientAttack):
    """Uniform noise in the ball, no gradient: a control that any real attack must beat."""

    steps: Literal[0] = 0
    """Always none."""


class Aimed(NamedTuple):
    """A search that has a wrong class to reach."""

    carry: Carry
    target: jax.Array
    """[B]."""


Targets = int | Literal["all", "random"]


def _check_targets(raw: Any) -> Any:
    if raw in ("all", "random") or (type(raw) is int and raw >= 1):
        return raw
    raise invalid("targets", "is no choice of targets; write `all`, `random`, or how many of the likeliest classes")


@register("attack", "multi_targeted")
class MultiTargeted(PGD):
    """For every wrong class j a search that maximises z_j - z_y; the best over classes and restarts counts.

    Gowal et al. 2019 (arXiv:1910.09338); the attack that left the lowest accuracies in the LLR author response.
    """

    maximize: Annotated[Any, Chosen("term", default="margin")] = Field(default="margin", validate_default=True)
    """The term to maximise: one that takes a `target` (margin, cross_entropy, dlr), which this attack sets."""

    targets: Annotated[Targets, PlainValidator(_check_targets, json_schema_input_type=Targets)] = "all"
    """Wrong classes by their rank on the clean image: `all`, the likeliest so many, or one `random` class a restart."""

    @model_validator(mode="after")
    def _takes_a_target(self) -> MultiTargeted:
        if not isinstance(self.maximize, Targeted):
            name = self.maximize.registered_as[1]
            raise_at(("maximize", "type"), name, "target", "takes no target; choose margin, cross_entropy or dlr")
        if self.maximize.target is not None:
            raise_at(("maximize", "target"), self.maximize.target, "target", "is set by this attack; leave it out")
        return self

    @property
    def needs_classes(self) -> int:
        """What the targeted term needs."""
        return self.maximize.model_copy(update={"target": 1}).needs_classes

    def runs(self, classes: int) -> int:
        """Restarts times targets."""
        return self.restarts * self.number_of_targets(classes)

    def number_of_targets(self, classes: int) -> int:
        """Classes tried in each restart."""
        if self.targets == "random":
            return 1
        return classes - 1 if self.targets == "all" else min(int(self.targets), classes - 1)

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Aimed:
        """A start of its own for every run, and the run's target."""
        probe = probes()
        classes = probe.logits().shape[1]
        rank = run % self.number_of_targets(classes)
        if self.targets == "random":
            rank = jax.vmap(lambda key: jax.random.randint(key, (), 0, classes - 1))(probe.keys("target"))
        return Aimed(super().begin(probes, threat, keys, run), aimed_class(probe, rank))

    def advance(self, probes: ProbeFactory, threat: Threat, state: Aimed, index: jax.Array) -> Aimed:
        """One step towards the target."""
        return state._replace(carry=self._at(state.target)._step(probes, threat, state.carry, index))

    def finish(self, probes: ProbeFactory, threat: Threat, state: Aimed) -> jax.Array:
        """The kept iterate, [B,H,W,C]."""
        return self._at(state.target).judged(probes, state.carry).best

    def settled(self, state: Aimed) -> jax.Array | None:
        """Examples that are misclassified at an iterate."""
        return super().settled(state.carry)

    def objective(self, probe: SearchProbe, delta: jax.Array) -> jax.Array:
        """The untargeted term, by which runs of different targets are compared, [B]."""
        return ask(self.maximize, probe, delta).value

    def _step(self, probes: ProbeFactory, threat: Threat, carry: Carry, index: jax.Array) -> Carry:
        return super().advance(probes, threat, carry, index)

    def _at(self, target: jax.Array) -> MultiTargeted:
        return self.model_copy(update={"maximize": self.maximize.model_copy(update={"target": target})})
