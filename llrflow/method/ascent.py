"""The inner maximisation: one projected-ascent loop for training perturbations and for attacks.

The loop is pure methods (`begin`, `advance`, `judged`) over a `Carry`; `maximise` strings them together inside
a compiled step, `llrflow.attacks` drives them from the host as it drives every attack. Which of the two, and
how the steps are repeated, is decided by `plan_steps` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from llrflow.base.validation import raise_at
from llrflow.components.calls import guarded, shaped
from llrflow.components.fields import Chosen, Traced
from llrflow.components.registry import Component, register
from llrflow.method.batched import choose, spread
from llrflow.method.labels import likeliest
from llrflow.method.probe import SearchProbe
from llrflow.method.term import ask
from llrflow.method.threat import Threat, unit

StepSize = Annotated[float | Literal["auto"], Traced(gt=0)]
SCAN_CHUNK = 10
"""Most steps of an attack between two looks at which examples are settled, where steps are scanned."""


@register("start", "zero")
class ZeroStart(Component):
    """Start at the clean image."""

    def __call__(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """delta [B,H,W,C]."""
        return jnp.zeros_like(x)


@register("start", "uniform")
class UniformStart(Component):
    """Start uniformly inside `radius` times the ball."""

    radius: Annotated[float, Traced(gt=0)] = 1.0
    """Radius in multiples of epsilon."""

    def __call__(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """delta [B,H,W,C]."""
        return self.radius * threat.uniform(keys, x)


@register("start", "gaussian")
class GaussianStart(Component):
    """Start at scale * N(0, I): 0.001 is that of TRADES (Zhang et al. 2019)."""

    scale: Annotated[float, Traced(gt=0)] = 0.001
    """Standard deviation in pixel units."""

    def __call__(self, threat: Threat, x: jax.Array, keys: jax.Array) -> jax.Array:
        """delta [B,H,W,C]."""
        return self.scale * jax.vmap(lambda key, image: jax.random.normal(key, image.shape, image.dtype))(keys, x)


class _SizedStep(Component):
    size: StepSize = "auto"
    """Length of a step in pixel units; `auto` is the search's `reach` times epsilon / steps."""

    def init(self, delta: jax.Array) -> Any:
        """Most steps keep no state."""
        return ()

    def move(
        self, gradient: jax.Array, delta: jax.Array, state: Any, threat: Threat, auto: Any
    ) -> tuple[jax.Array, Any]:
        """(increment of delta [B,H,W,C], state); `auto` is the search's own step size."""
        size = auto if self.size == "auto" else self.size
        return size * self.direction(gradient, threat), state

    def direction(self, gradient: jax.Array, threat: Threat) -> jax.Array:
        """Unit direction of ascent."""
        raise NotImplementedError


@register("step", "steepest")
class SteepestStep(_SizedStep):
    """The threat's steepest direction: sign(g) for linf, g / ||g||_2 for l2, the signs of a few components for l1."""

    def direction(self, gradient: jax.Array, threat: Threat) -> jax.Array:
        """[B,H,W,C], unit length in the threat's norm."""
        return threat.steepest(gradient)


@register("step", "sign")
class SignStep(_SizedStep):
    """sign(g), whatever the norm of the threat."""

    def direction(self, gradient: jax.Array, threat: Threat) -> jax.Array:
        """[B,H,W,C]."""
        return jnp.sign(gradient)


@register("step", "normalized")
class NormalizedStep(_SizedStep):
    """g / ||g||_2, whatever the norm of the threat."""

    def direction(self, gradient: jax.Array, threat: Threat) -> jax.Array:
        """[B,H,W,C], unit length in l2."""
        return unit(gradient)


