"""What a plugin's components must do on a toy batch: `llrflow plugins check FILE`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llrflow.attacks.run import attack as run_attack
from llrflow.base.errors import LlrflowError, shortened
from llrflow.components.calls import guarded, is_plugin, structure_of
from llrflow.components.registry import Component, make
from llrflow.data.mix import shaped_mix
from llrflow.method.keys import example_keys
from llrflow.method.labels import cross_entropy, probabilities
from llrflow.method.parameter_gradient import Gradient
from llrflow.method.probe import Probe
from llrflow.method.term import Answer, ask, first_state, is_stateful
from llrflow.method.threat import Threat
from llrflow.models.network import AXIS
from llrflow.program.cost import flops_of, of_passes
from llrflow.program.step import network_of, predict
from llrflow.spec.schema import Spec

BATCH, SIZE, CHANNELS, CLASSES = 6, 8, 2, 5
UNSEEN = 1.2
"""XLA's count of a term's passes over ours from which ours is told as a lower bound, if it is by a pass and more, as
XLA counts also what is no pass: ours sees what a term asks of the
probe, not what a term's own `jax.vjp` or `jax.grad` makes of that. Of terms that only ask it is at most 1.1."""
TRANSFORMED = (
    "a plugin differentiates the network by transforms of its own (jax.vjp, jax.grad), whose passes the count does not "
    "see; what asks probe.input_gradient or probe.slope is counted"
)
CHANGED = 1
"""The example that is changed to see whether others notice."""
THREAT = Threat(norm="linf", epsilon=0.1)


class Finding(NamedTuple):
    """One property of a component."""

    what: str
    ok: bool
    detail: str


class Toy:
    """A small batch-free network with random weights; a batch of random images with labels, keys, a perturbation."""

    def __init__(self, model: Any = None) -> None:
        rng = np.random.default_rng(0)
        shape = (BATCH, SIZE, SIZE, CHANNELS)
        self.x = jnp.asarray(rng.uniform(0.05, 0.95, shape), jnp.float32)
        self.y = jnp.asarray(rng.integers(0, CLASSES, BATCH))
        self.delta = THREAT.project(jnp.asarray(rng.uniform(-0.1, 0.1, shape), jnp.float32), self.x)
        self.keys = example_keys(jax.random.key(0), jnp.arange(BATCH))
        self.network = network_of(model or make("model", {"type": "cnn", "channels": [8], "dense": 16}), CLASSES)
        # Batch statistics are averaged over a device axis, which a program always has.
        init = jax.vmap(lambda x: self.network.init(jax.random.key(1), x, True), axis_name=AXIS)
        self.params, self.state = jax.tree.map(lambda leaf: leaf[0], init(self.x[None]))

    def logits(self, params: Any, x: jax.Array) -> jax.Array:
        """[B,K], with moving statistics."""
        return predict(self.network, params, self.state, x)

    def probe(self, params: Any, x: jax.Array, y: jax.Array, keys: jax.Array | None = None) -> Probe:
        """A probe as the objective has it."""
        return Probe(partial(self.logits, params), x, y, self.keys if keys is None else keys, THREAT)


@functools.cache
def _toy() -> Toy:
    return Toy()


def check(kind: str, component: Component) -> Iterator[Finding]:
    """Everything that is checked of a component of a kind; one failure of the plugin itself ends it."""
    try:
        yield from CHECKS[kind](component)
    except Exception as error:  # whatever a plugin does wrong is what is looked for
        text = str(error) if isinstance(error, LlrflowError) else f"{type(error).__name__}: {error}"
        yield Finding("runs", False, shortened(" ".join(text.split()), 500))


