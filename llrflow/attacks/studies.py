"""Studies of a trained model: how accuracy falls as the attack grows, how linear the loss is, what it looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax
import numpy as np
from pydantic import Field, model_validator

from llrflow.attacks.gradient import PGD
from llrflow.attacks.trial_attacks import Subject, TrialAttacks
from llrflow.base.validation import raise_at
from llrflow.components.fields import Chosen
from llrflow.components.registry import Component
from llrflow.method.ascent import Goal
from llrflow.method.threat import Threat

Counts = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Factors = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class Study(Component):
    """Base of studies: `run(subject, report)` returns plain data, and calls report(parts done) on the way."""

    title: ClassVar[str]

    examples: int = Field(default=1000, ge=1)
    """Correctly classified test images to study, evenly spread over them."""

    @property
    def parts(self) -> int:
        """Attacks that `run` makes."""
        raise NotImplementedError

    def run(self, subject: Subject, report: Callable[[int], None]) -> dict[str, Any]:
        """The results, as JSON takes them."""
        raise NotImplementedError


class Strength(Study):
    """Accuracy on images that are classified correctly, as steps, restarts and epsilon of one attack grow."""

    title: ClassVar[str] = "strength"

    attack: Annotated[Any, Chosen("attack", default="pgd")] = Field(default="pgd", validate_default=True)
    """A `pgd` attack: its steps hold where restarts and epsilon grow."""

    steps: Counts = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of steps, from one start. A step of size `auto` shrinks as they grow."""

    restarts: Counts = (1, 2, 5, 10, 20)
    """Numbers of starts."""

    epsilons: Factors = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Multiples of the threat's epsilon, from one start."""

    @model_validator(mode="after")
    def _is_pgd(self) -> Strength:
        if type(self.attack) is not PGD:
            raise_at(("attack", "type"), self.attack.registered_as[1], "attack", "has no strength to vary; choose pgd")
        if self.attack.drops:
            raise_at(("attack", "drops"), list(self.attack.drops), "drops", "cannot be studied here; leave it out")
        for name in ("steps", "restarts", "epsilons"):
            if min(getattr(self, name)) <= 0:
                raise_at((name,), list(getattr(self, name)), "positive", "must hold positive numbers")
        return self

    @property
    def parts(self) -> int:
        """One for each number."""
        return len(self.steps) + len(self.restarts) + len(self.epsilons)

    def run(self, subject: Subject, report: Callable[[int], None]) -> dict[str, Any]:
        """Curves: lists of {steps | restarts | epsilon, accuracy}."""
        trials, epsilon, done = TrialAttacks(subject), float(subject.threat.epsilon), 0
        base = self.attack.model_copy(update={"restarts": 1})

        def accuracy(steps: int, factor: float, restarts: int, found: Any = None) -> tuple[float, Any]:
            nonlocal done
            ball = _scaled(subject.threat, factor)
            config = _sized(base, steps, float(ball.epsilon)) | {"restarts": restarts}
            sized = hasattr(base.step, "size")  # other steps may depend on their number: a program for each
            found = trials.attack("pgd" if sized else f"pgd {steps}", config, ball, into=found)
            done += 1
            report(done)
            return float(1 - found.arrays["wrong"].mean()), found

        result: dict[str, Any] = {"examples": len(subject.labels), "attack": self.attack.model_dump()}
        result["steps"] = [{"steps": n, "accuracy": accuracy(n, 1.0, 1)[0]} for n in sorted(self.steps)]
        result["restarts"], found = [], None
        for count in sorted(self.restarts):
            share, found = accuracy(base.steps, 1.0, count, found)
            result["restarts"].append({"restarts": count, "accuracy": share})
        factors = sorted(self.epsilons)
        result["epsilon"] = [{"epsilon": f * epsilon, "accuracy": accuracy(base.steps, f, 1)[0]} for f in factors]
        return result


class Largest(PGD):
    """A search for the largest value, whether or not the model errs there."""

    goal: ClassVar[Goal] = "value"