@register("step", "momentum")
class MomentumStep(_SizedStep):
    """The steepest direction of m, where m = decay m + g / ||g||_1 gathers the gradients of all steps so far.

    That of MI-FGSM (Dong et al. 2018, arXiv:1710.06081): sign(m) for linf, m / ||m||_2 for l2.
    """

    decay: Annotated[float, Traced(ge=0)] = 1.0
    """What is kept of m from step to step."""

    def init(self, delta: jax.Array) -> jax.Array:
        """m, zero [B,H,W,C]."""
        return jnp.zeros_like(delta)

    def move(
        self, gradient: jax.Array, delta: jax.Array, state: jax.Array, threat: Threat, auto: Any
    ) -> tuple[jax.Array, jax.Array]:
        """(increment of delta, m), [B,H,W,C] each."""
        total = spread(jnp.sum(jnp.abs(gradient), axis=(1, 2, 3)))
        gathered = self.decay * state + gradient / jnp.where(total > 0, total, 1.0)
        return super().move(gathered, delta, (), threat, auto)[0], gathered

    def direction(self, gradient: jax.Array, threat: Threat) -> jax.Array:
        """[B,H,W,C], unit length in the threat's norm."""
        return threat.steepest(gradient)


@register("step", "optax")
class OptaxStep(Component):
    """Any optax optimizer, ascending (Adam in Uesato et al. 2018 and Gowal et al. 2019)."""

    optimizer: Annotated[Any, Chosen("optimizer")]
    """An optimizer component, for example `{type: adam, learning_rate: 0.1}`."""

    of: Literal["gradient", "steepest"] = "gradient"
    """Feed the raw gradient, or its steepest unit direction."""

    def init(self, delta: jax.Array) -> Any:
        """The optimizer's state, one for each example: no example may depend on its batch-mates."""
        return jax.vmap(self.optimizer.build().init)(delta)

    def move(
        self, gradient: jax.Array, delta: jax.Array, state: Any, threat: Threat, auto: Any
    ) -> tuple[jax.Array, Any]:
        """(increment of delta [B,H,W,C], state)."""
        ascent = gradient if self.of == "gradient" else threat.steepest(gradient)
        return jax.vmap(self.optimizer.build().update)(-ascent, state, delta)


class Carry(NamedTuple):
    """State of a search: the current and the best perturbation [B,H,W,C], and what is known of the best [B]."""

    delta: jax.Array
    step_state: Any
    best: jax.Array
    best_value: jax.Array
    best_wrong: jax.Array


ProbeFactory = Callable[[], SearchProbe]


class Draws(NamedTuple):
    """A ProbeFactory for each of several draws of a stochastic network; called, it is the first of them."""

    each: tuple[ProbeFactory, ...]

    def __call__(self) -> SearchProbe:
        """A probe of the first draw."""
        return self.each[0]()


def drawn_probes(probes: ProbeFactory) -> list[SearchProbe]:
    """A new probe for every draw of the network; one where it is not stochastic."""
    return [make() for make in (probes.each if isinstance(probes, Draws) else (probes,))]


