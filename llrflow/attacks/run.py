"""Run an attack on any logits function: compile its three phases once, drive them from the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from llrflow.answer import ask, lacking_classes
from llrflow.ascent import Carry, Search, misclassified, outranks, plan_steps, restart_keys
from llrflow.errors import SpecError
from llrflow.keys import example_keys
from llrflow.probe import LogitsFn, Reference, SearchProbe, cross_entropy
from llrflow.registry import Component, first_problem, make
from llrflow.terms.linearity import LocalLinearity
from llrflow.threat import Threat
from llrflow.traced import bind, numbers

PredictFn = Callable[[Any, jax.Array], jax.Array]
"""(variables, images [B,H,W,C]) -> logits [B,K]."""


class Examples(NamedTuple):
    """What is attacked: images [B,H,W,C] in [0,1], labels [B], and the ids [B] that key the randomness."""

    x: Any
    y: Any
    ids: Any


class Verdict(NamedTuple):
    """What an attack found per example; the perturbation has been projected and judged anew."""

    delta: Any
    """[B,H,W,C]."""
    wrong: Any
    """Misclassified at x + delta, [B]."""
    value: Any
    """The attack's own objective, [B]."""
    loss: Any
    """Cross-entropy at x + delta in nats, [B]."""
    distance: Any
    """||delta|| in the threat's norm, [B]."""
    linearity: Any
    """g(delta; x) = |l(x+delta) - l(x) - <delta, grad l(x)>| in nats, [B]."""


class Start(NamedTuple):
    """What an attack needs to know of its examples besides themselves."""

    reference: Reference
    keys: Any
    """Raw random keys of this restart, one per example."""


class AttackResult(NamedTuple):
    """Outcome of `llrflow.attack`."""

    x_adv: jax.Array
    """Adversarial images [B,H,W,C] in [0,1]."""
    success: jax.Array
    """Misclassified at x_adv, [B]."""
    distance: jax.Array
    """||x_adv - x|| in the threat's norm, [B]."""
    loss: jax.Array
    """Cross-entropy at x_adv in nats, [B]."""


