"""The pure functions of a program: initialise, train one step, predict. They take fields, not the spec."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from llrflow.base.errors import PluginError
from llrflow.components.calls import described, guarded, placed, shaped, structure_of
from llrflow.data.augment import augment
from llrflow.method import objective as objectives
from llrflow.method.keys import example_keys, purpose_key
from llrflow.method.labels import at_label
from llrflow.method.objective import Objective
from llrflow.method.parameter_gradient import Gradient
from llrflow.method.probe import Probe
from llrflow.method.term import first_state, is_stateful
from llrflow.method.threat import Threat
from llrflow.models.convolution import for_cpu
from llrflow.models.network import AXIS, absorbed, norm_layer, restarted, starting
from llrflow.models.precision import Precision, in_precision
from llrflow.models.repeated import PLAIN, Tracing, traced_as
from llrflow.program.freeze import Frozen
from llrflow.program.state import Batch, TrainState

Kind = Literal["batch", "clean", "moving"]
"""Of BatchNorm statistics: of the batch that is passed, of the clean batch at all points, or the moving ones."""


class Statistics(NamedTuple):
    """Which BatchNorm statistics the terms and the searches see, and which pass of the loss updates the moving ones."""

    terms: Kind
    search: Kind
    update: Literal["auto", "clean", "perturbed"]


class Pieces(NamedTuple):
    """The fields of a spec that a training step is made of; numbers in them may be tracers."""

    network: hk.TransformedWithState
    classes: int
    objective: Objective
    threat: Threat
    optimizer: optax.GradientTransformation
    ema: Any
    """Decay of the parameters' moving average, or None."""
    augment: Mapping[str, Any]
    statistics: Statistics
    accumulate: int
    by: Literal["unroll", "scan"]
    frozen: Frozen = Frozen()
    recompute: bool = False
    """Whether derivatives of the network compute its blocks anew."""
    mix: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    """(images, labels, partners, labels of partners, keys) -> images, labels [B,K] (`llrflow.data.mix`), or None."""


def network_of(
    model: Any, classes: int, precision: Precision = "float32", tracing: Tracing = PLAIN
) -> hk.TransformedWithState:
    """The Haiku transform (images [B,H,W,C], batch_statistics) -> logits [B,K] of a model component."""

    def logits(images: jax.Array, batch_statistics: bool) -> jax.Array:
        with placed("model"), traced_as(tracing):
            return shaped(model, (len(images), classes), lambda: model(images, classes, batch_statistics))

    network = for_cpu(logits) if tracing.for_cpu else logits
    return hk.transform_with_state(in_precision(network, precision))


def stand_in(classes: int, stateful: bool) -> hk.TransformedWithState:
    """A network that is quick to trace, with moving statistics or without; enough to count what is asked of one."""

    def logits(images: jax.Array, batch_statistics: bool) -> jax.Array:
        pooled = jnp.mean(images, axis=(1, 2))
        return hk.Linear(classes)(norm_layer("batch" if stateful else "none", pooled, batch_statistics, "norm"))

    return hk.transform_with_state(logits)