def gradient_over_draws(
    probes: ProbeFactory, value_and_more: Callable[[SearchProbe, jax.Array], tuple[jax.Array, Any]], at: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """(gradient, value, more) of value_and_more(probe, at) -> (value [B], more), which treats examples independently.

    The gradient, like `at`, is the mean over the network's draws (expectation over transformation, Athalye et al.
    2018); value and what comes with it are of one draw, for the next query of the network will be one.
    """

    def total(at: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        drawn = [value_and_more(probe, at) for probe in drawn_probes(probes)]
        return jnp.sum(jnp.stack([value for value, _ in drawn])) / len(drawn), drawn[0]

    gradient, (value, more) = jax.grad(total, has_aux=True)(at)
    # One example's overflow must not turn its perturbation into NaN, which no projection mends.
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0), value, more


Goal = Literal["value", "error"]
"""What the best iterate is: the largest value (training), or an error before the largest value (attacks)."""

StateT = TypeVar("StateT")


class Search(Component):
    """max over delta in the threat's ball of a term, by projected ascent from a start inside it."""

    maximize: Annotated[Any, Chosen("term", default="cross_entropy")] = Field(
        default="cross_entropy", validate_default=True
    )
    """The term to maximise."""

    steps: int = Field(default=10, ge=0)
    """Number of ascent steps."""

    reach: Annotated[float, Traced(gt=0)] = 2.5
    """How far all steps of size `auto` reach together, in epsilons (2.5: Madry et al. 2018)."""

    step: Annotated[Any, Chosen("step", default="steepest")] = Field(default="steepest", validate_default=True)
    """How a gradient becomes a step."""

    start: Annotated[Any, Chosen("start", default="uniform")] = Field(default="uniform", validate_default=True)
    """Where the search starts; terms that are flat at zero (local_linearity) need a start inside the ball."""

    restarts: int = Field(default=1, ge=1)
    """Independent starts, of which each example keeps its best."""

    keep: Literal["last", "best"] = "last"
    """Keep the last iterate, or the best one visited (one more forward pass)."""

    def project(self, threat: Threat, delta: jax.Array, x: jax.Array) -> jax.Array:
        """An iterate brought back into the threat model, [B,H,W,C]."""
        return threat.project(delta, x)

    drops: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = ()
    """Shares of the steps from which on steps are ten times shorter: [0.5, 0.75] with Adam in Gowal et al. 2019."""

    goal: ClassVar[Goal] = "value"

    @model_validator(mode="after")
    def _leaves_its_start(self) -> Search:
        if self.steps and isinstance(self.start, ZeroStart) and getattr(self.maximize, "flat_at_zero", False):
            message = (
                f"is where {self.maximize.registered_as[1]} is flat: no step would leave it; write `start: uniform`"
            )
            raise_at(("start",), "zero", "flat", message)
        return self

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: Any) -> Carry:
        """The state before the first step; keys [B] are this run's."""
        x = probes().x
        start = shaped(self.start, x.shape, lambda: self.start(threat, x, keys))
        delta = self.project(threat, start, x)
        nothing = jnp.full(len(x), -jnp.inf, x.dtype)
        step_state = guarded(self.step, lambda: self.step.init(delta))
        return Carry(delta, step_state, delta, nothing, jnp.zeros(len(x), bool))

    def advance(self, probes: ProbeFactory, threat: Threat, carry: Carry, index: Any) -> Carry:
        """One ascent step, 2F; `index` counts them from 0."""
        return self.stepped(probes, threat, carry, index, *gradient_over_draws(probes, self.judge, carry.delta))

    def stepped(
        self,
        probes: ProbeFactory,
        threat: Threat,
        carry: Carry,
        index: Any,
        gradient: jax.Array,
        value: jax.Array,
        wrong: jax.Array,
    ) -> Carry:
        """The same where the gradient [B,H,W,C] at the iterate, its value [B] and `wrong` [B] are known."""
        carry = self._keep_better(carry, value, wrong) if self.keep == "best" else carry
        gradient = threat.geometry.unblocked(gradient, carry.delta, probes().x)
        auto = self.reach * threat.radius() / max(self.steps, 1)
        move, step_state = guarded(
            self.step, lambda: self.step.move(gradient, carry.delta, carry.step_state, threat, auto)
        )
        for share in self.drops:
            move = jnp.where(index >= share * self.steps, 0.1, 1.0) * move
        return carry._replace(delta=self.project(threat, carry.delta + move, probes().x), step_state=step_state)

    def judged(self, probes: ProbeFactory, carry: Carry) -> Carry:
        """The kept perturbation in `best`, judged; F, which falls away where no judgement is used."""
        return self.settle(carry, *self.judge(probes(), carry.delta))

    def settle(self, carry: Carry, value: jax.Array, wrong: jax.Array) -> Carry:
        """The kept perturbation in `best`, where the last iterate's value [B] and `wrong` [B] are known."""
        if self.keep == "last":
            return carry._replace(best=carry.delta, best_value=value, best_wrong=wrong)
        return self._keep_better(carry, value, wrong)

    def judge(self, probe: SearchProbe, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the term, whether another class is predicted) at delta, [B] each."""
        value = ask(self.maximize, probe, delta).value
        return value, misclassified(probe.logits(delta), probe.y)

    def _keep_better(self, carry: Carry, value: jax.Array, wrong: jax.Array) -> Carry:
        return prefer(carry, carry._replace(best=carry.delta, best_value=value, best_wrong=wrong), self.goal)


def maximise(
    search: Search, probes: ProbeFactory, threat: Threat, keys: jax.Array, by: Literal["unroll", "scan"]
) -> jax.Array:
    """delta [B,H,W,C] found by the search inside one traced program; a constant to any later derivative."""
    return jax.lax.stop_gradient(searched(search, probes, threat, keys, by).best)


def searched(
    search: Search, probes: ProbeFactory, threat: Threat, keys: jax.Array, by: Literal["unroll", "scan"]
) -> Carry:
    """The same with its value, one forward pass more where that is used."""
    outcome = None
    for restart in range(search.restarts):
        carry = search.begin(probes, threat, restart_keys(keys, restart), restart)
        carry = repeat(lambda c, i: search.advance(probes, threat, c, i), carry, 0, search.steps, by)
        carry = search.judged(probes, carry)
        outcome = carry if outcome is None else prefer(outcome, carry, "value")
    assert outcome is not None
    return outcome


def repeat(
    one: Callable[[StateT, Any], StateT], state: StateT, first: Any, steps: int, by: Literal["unroll", "scan"]
) -> StateT:
    """`state` after `steps` calls of one(state, index), the index counted from `first`; written out or scanned."""
    if by == "scan":
        return jax.lax.scan(lambda s, i: (one(s, i), None), state, first + jnp.arange(steps))[0]
    for index in range(steps):
        state = one(state, first + index)
    return state


def prefer(a: Carry, b: Carry, goal: Goal) -> Carry:
    """Per example the better of two outcomes: the larger value, for an attack misclassified before correct."""
    better = b.best_value > a.best_value
    if goal == "error":
        better = outranks(b.best_wrong, b.best_value, a.best_wrong, a.best_value)
    return a._replace(
        best=choose(better, b.best, a.best),
        best_value=jnp.where(better, b.best_value, a.best_value),
        best_wrong=jnp.where(better, b.best_wrong, a.best_wrong),
    )


def outranks(wrong: Any, value: Any, than_wrong: Any, than_value: Any) -> Any:
    """[B] bool, of NumPy or JAX arrays: misclassified before correct, then the larger value."""
    return (wrong & ~than_wrong) | ((wrong == than_wrong) & (value > than_value))


def misclassified(logits: jax.Array, y: jax.Array) -> jax.Array:
    """[B] bool: another class than y (the likeliest label) is predicted, or none is."""
    predicted = predicted_class(logits)
    return (predicted != likeliest(y)) | (predicted < 0)


def predicted_class(logits: jax.Array) -> jax.Array:
    """[B] int32: the class with the largest logit; -1 where some logit is NaN or +inf.

    A logit of -inf is that of a class which is never predicted.
    """
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    return jnp.where(finite, jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)


def restart_keys(keys: jax.Array, restart: int | jax.Array) -> jax.Array:
    """Per-example keys [B] of one restart, or of one restart each [B]."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(restart, jnp.uint32), keys.shape))


class Plan(NamedTuple):
    """How to repeat `steps`: inside one program (`unroll`, `scan`), or `chunk` of them per call from the host."""

    by: Literal["unroll", "scan", "host"]
    chunk: int

    @property
    def inside(self) -> Literal["unroll", "scan"]:
        """How one compiled program repeats its steps; what the host calls is written out."""
        return "scan" if self.by == "scan" else "unroll"


def plan_steps(steps: int, platform: str, inside: bool) -> Plan:
    """The one place that chooses a strategy; all of them give the same perturbation.

    XLA:CPU runs convolutions inside a while loop about four times slower than outside, so on CPU a training
    step writes its search out, and an attack (`inside=False`) calls one compiled step from the host, as often as
    needed: settled examples leave after every step, and nothing long is compiled. GPU and TPU scan; that has never
    been run on such a device by the authors of llrflow.
    """
    if platform == "cpu":
        return Plan("unroll", steps) if inside else Plan("host", 1)
    if inside:
        return Plan("scan", steps)
    return Plan("scan", max(n for n in range(1, SCAN_CHUNK + 1) if max(steps, 1) % n == 0))