def _term(term: Component) -> Iterator[Finding]:
    toy = _toy()
    state = first_state(term) if is_stateful(term) else None
    delta = toy.delta if getattr(term, "needs_perturbation", False) else None
    made: list[Probe] = []

    def asked(params: Any, x: jax.Array, y: jax.Array, delta: Any, state: Any) -> Answer:
        made.append(toy.probe(params, x, y))
        return ask(term, made[-1], delta, state)

    answer = jax.jit(asked)(toy.params, toy.x, toy.y, delta, state)
    cost = of_passes(made[-1].passes.values())
    for _ in range(3 if is_stateful(term) else 0):
        answer = jax.jit(asked)(toy.params, toy.x, toy.y, delta, answer.state)
    yield Finding("shape", True, f"[B] = [{BATCH}]" + "".join(f", metric {name}" for name in answer.metrics))
    finite = _finite("finite values", (answer.value, dict(answer.metrics), answer.state))
    yield finite
    if not finite.ok:
        return
    again, anew = (_retraced(asked)(toy.params, toy.x, toy.y, delta, answer.state) for _ in range(2))
    same = _equal(again.value, anew.value)
    yield Finding("the same batch gives the same values", same, "")

    def mean(params: Any, delta: Any) -> jax.Array:
        return jnp.mean(asked(params, toy.x, toy.y, delta, answer.state).value)

    slope = jax.jit(jax.grad(mean))(toy.params, delta)
    yield _finite("finite gradient", slope)
    # A running state may switch a term off for a while, as ELLE-A's does.
    off = is_stateful(term) and not np.any(again.value)
    flows = off or any(np.any(leaf) for leaf in jax.tree.leaves(slope))
    advice = "" if flows else "no parameter gets a gradient: is there a stop_gradient too many?"
    yield Finding("gradient reaches the parameters", flows, advice)
    if delta is not None:
        flat = jax.jit(jax.grad(mean))(toy.params, jnp.zeros_like(delta))
        yield _finite("finite gradient at a zero perturbation", flat)
    x, y = toy.x.at[CHANGED].set(toy.x[CHANGED + 1]), toy.y.at[CHANGED].set((toy.y[CHANGED] + 1) % CLASSES)
    moved = None if delta is None else delta.at[CHANGED].multiply(-0.5)
    other = jax.jit(asked)(toy.params, x, y, moved, answer.state)
    yield _independent(again.value, other.value, may_stay=off)
    back = jnp.arange(BATCH)[::-1]

    def turned(params: Any, state: Any) -> jax.Array:
        there = None if delta is None else delta[back]
        return ask(term, toy.probe(params, toy.x[back], toy.y[back], toy.keys[back]), there, state).value

    moved = jax.jit(turned)(toy.params, answer.state)[back]
    same = np.allclose(moved, again.value, rtol=1e-2, atol=1e-3 * float(np.abs(again.value).max()))
    yield Finding("an example's place in the batch does not matter", bool(same), "")
    if not getattr(term, "needs_one_label", False):
        soft = partial(jax.jit(asked), toy.params, toy.x, probabilities(toy.y, CLASSES), delta, answer.state)
        yield _same_of_soft_labels(again.value, soft)
    if delta is None:
        perturbed = jax.jit(asked)(toy.params, toy.x, toy.y, toy.delta, answer.state)
        yield _finite("finite values at a perturbation", perturbed.value)
    total = sum(count.total for count in cost.values())
    parts = ", ".join(f"{name} {count.total} F" for name, count in cost.items())
    counted = f"{total} F with its parameter gradient, if it shares nothing ({parts or 'no pass'})"
    if (by_xla := _unseen(term, answer.state, delta)) is not None:
        counted = f"at least {counted}; XLA counts more, {by_xla:.1f} F: {TRANSFORMED}"
    yield Finding("cost", True, counted)


def lower_bounds(spec: Spec) -> list[str]:
    """The plugins' terms of an objective whose passes are more than what is counted, by name."""
    found = []
    for name, term in spec.objective.terms.items():
        with contextlib.suppress(Exception):  # what is wrong with a term `plugins check` says
            state = first_state(term) if is_stateful(term) else None
            if is_plugin(term) and _unseen(term, state, _toy().delta) is not None:
                found.append(name)
    return found


def _unseen(term: Component, state: Any, delta: Any) -> float | None:
    """Forward passes of the toy network that XLA counts in a term with its gradient, where they are clearly more than
    what the term asked of the probe; None where they are not.

    So too where JAX was started without its CPU: clients of accelerators do not count what is not compiled.
    """
    toy, made = _toy(), []

    def mean(params: Any, x: jax.Array, delta: Any) -> jax.Array:
        made.append(toy.probe(params, x, toy.y))
        return jnp.mean(ask(term, made[-1], delta, state).value)

    given = (toy.params, toy.x, delta)
    params, x, delta = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        asked = flops_of(jax.jit(jax.grad(mean)).lower(params, x, delta))
        found = asked / flops_of(jax.jit(toy.logits).lower(params, x))
    total = sum(count.total for count in of_passes(made[-1].passes.values()).values())
    return found if found > UNSEEN * total + 1 else None