def predict(network: hk.TransformedWithState, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
    """Logits [B,K] with moving statistics: no prediction depends on its batch-mates."""
    return network.apply(params, model_state, None, images, False)[0]


def initialise(pieces: Pieces, image_shape: tuple[int, ...], seed: jax.Array) -> TrainState:
    """Fresh state; must run under the device axis, which cross-replica BatchNorm names."""
    images = jnp.zeros((2, *image_shape))
    params, model_state = pieces.network.init(purpose_key(seed, "init"), images, True)
    model_state = starting(model_state)
    ema = () if pieces.ema is None else params
    entries = pieces.objective.entries()
    terms = {}
    for name, term in entries.items():
        if is_stateful(term):
            with placed(pieces.objective.places()[name]):
                terms[name] = first_state(term)
    optimizer_state = pieces.optimizer.init(params)
    return TrainState(params, model_state, optimizer_state, ema, terms, jnp.zeros((), jnp.int32))


class StepOutcome(NamedTuple):
    """What one computation of the gradient leaves for the state and the log."""

    model_state: Any
    terms: dict[str, Any]
    metrics: dict[str, jax.Array]


def objective_at(
    pieces: Pieces,
    params: Any,
    state: TrainState,
    batch: Batch,
    seed: jax.Array,
    perturbations: Any,
    observe: Callable[[Probe], None],
) -> tuple[jax.Array, tuple[Any, StepOutcome]]:
    """The device's mean objective at some parameters; as a second, the perturbations and what else came of it.

    Searches unless given perturbations.
    """

    def keys(purpose: str, ids: Any = batch.ids) -> jax.Array:
        return example_keys(jax.random.fold_in(purpose_key(seed, purpose), state.step), ids)

    images, labels = examples_of(pieces, batch, keys)
    policy, params = pieces.statistics, pieces.frozen.apart(params)
    loss, terms, search = views(pieces, params, state.model_state, images, labels, keys("terms"))
    objectives.foresee(pieces.objective, loss, terms, state.terms, pieces.classes)
    if perturbations is None:
        perturbations = objectives.perturb(pieces.objective, search, pieces.threat, keys, pieces.by)
    found = objectives.evaluate(pieces.objective, loss, perturbations, state.terms, terms)
    for probe in dict.fromkeys((search, terms, loss)):
        observe(probe)
    correct = at_label(jax.nn.one_hot(jnp.argmax(found.logits, axis=-1), found.logits.shape[-1]), labels)
    per_example = {"objective": found.value, "accuracy": correct, **found.metrics}
    metrics = {name: jnp.mean(part) for name, part in per_example.items()}
    model_state = updated_statistics(loss, policy.update, state.model_state)
    model_state = pieces.frozen.kept_statistics(params, state.model_state, model_state)
    return metrics["objective"], (perturbations, StepOutcome(model_state, found.states, metrics))


def views(
    pieces: Pieces, params: Any, model_state: Any, images: jax.Array, labels: jax.Array, keys: jax.Array
) -> tuple[Probe, Probe, Probe]:
    """The probes of the loss, of the terms and of the searches: one where they see the same statistics.

    The loss sees the batch's, as training does. Whatever a term compares it asks of one probe, so that both sides have
    statistics of one kind.
    """
    policy, at_clean = pieces.statistics, pieces.objective.loss.at == objectives.CLEAN
    made: dict[str, Probe] = {}

    def network(state: Any, batch_statistics: bool, images: jax.Array) -> tuple[jax.Array, Any]:
        return pieces.network.apply(params, state, None, images, batch_statistics)

    def near(left: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        return network(left, False, images)

    def view(kind: Kind, seen: str) -> Probe:
        kind = kind if model_state else "batch"
        if kind not in made:
            apply = partial(network, restarted(model_state) if kind == "clean" else model_state, kind != "moving")
            arguments = (images, labels, keys, pieces.threat, AXIS, pieces.recompute, seen)
            made[kind] = Probe.stateful(apply, *arguments, near if kind == "clean" else None)
        return made[kind]

    loss = view("clean" if policy.terms == "clean" and at_clean else "batch", "")  # one and the same at clean images
    return loss, view(policy.terms, ", as terms see it"), view(policy.search, ", as searches see it")


def examples_of(pieces: Pieces, batch: Batch, keys: Callable[..., jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(images [B,H,W,C] in [0,1], labels [B], or [B,K] where examples are mixed), augmented first, then mixed."""

    def augmented(some: Batch) -> jax.Array:
        return augment(some.images.astype(jnp.float32) / 255.0, keys("augment", some.ids), pieces.augment)

    images, partners = augmented(batch), batch.partners
    if pieces.mix is None:
        return images, batch.labels
    return pieces.mix(images, batch.labels, augmented(partners), partners.labels, keys("mix"))


def neighbours(batch: Batch) -> Batch:
    """The example before each one in the whole batch, whose first follows its last, on whatever devices they are.

    Batches are drawn at random, so neighbours are. Taken before a batch is cut into parts, which leave them the same.
    """
    count = jax.lax.axis_size(AXIS)

    def shifted(rows: jax.Array) -> jax.Array:
        last = jax.lax.ppermute(rows[-1:], AXIS, [(device, (device + 1) % count) for device in range(count)])
        return jnp.concatenate([last, rows[:-1]])

    return jax.tree.map(shifted, batch)


def train_step(
    pieces: Pieces,
    state: TrainState,
    batch: Batch,
    seed: jax.Array,
    observe: Callable[[Probe], None] = lambda probe: None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a device's share of the batch; metrics are means over the whole batch.

    `observe` is shown the probe of each computation of the gradient, while tracing.
    """

    def gradient(params: Any, perturbations: Any = None) -> Gradient:
        def part(model_state: Any, batch: Batch, perturbations: Any) -> tuple[Any, Any, StepOutcome]:
            before = state._replace(model_state=model_state)
            at = partial(objective_at, pieces, state=before, batch=batch, seed=seed, observe=observe)
            value, (found, outcome) = jax.grad(partial(at, perturbations=perturbations), has_aux=True)(params)
            return value, found, outcome

        value, found, outcome = accumulated(part, state, batch, perturbations, pieces.accumulate, pieces.by)
        value, metrics = jax.lax.pmean((value, outcome.metrics), AXIS)
        return Gradient(value, found, outcome._replace(metrics=metrics))

    if pieces.mix is not None:
        batch = batch._replace(partners=neighbours(batch))
    hook = pieces.objective.gradient
    with placed("objective.gradient"):
        computed = guarded(hook, lambda: hook(gradient, state.params))
        if not isinstance(computed, Gradient) or structure_of(computed.value) != structure_of(state.params):
            made = computed.value if isinstance(computed, Gradient) else computed
            got = f"returns a {type(made).__name__} that is no gradient of the parameters"
            raise PluginError(described(hook), got, "return a Gradient, as `gradient(params)` does")
    outcome: StepOutcome = computed.outcome
    updates, optimizer_state = pieces.optimizer.update(computed.value, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ()
    if pieces.ema is not None:
        ema = pieces.frozen.kept(state.ema, optax.incremental_update(params, state.ema, 1.0 - pieces.ema))
    metrics = {**outcome.metrics, "gradient_norm": optax.tree.norm(computed.value)}
    return TrainState(params, outcome.model_state, optimizer_state, ema, outcome.terms, state.step + 1), metrics


def accumulated(
    part: Callable[[Any, Batch, Any], tuple[Any, Any, StepOutcome]],
    state: TrainState,
    batch: Batch,
    perturbations: Any,
    parts: int,
    by: Literal["unroll", "scan"],
) -> tuple[Any, Any, StepOutcome]:
    """(gradient, perturbations, outcome) of a batch as means over equal parts of it, taken one after the other.

    part(moving statistics, examples, perturbations) does one; each finds the statistics that the one before left.
    Perturbations carry a leading axis of parts where there are several.
    """
    if parts == 1:
        return part(state.model_state, batch, perturbations)

    def one(carry: tuple[Any, Any], examples: tuple[Batch, Any]) -> tuple[tuple[Any, Any], Any]:
        model_state, total = carry
        value, found, outcome = part(model_state, *examples)
        total = jax.tree.map(lambda t, v: t + v / parts, total, value)
        return (outcome.model_state, total), (found, outcome.metrics)

    cut = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    begun = (state.model_state, zeros)
    (model_state, value), (found, metrics) = jax.lax.scan(one, begun, (cut, perturbations), unroll=by == "unroll" or 1)
    return value, found, StepOutcome(model_state, state.terms, jax.tree.map(partial(jnp.mean, axis=0), metrics))


def updated_statistics(probe: Probe, update: str, before: Any) -> Any:
    """Moving statistics after the step, from the loss's pass that the policy names (`auto`: clean if there was one)."""
    if not before:
        return before
    found = probe.states.get(updating_pass(update, probe.states), before)
    return jax.lax.stop_gradient(absorbed(before, found) if probe.relative else found)


def updating_pass(update: str, passes: Container[str]) -> str:
    """The pass that updates the moving statistics under a policy, given the passes that an objective makes."""
    return update if update != "auto" else ("clean" if "clean" in passes else "perturbed")