class Linearity(Study):
    """g(delta; x) = |l(x+delta) - l(x) - <delta, grad l(x)>| for several perturbations and radii (Qin et al. 2019).

    `relative` is g over |l(x+delta) - l(x)|: 0 where one gradient step is the best attack, 1 where the gradient says
    nothing of it. `gamma` is g at the perturbation that a search for its maximum found: a lower bound of gamma(eps, x).
    """

    title: ClassVar[str] = "linearity"

    radii: Factors = (0.25, 0.5, 1.0)
    """Multiples of the threat's epsilon."""

    steps: int = Field(default=20, ge=1)
    """Steps of the searches by PGD, for the largest loss and for the largest g."""

    @model_validator(mode="after")
    def _positive(self) -> Linearity:
        if min(self.radii) <= 0:
            raise_at(("radii",), list(self.radii), "positive", "must hold positive numbers")
        return self

    @property
    def parts(self) -> int:
        """Four perturbations for each radius."""
        return 4 * len(self.radii)

    def run(self, subject: Subject, report: Callable[[int], None]) -> dict[str, Any]:
        """By perturbation a list of {epsilon, gamma, relative}, each with mean and quantiles, in nats."""
        trials, done = TrialAttacks(subject), 0
        clean = trials.reference(subject.key).loss
        search = {"steps": self.steps, "stop": "never"}
        found: dict[str, list[Any]] = {"random": [], "fgsm": [], "pgd": [], "gamma": []}
        for factor in sorted(self.radii):
            ball = _scaled(subject.threat, factor)
            for name, config in (
                ("random", {"type": "noise"}),
                ("fgsm", {"type": "fgsm"}),
                ("pgd", PGD(maximize="cross_entropy", **search)),
                ("gamma", Largest(maximize="local_linearity", **search)),
            ):
                arrays = trials.attack(name, config, ball).arrays
                relative = arrays["linearity"] / np.maximum(np.abs(arrays["loss"] - clean), 1e-12)
                both = {"gamma": statistics(arrays["linearity"]), "relative": statistics(relative)}
                found[name].append({"epsilon": float(ball.epsilon), **both})
                done += 1
                report(done)
        return {"examples": len(subject.labels), "perturbations": found}


class Surface(Study):
    """The loss around single images: along the perturbation of an attack, and along a random one of the same length.

    Both axes are in multiples of epsilon; images are cut to [0,1].
    """

    title: ClassVar[str] = "surface"

    examples: int = Field(default=4, ge=1)
    """Images to look at."""

    attack: Annotated[Any, Chosen("attack", default="pgd")] = Field(default="pgd", validate_default=True)
    """What gives the first direction: an attack with a fixed budget."""

    reach: Annotated[float, Field(gt=0)] = 1.5
    """How far to look, in epsilons."""

    points: int = Field(default=21, ge=3)
    """Points along each axis."""

    @model_validator(mode="after")
    def _bounded(self) -> Surface:
        if self.attack.minimum_norm or self.attack.needs_surrogate or len(self.attack.stages(_UNIT, 10)) > 1:
            raise_at(("attack", "type"), self.attack.registered_as[1], "attack", "gives no one direction; choose pgd")
        return self

    @property
    def parts(self) -> int:
        """The attack, and the rows of the grid."""
        return 1 + self.points

    def run(self, subject: Subject, report: Callable[[int], None]) -> dict[str, Any]:
        """{axis, images: [{id, label, loss [P][P]}]}: rows along the attack, columns along the random direction."""
        trials = TrialAttacks(subject)
        delta = trials.attack("attack", self.attack).delta
        epsilon, found = float(subject.threat.epsilon), np.asarray(subject.threat.distance(jax.numpy.asarray(delta)))
        delta = delta * (epsilon / np.maximum(found, 1e-12))[:, None, None, None]  # it may have stopped inside the ball
        report(1)
        rng = np.random.Generator(np.random.Philox(key=int(subject.key[-1])))
        noise = rng.choice(np.array([-1, 1], np.float32), delta.shape)
        lengths = np.asarray(subject.threat.distance(jax.numpy.asarray(noise)))
        other = noise * (epsilon / lengths)[:, None, None, None]
        axis: list[float] = np.linspace(-self.reach, self.reach, self.points).tolist()
        rows = []
        for done, along in enumerate(axis):
            row = [trials.losses(along * delta + across * other) for across in axis]
            rows.append(np.stack(row, axis=1))
            report(2 + done)
        losses = np.stack(rows, axis=1)
        images = [
            {"id": int(i), "label": int(y), "loss": [[round(float(v), 6) for v in line] for line in loss]}
            for i, y, loss in zip(subject.ids, subject.labels, losses, strict=True)
        ]
        return {"examples": len(images), "axis": axis, "images": images}


_UNIT = Threat(norm="linf", epsilon=1.0)


def _scaled(threat: Threat, factor: float) -> Threat:
    """The threat with another radius, in L-inf at most the whole pixel range."""
    return Threat(norm=threat.norm, epsilon=min(float(threat.epsilon) * factor, threat.geometry.largest))


def _sized(attack: PGD, steps: int, epsilon: float) -> dict[str, Any]:
    """The attack with other steps, and its step size as a number, so that all lengths share one program."""
    config: dict[str, Any] = attack.model_dump() | {"steps": steps}
    if config["step"].get("size") == "auto":
        config["step"] = {**config["step"], "size": float(attack.reach) * epsilon / steps}
    return config


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Mean and quantiles."""
    quantiles = {str(q): float(np.quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)}
    return {"mean": float(values.mean()), "quantiles": quantiles}
