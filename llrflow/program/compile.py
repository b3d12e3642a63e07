"""A resolved spec, the facts about its dataset and the devices become a program, once they have been checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import haiku as hk
import jax
import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.kept import kept_program
from llrflow.attacks.network import Network, Placement, example_of
from llrflow.attacks.program import AttackProgram
from llrflow.base.errors import InputError, LlrflowError, SpecError, line_of
from llrflow.components.calls import placed
from llrflow.components.traced import bind
from llrflow.data.facts import DatasetFacts, describe
from llrflow.data.held_back import check_classes
from llrflow.data.pipelines import choose, roles
from llrflow.data.schema import Data
from llrflow.method.objective import CLEAN
from llrflow.method.probe import LogitsFn, Probe
from llrflow.method.term import lacking_classes
from llrflow.method.threat import Threat
from llrflow.models.network import STATISTICS
from llrflow.program.compiled import Key, functions_of
from llrflow.program.devices import Devices
from llrflow.program.freeze import check_frozen
from llrflow.program.inputs import Inputs, optax_errors
from llrflow.program.memory import fitting_parts
from llrflow.program.state import Batch, Placed, TrainState
from llrflow.program.step import predict, stand_in, updating_pass
from llrflow.spec.load import at
from llrflow.spec.resolve import resolve
from llrflow.spec.schema import Spec


class Program:
    """Everything that a run computes on devices. Made by `compile_spec`."""

    why_parts: str | None = None
    """Why `train.accumulate` has its value; None unless the spec left it to be found."""

    def __init__(self, spec: Spec, facts: DatasetFacts, devices: Devices) -> None:
        self.spec, self.facts, self.devices = spec, facts, devices
        self.inputs = Inputs(spec)
        with optax_errors(spec, "optimizer"):
            bind(spec, dict(zip(self.inputs.names, self.inputs.at(0), strict=True))).optimizer.build()
        self.classes, self.image_shape = facts.classes, facts.image_shape
        self._compiled = functions_of(Key(spec, facts, devices, self.inputs.names))
        self._seed = devices.replicate(np.uint32(spec.seed))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        assert self.spec.train.steps is not None
        return self.spec.train.steps

    @property
    def traced_steps(self) -> int:
        """How often this process has traced, and so compiled, this training step or one that differs in numbers."""
        return self._compiled.traced_steps

    @property
    def evaluated_parameters(self) -> Literal["raw", "ema"]:
        """Which parameters `evaluate.parameters` chooses."""
        chosen = self.spec.evaluate.parameters
        return ("raw" if self.spec.train.ema is None else "ema") if chosen == "auto" else chosen

    def init(self) -> TrainState:
        """Fresh training state on the devices."""
        return self._compiled.init(self._seed, self._numbers(0))

    def train_step(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Finish step number `step` (from 0) with this process's part of its batch.

        `state` is given up; metrics are device arrays, equal on all devices.
        """
        return self.advance(state, self.place(batch, step))

    def place(self, batch: Batch, step: int) -> Placed:
        """What `advance` needs of a step besides the state, on its way to the devices: nothing waits for it."""
        return Placed(self.devices.shard(batch), self._numbers(step))

    def advance(self, state: TrainState, placed: Placed) -> tuple[TrainState, dict[str, Any]]:
        """As `train_step`, with a batch that was placed before."""
        return self._compiled.train(self.devices.ended(state), placed.batch, self._seed, placed.numbers)

    def averaged_statistics(
        self, state: TrainState, batches: Iterable[Batch], between: Callable[[int], None] = lambda done: None
    ) -> Any:
        """BatchNorm's moving statistics for the averaged parameters of an unreplicated state: means over some batches.

        They are those that training would leave at these parameters, with its augmentation, its searches and the values
        of its schedules at the state's step. `between` is called with the number of batches after each.
        """
        numbers = self._numbers(max(int(state.step) - 1, 0))
        found = self.devices.replicate(state._replace(params=state.ema, optimizer_state=(), ema=()))
        for done, batch in enumerate(batches):
            found = found._replace(step=self.devices.replicate(np.int32(done)))
            statistics = self._compiled.with_batch(found, self.devices.shard(batch), self._seed, numbers)
            found = found._replace(model_state=self.devices.ended(statistics))
            between(done + 1)
        return self.devices.fetch(found.model_state)

    def logits(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """Logits [B,K] of float images [B,H,W,C], B a multiple of the devices; variables are replicated."""
        return self.devices.gather(self._compiled.predict(variables, self.devices.shard(images)))

    @property
    def network(self) -> Network:
        """The network as attacks see it: with moving statistics."""
        return self._compiled.attacked

    @property
    def placement(self) -> Placement:
        """How attacks get onto this program's devices."""
        return self._compiled.placement

    def attack(self, attack: Attack, threat: Threat, surrogate: Network | None = None) -> AttackProgram:
        """An attack on this program's network within a threat, compiled over its devices."""
        return kept_program(attack, threat, self.network, self.placement, surrogate)

    def trace_attack(self, attack: Attack, threat: Threat) -> None:
        """Trace an attack without running it: raises PluginError for a plugin's fault in it."""
        state, _, _, _ = self._abstract_step()
        for part in attack.stages(threat, self.classes).values():
            variables = (state.params, state.model_state)
            self.attack(part, threat).trace(variables, len(self.devices), example_of(self.image_shape))

    def logits_fn(self, params: Any, model_state: Any) -> LogitsFn:
        """A plain JAX function of images for given unreplicated variables."""
        return partial(predict, self._compiled.network, params, model_state)

    def abstract_state(self) -> TrainState:
        """An unreplicated state of NumPy zeros, the target of a restore."""
        state = jax.eval_shape(self._compiled.init, self._seed, self._numbers(0))
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), state)

    def probes(self, network: hk.TransformedWithState | None = None) -> list[Probe]:
        """The probe of each computation of the gradient in one step, which knows what was asked; traced, not run.

        `network` stands in for the model, whose own step may take minutes to trace.
        """
        made: list[Probe] = []
        step = partial(self._compiled.step, observe=made.append, network=network)
        jax.eval_shape(self.devices.pmap(step), *self._abstract_step(network))
        return made

    def stand_in(self) -> hk.TransformedWithState:
        """A quick network with moving statistics if the model has some."""
        return stand_in(self.classes, bool(jax.tree.leaves(self.abstract_state().model_state)))

    def training_pass(self) -> Any:
        """(logits, what their derivative for parameters and images keeps) of one training batch; traced, not run."""
        state, batch, _, _ = self._abstract_step()

        def run(params: Any, model_state: Any, images: jax.Array) -> Any:
            def apply(params: Any, images: jax.Array) -> Any:
                return self._compiled.network.apply(params, model_state, None, images, True)

            return jax.vjp(apply, params, images, has_aux=True)[:2]

        images = jax.ShapeDtypeStruct(batch.images.shape, np.float32)
        return jax.eval_shape(self.devices.pmap(run), state.params, state.model_state, images)

    def lowered_step(self) -> Any:
        """The training step lowered for abstract arguments, for cost analysis."""
        return self._compiled.train.lower(*self._abstract_step())

    def lowered_forward(self) -> Any:
        """A device's share of one prediction of a training batch, lowered for a CPU: clients of GPUs and TPUs know what
        a program costs only once it is compiled. Raises SpecError where JAX was started without its CPU."""
        state, batch, _, _ = self._abstract_step()
        images = jax.ShapeDtypeStruct(batch.images.shape, np.float32)
        arguments = (state.params, state.model_state), images
        share = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), arguments)
        try:
            cpu = jax.local_devices(backend="cpu")[0]
        except RuntimeError:
            got = "names no CPU, for which costs are counted"
            raise SpecError("JAX_PLATFORMS", got, "leave it unset, or name both: cuda,cpu") from None
        with jax.default_device(cpu):
            return jax.jit(self._compiled.attacked.predict).lower(*share)

    def _abstract_step(self, network: hk.TransformedWithState | None = None) -> tuple[TrainState, Batch, Any, Any]:
        init = self._compiled.init  # which was traced before, most likely
        if network is not None:
            init = self.devices.pmap(partial(self._compiled.initialise, network=network))
        state = jax.eval_shape(init, self._seed, self._numbers(0))
        size = (len(self.devices.own), self.spec.train.batch_size // len(self.devices))
        batch = Batch(
            jax.ShapeDtypeStruct((*size, *self.image_shape), np.uint8),
            jax.ShapeDtypeStruct(size, np.int32),
            jax.ShapeDtypeStruct(size, np.int32),
        )
        return state, batch, self._seed, self._numbers(0)

    def _numbers(self, step: int) -> jax.Array:
        return self.devices.replicate(self.inputs.at(step))  # type: ignore[return-value]


def compile_spec(spec: Spec, training: bool = True, facts_of: Callable[[Data], DatasetFacts] = describe) -> Program:
    """Resolve a spec against its dataset and devices, and prepare its programs (compiled when first run).

    With `training` the devices are those of all processes of a group. Without `devices.count` it takes all, on CPU as
    many as the batch divides over if that leaves less than half of the cores idle. Raises DataError when the dataset
    is not prepared, or all images of a class are held back; SpecError when spec, data and devices do not fit; without
    `training` the training batch may be any. `facts_of` finds the dataset.
    """
    with located(spec):
        facts = facts_of(spec.data)
        for role in roles(spec.data):
            choose(spec.data, facts, role)  # which raises where it cannot
        if training and facts.held and facts.source == "prepared":
            check_classes(spec.data, spec.seed)
        _check_drawn(spec, facts, training)
        if facts.extra is not None and (block := spec.data.extra_block) is not None:
            choose(block, facts.extra, "train")
        resolved = resolve(spec, facts)
        devices = Devices(spec.devices.count, together=training)
    size, count = spec.train.batch_size, len(devices)
    if training and size % count and spec.devices.count is None and devices.platform == "cpu":
        own, processes = len(devices.own), count // len(devices.own)
        fitting = max((n for n in range(1, own + 1) if size % (n * processes) == 0), default=0)
        if fitting > own / 2:
            devices, count = Devices(fitting, together=True), fitting * processes
    if training and size % count:
        raise undivided(spec, count)
    why_parts = None
    if training and spec.train.accumulate == "auto":
        with located(spec):
            resolved, why_parts = _in_parts(resolved, facts, devices)
    if training and (size // count) % (parts := resolved.train.parts):
        got = f"= {parts} parts do not divide the {size // count} examples of a device"
        fitting = max(n for n in range(1, parts + 1) if (size // count) % n == 0)
        raise at(spec, "train.accumulate", got, f"try {fitting}")
    if lacking := lacking_classes(spec, facts.classes):
        raise at(spec, *lacking, "choose another term or target")
    channels = facts.image_shape[-1]
    for field in ("mean", "std"):
        given = getattr(spec.model, field, (0,))
        if len(given) not in (1, channels):
            raise at(
                spec, f"model.{field}", f"has {len(given)} values for {channels} channels", f"give 1 or {channels}"
            )
    with located(spec):
        program = Program(resolved, facts, devices)
        program.why_parts = why_parts
        if spec.train.freeze:
            state = program.abstract_state()
            check_frozen(spec, state.params, state.model_state)
        if spec.plugins:
            _check_state(program)
        if training:
            _check_objective(program)
    return program


def _check_drawn(spec: Spec, facts: DatasetFacts, training: bool) -> None:
    """Raise SpecError where a run is to be evaluated on more test images than there are."""
    drawn = spec.evaluate.images
    if training and drawn is not None and drawn.count > facts.test:
        got = f"= {drawn.count:,}, but there are {facts.test:,} test images"
        raise SpecError("evaluate.images", got, "ask for fewer, or delete it to evaluate all")


def _in_parts(spec: Spec, facts: DatasetFacts, devices: Devices) -> tuple[Spec, str]:
    """The spec with the number of parts that `train.accumulate: auto` stands for, and why it is that one."""
    assert spec.devices.memory is not None
    parts = fitting_parts(Program(spec, facts, devices), spec.devices.memory)
    train = spec.train.model_copy(update={"accumulate": parts.count})
    return spec.model_copy(update={"train": train}), parts.why


def undivided(spec: Spec, count: int) -> SpecError:
    """The error for a batch that does not divide over so many devices."""
    size = spec.train.batch_size
    fix = f"try {-(-size // count) * count}"
    return at(spec, "train.batch_size", f"= {size} does not divide over {count} devices", fix)


def _check_state(program: Program) -> None:
    """Raise SpecError where statistics are asked for that only Haiku's BatchNorm layers can give anew."""
    spec, held = program.spec, program.abstract_state().model_state
    if not jax.tree.leaves(held) or all(module.rpartition("/")[2] in STATISTICS for module in held):
        return
    got = f"and {spec.model.label()} keeps a state of its own, which only its passes know to update"
    policy = spec.train.batch_norm
    for field in ("terms", "search"):
        if getattr(policy, field) == "clean":
            raise at(spec, f"train.batch_norm.{field}", f"= 'clean', {got}", "choose batch or moving")
    if spec.train.ema is not None:
        fix = "delete it, or use layers that keep none, such as group norm"
        raise at(spec, "train.ema", f"needs statistics of the averaged parameters, {got}", fix)


def _check_objective(program: Program) -> None:
    """Trace a step where something can only be found that way: a plugin's fault, or statistics never updated.

    Raises PluginError, or SpecError when no pass updates the moving statistics that evaluation will use.
    """
    spec = program.spec
    policy, loss = spec.train.batch_norm, spec.objective.loss
    usual = policy.update == "auto" and loss.at == CLEAN
    if usual and not spec.plugins:
        return
    normed = bool(jax.tree.leaves(program.abstract_state().model_state))
    if not normed and not spec.plugins:
        return
    for under in spec.evaluate.by_threat(spec.threat) if spec.plugins else ():
        for name, attack in under.attacks.items():
            with placed(f"{under.place}.{name}"):
                program.trace_attack(attack, under.threat)
    try:
        made = program.probes(None if spec.plugins else program.stand_in())
        kinds = made[-1].states  # the last computation of the gradient is the one that counts
    except LlrflowError:
        raise
    except Exception as error:  # raised while differentiating, outside any call of the plugin
        got = f"cannot be traced with these plugins: {type(error).__name__}: {line_of(error)}"
        if not spec.plugins:
            raise
        raise at(spec, "objective", got, "try each one with `llrflow plugins check FILE`") from error
    updating = updating_pass(policy.update, kinds)
    if made[-1].relative:  # at perturbed images it has the clean batch's statistics, and none of its own
        kinds = {"clean"}
    if normed and updating not in kinds:
        got = f"never updates the moving statistics: this objective has no {updating} pass with batch statistics"
        raise at(spec, "train.batch_norm", got, "set `update: auto`")


@contextmanager
def located(spec: Spec) -> Iterator[None]:
    """Give an InputError that names a field of the spec (`data.name`) that field's place in the file."""
    try:
        yield
    except InputError as error:
        path = tuple(error.where.split("."))
        if path[0] not in Spec.model_fields:
            raise
        raise type(error)(spec.where(path), f"{error.where} {error.got}", error.fix) from error