class AttackProgram:
    """One attack on one kind of model, compiled once per batch shape.

    `wrap` compiles a pure function of arrays: `jax.jit`, or a device pmap whose arguments carry a leading
    device axis. Numbers of attack and threat are inputs, so changing them compiles nothing.
    """

    def __init__(
        self, attack: Search, threat: Threat, predict: PredictFn, platform: str, wrap: Callable[[Any], Any] = jax.jit
    ) -> None:
        self.attack, self.threat, self.predict = attack, threat, predict
        self.plan = plan_steps(attack.steps, platform, inside=False)
        self._begin, self._advance, self._finish = wrap(self._begin_fn), wrap(self._advance_fn), wrap(self._finish_fn)

    @property
    def numbers(self) -> dict[str, np.float32]:
        """The traced numbers of attack and threat, to pass to `run`."""
        found: dict[str, np.float32] = {}
        for path, value, _ in (*numbers(self.attack, ("attack",)), *numbers(self.threat, ("threat",))):
            if isinstance(value, Component):
                raise SpecError(path, "follows a schedule, but an attack has no training steps", "give one number")
            found[path] = np.float32(value)
        return found

    def run(self, variables: Any, examples: Examples, key: Any, restart: Any, inputs: Any) -> Verdict:
        """One restart on one batch: all arguments as `wrap` wants them; key is raw key data."""
        start, carry = self._begin(variables, examples, key, restart, inputs)
        for _ in range(self.attack.steps // self.plan.chunk if self.attack.steps else 0):
            carry = self._advance(variables, examples, start, carry, inputs)
        return self._finish(variables, examples, start, carry, inputs)

    def _bound(self, inputs: Mapping[str, jax.Array]) -> tuple[Search, Threat]:
        split = {part: {} for part in ("attack", "threat")}
        for path, value in inputs.items():
            part, _, field = path.partition(".")
            split[part][field] = value
        return bind(self.attack, split["attack"]), bind(self.threat, split["threat"])

    def _probes(self, variables: Any, examples: Examples, start: Start, threat: Threat) -> Callable[[], SearchProbe]:
        def apply(images: jax.Array, clean: bool) -> tuple[jax.Array, None]:
            return self.predict(variables, images), None

        keys = jax.random.wrap_key_data(start.keys)
        return partial(SearchProbe, apply, examples.x, examples.y, keys, threat, start.reference)

    def _begin_fn(
        self, variables: Any, examples: Examples, key: jax.Array, restart: jax.Array, inputs: Any
    ) -> tuple[Start, Carry]:
        def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = self.predict(variables, x)
            loss = cross_entropy(logits, examples.y)
            return jnp.sum(loss), (loss, logits)

        gradient, (loss, logits) = jax.grad(total, has_aux=True)(examples.x)
        attack, threat = self._bound(inputs)
        keys = restart_keys(example_keys(jax.random.wrap_key_data(key), examples.ids), restart)
        start = Start(Reference(loss, logits, gradient), jax.random.key_data(keys))
        return start, attack.begin(self._probes(variables, examples, start, threat)(), threat, keys)

    def _advance_fn(self, variables: Any, examples: Examples, start: Start, carry: Carry, inputs: Any) -> Carry:
        attack, threat = self._bound(inputs)
        probes = self._probes(variables, examples, start, threat)
        return attack.advance(probes, threat, carry, self.plan.chunk, self.plan.inside, "error")

    def _finish_fn(self, variables: Any, examples: Examples, start: Start, carry: Carry, inputs: Any) -> Verdict:
        attack, threat = self._bound(inputs)
        probes = self._probes(variables, examples, start, threat)
        delta = threat.project(attack.finish(probes, carry, "error").best, examples.x)
        probe = probes()
        linearity = LocalLinearity()(probe, delta)
        wrong = misclassified(probe.logits(delta), examples.y)
        value = ask(attack.maximize, probe, delta).value
        return Verdict(delta, wrong, value, probe.loss(delta), threat.distance(delta), linearity)


def better(new: Verdict, old: Verdict) -> Any:
    """[B] bool: where the new verdict outranks the old one."""
    return outranks(new.wrong, new.value, old.wrong, old.value)


def attack(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    threat: Threat | Mapping[str, Any],
    config: Mapping[str, Any] | str,
    key: jax.Array,
) -> AttackResult:
    """Attack any JAX function [B,H,W,C] -> [B,K] within a threat model, without a spec.

    x [B,H,W,C] in [0,1]; y [B] integer labels; threat and config as they stand in YAML, for example
    `{"norm": "linf", "epsilon": "8/255"}` and `{"type": "pgd", "steps": 50, "restarts": 5}`.
    Randomness follows from `key` and the example's row. Raises SpecError for a wrong threat, config or batch.
    """
    try:
        ball = Threat.model_validate(threat)
    except ValidationError as error:
        _, got, fix = first_problem(error)
        raise SpecError("threat", got, fix) from None
    x, y = jnp.asarray(x), jnp.asarray(y)
    classes = _check_batch(logits_fn, x, y)
    search = make("attack", config)
    if lacking := lacking_classes(search, classes, ("attack",)):
        raise SpecError(*lacking, "choose another term or target")
    program = AttackProgram(search, ball, lambda _, images: logits_fn(images), jax.default_backend())
    examples = Examples(x, y, jnp.arange(len(x)))
    key_data = jax.random.bits(key, (2,), jnp.uint32)  # whatever generator the caller's key belongs to
    best = None
    for restart in range(program.attack.restarts):
        new = program.run((), examples, key_data, jnp.uint32(restart), program.numbers)
        best = new if best is None else jax.tree.map(partial(_choose, jnp.asarray(better(new, best))), new, best)
    assert best is not None
    ball.check(best.delta, x)
    return AttackResult(x + best.delta, best.wrong, best.distance, best.loss)


def _check_batch(logits_fn: LogitsFn, x: jax.Array, y: jax.Array) -> int:
    """The number of classes; SpecError unless x [B,H,W,C] are float pixels in [0, 1] and y [B] labels of them."""

    def refuse(got: str, fix: str) -> NoReturn:
        raise SpecError("attack", got, fix)

    if x.ndim != 4 or y.shape != x.shape[:1] or not len(x):
        refuse(f"got x {x.shape} and y {y.shape}", "pass x [B,H,W,C] and y [B] with at least one example")
    if not jnp.issubdtype(x.dtype, jnp.floating) or not jnp.issubdtype(y.dtype, jnp.integer):
        refuse(f"got x {x.dtype} and y {y.dtype}", "pass float images in [0, 1] and integer labels")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0.0 and high <= 1.0):
        refuse(f"got pixels in [{low:g}, {high:g}]", "pass images in [0, 1]; the model normalises")
    logits = jax.eval_shape(logits_fn, x)
    if len(logits.shape) != 2 or logits.shape[0] != len(x):
        refuse(f"logits_fn returns {logits.shape}", f"return [B,K], here [{len(x)}, classes]")
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        refuse(f"got labels from {int(y.min())} to {int(y.max())}", f"a label is one of 0 to {logits.shape[1] - 1}")
    return logits.shape[1]


def _choose(where: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(where.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