def _model(model: Component) -> Iterator[Finding]:
    toy = guarded(model, lambda: Toy(model))
    logits = guarded(model, lambda: jax.jit(toy.logits)(toy.params, toy.x))
    yield Finding("shape", True, f"logits {list(logits.shape)}")
    yield _finite("finite values", logits)
    gradient = jax.grad(lambda p: jnp.mean(cross_entropy(toy.logits(p, toy.x), toy.y)))(toy.params)
    still = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)]
    yield Finding("gradient reaches every parameter", not still, ", ".join(still))
    yield _independent(logits, jax.jit(toy.logits)(toy.params, toy.x.at[CHANGED].set(0.5)))


def _augmentation(augmentation: Any) -> Iterator[Finding]:
    toy = _toy()
    run = jax.vmap(augmentation)
    images = guarded(augmentation, lambda: _retraced(run)(toy.x, toy.keys))
    yield Finding("shape", images.shape == toy.x.shape, f"{list(images.shape[1:])} from {list(toy.x.shape[1:])}")
    yield _finite("finite values", images)
    low, high = float(images.min()), float(images.max())
    yield Finding("pixels stay in [0, 1]", low >= 0 and high <= 1, f"[{low:g}, {high:g}]")
    yield Finding("the same key gives the same image", _equal(images, _retraced(run)(toy.x, toy.keys)), "")


def _mixing(mixing: Any) -> Iterator[Finding]:
    toy = _toy()
    images, share = _retraced(jax.vmap(partial(shaped_mix, mixing)))(toy.x, toy.x[::-1], toy.keys)
    yield Finding("shape", True, f"{list(images.shape[1:])}, and the share of a label")
    yield _finite("finite values", (images, share))
    low, high = (float(end) for end in (jnp.minimum(images.min(), share.min()), jnp.maximum(images.max(), share.max())))
    yield Finding("pixels and shares stay in [0, 1]", low >= 0 and high <= 1, f"[{low:g}, {high:g}]")
    again = _retraced(jax.vmap(mixing))(toy.x, toy.x[::-1], toy.keys)
    yield Finding("the same key gives the same image", _equal(images, again[0]) and _equal(share, again[1]), "")


def _start(start: Any) -> Iterator[Finding]:
    toy = _toy()
    delta = guarded(start, lambda: jax.jit(partial(start, THREAT))(toy.x, toy.keys))
    yield Finding("shape", delta.shape == toy.x.shape, str(list(delta.shape)))
    yield _finite("finite values", delta)
    yield _independent(delta, jax.jit(partial(start, THREAT))(toy.x.at[CHANGED].set(0.5), toy.keys), may_stay=True)


def _step(step: Any) -> Iterator[Finding]:
    toy = _toy()

    def moved(gradient: jax.Array) -> Any:
        return step.move(gradient, toy.delta, step.init(toy.delta), THREAT, 0.05)[0]

    move = guarded(step, lambda: jax.jit(moved)(toy.x - 0.5))
    yield Finding("shape", move.shape == toy.x.shape, str(list(move.shape)))
    yield _finite("finite values", (move, jax.jit(moved)(jnp.zeros_like(toy.x))))
    yield _independent(move, jax.jit(moved)((toy.x - 0.5).at[CHANGED].multiply(-3.0)))


def _attack(attack: Any) -> Iterator[Finding]:
    toy = _toy()
    config = attack.model_dump()
    result = guarded(
        attack, lambda: run_attack(partial(toy.logits, toy.params), toy.x, toy.y, THREAT, config, jax.random.key(0))
    )
    yield Finding("stays in the threat model", True, f"largest distance {float(result.distance.max()):g}")
    yield _finite("finite values", (result.x_adv, result.loss))


def _gradient(hook: Any) -> Iterator[Finding]:
    toy, calls = _toy(), []

    def gradient(params: Any, perturbations: Any = None) -> Gradient:
        calls.append(perturbations)
        value = jax.grad(lambda p: jnp.mean(cross_entropy(toy.logits(p, toy.x), toy.y)))(params)
        return Gradient(value, {"delta": toy.delta} if perturbations is None else perturbations, None)

    found = guarded(hook, lambda: hook(gradient, toy.params))
    good = isinstance(found, Gradient) and structure_of(found.value) == structure_of(toy.params)
    yield Finding("returns a Gradient like the parameters", good, "" if good else f"returns {type(found).__name__}")
    if good:
        yield _finite("finite values", found.value)
        searched = sum(given is None for given in calls)
        yield Finding("cost", True, f"{len(calls)} objective(s), {searched} with searches")


def _optimizer(optimizer: Any) -> Iterator[Finding]:
    toy = _toy()
    transform = guarded(optimizer, optimizer.build)
    updates, _ = guarded(optimizer, lambda: transform.update(toy.params, transform.init(toy.params), toy.params))
    yield _finite("finite updates", optax.apply_updates(toy.params, updates))


def _schedule(schedule: Any) -> Iterator[Finding]:
    values = guarded(schedule, lambda: jax.vmap(schedule.build())(jnp.arange(100)))
    yield Finding("one number a step", values.shape == (100,), str(list(values.shape[1:])))
    yield _finite("finite values", values)


def _dataset(dataset: Any) -> Iterator[Finding]:
    yield Finding("not tried", True, "prepare(data_dir) may download")


def _domain(domain: Any) -> Iterator[Finding]:
    values = [guarded(domain, lambda u=u: domain.draw(u, lambda path: 1.0)) for u in (0.0, 0.5, 1.0 - 2**-53)]
    yield Finding("values at the quantiles 0, 0.5 and 1", True, ", ".join(map(str, values)))


def _scheduler(scheduler: Any) -> Iterator[Finding]:
    from ray.tune.schedulers import TrialScheduler

    built = guarded(scheduler, lambda: scheduler.build(10))
    yield Finding("builds a scheduler of Tune", isinstance(built, TrialScheduler), type(built).__name__)


CHECKS: dict[str, Callable[[Any], Iterator[Finding]]] = {
    "term": _term,
    "model": _model,
    "augmentation": _augmentation,
    "mixing": _mixing,
    "start": _start,
    "step": _step,
    "attack": _attack,
    "gradient": _gradient,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "dataset": _dataset,
    "domain": _domain,
    "scheduler": _scheduler,
}


def _finite(what: str, tree: Any) -> Finding:
    bad = [
        jax.tree_util.keystr(path) or "the value"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not np.all(np.isfinite(leaf))
    ]
    return Finding(what, not bad, f"not finite: {', '.join(bad[:3])}" if bad else "")


def _same_of_soft_labels(hard: Any, soft: Callable[[], Answer]) -> Finding:
    what = "a one-hot label gives what its class gives"
    advice = "take values with llrflow.plugin.at_label(values, probe.y), or set needs_one_label = True"
    try:
        found = soft().value
    except Exception as error:  # of the plugin, which was written for classes
        return Finding(what, False, f"{type(error).__name__}; {advice}")
    same = np.allclose(found, hard, rtol=1e-2, atol=1e-3 * float(np.abs(hard).max()))
    return Finding(what, bool(same), "" if same else advice)


def _independent(before: Any, after: Any, may_stay: bool = False) -> Finding:
    what = "an example does not see its batch-mates"
    moved = np.abs(np.asarray(after) - np.asarray(before)).reshape(BATCH, -1).max(axis=1)
    different = moved > 1e-3 * np.abs(before).max()
    noticed = np.flatnonzero(different & (np.arange(BATCH) != CHANGED))
    if len(noticed):
        return Finding(what, False, f"changing example {CHANGED} changed example {noticed[0]}")
    if not different[CHANGED] and not may_stay:
        return Finding(what, False, f"changing example {CHANGED} changed nothing at all")
    return Finding(what, True, "")


def _retraced(function: Callable[..., Any]) -> Any:
    # A function of its own: jit would take the trace of an earlier call, and with it what chance gave then.
    return jax.jit(lambda *arguments: function(*arguments))


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b))
