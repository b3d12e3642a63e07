"""The compiled functions of a program; specs that differ only in traced numbers share them."""

from __future__ import annotations

import functools
import json
from functools import partial
from typing import Any

import haiku as hk
import jax
import optax

from llrflow.attacks.network import Network, Placement
from llrflow.components.plugins import imported_identity
from llrflow.components.traced import bind, static_key
from llrflow.data.facts import DatasetFacts
from llrflow.data.mix import mix
from llrflow.data.windows import on_device
from llrflow.method.ascent import plan_steps
from llrflow.models.repeated import Tracing
from llrflow.program.averages import with_batch
from llrflow.program.devices import Devices
from llrflow.program.freeze import Frozen
from llrflow.program.inputs import BLOCKS
from llrflow.program.state import Batch, TrainState
from llrflow.program.step import Pieces, Statistics, initialise, network_of, predict, train_step
from llrflow.spec.schema import Spec


def static_parts(spec: Spec) -> dict[str, Any]:
    """What a spec says that decides its compiled programs, as plain data."""
    # Model, augmentations and mixing are compiled in whole: their numbers are constants, marked Traced or not.
    parts: dict[str, Any] = {name: static_key(getattr(spec, name)) for name in BLOCKS}
    parts["model"] = spec.model.model_copy(update={"start": None}).model_dump()  # arrays are no part of a program
    unscaled = {"scale_for_batch": None, "base_batch": None}  # they change a traced number
    parts["optimizer"] = static_key(spec.optimizer.model_copy(update=unscaled))
    parts["train"] = static_key(spec.train.model_copy(update={"steps": None, "log_every": None}))
    parts["augment"] = [[name, item.model_dump()] for name, item in spec.data.augment.items()]
    parts["mix"] = [[name, item.model_dump()] for name, item in spec.data.mix.items()]
    return parts


class Key:
    """What decides a compiled program, hashed by its static part; carries the fields to build it from."""

    def __init__(self, spec: Spec, facts: DatasetFacts, devices: Devices, names: tuple[str, ...]) -> None:
        self.spec, self.facts, self.devices, self.names = spec, facts, devices, names
        described = (facts.classes, facts.image_shape, facts.varies)
        # A plugin may have changed since a program of the same words was compiled.
        code = list(map(imported_identity, spec.plugin_paths()))
        self.text = json.dumps([static_parts(spec), code, names, described, [str(d) for d in devices.all]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class Compiled:
    """The pmapped functions of one static key."""

    def __init__(self, key: Key) -> None:
        spec, facts, devices, names = key.spec, key.facts, key.devices, key.names
        for_cpu = devices.platform == "cpu"
        self.network = network_of(spec.model, facts.classes, tracing=Tracing(for_cpu=for_cpu))
        self.attacked = Network(partial(_predict, self.network))
        copies = (devices.pmap, devices.shard, devices.replicate, devices.gather)
        self.placement = Placement(*copies, devices.platform, (len(devices.own),))
        tracing = Tracing(spec.train.remat, for_cpu)
        frozen = Frozen(spec.train.freeze, spec.train.freeze_statistics)
        trained = frozen.normalising(network_of(spec.model, facts.classes, spec.train.precision, tracing))
        longest = max((p.steps for p in spec.objective.perturbations.values()), default=1)
        plan = plan_steps(longest, devices.platform, inside=True)
        policy = spec.train.batch_norm
        searching = policy.terms if policy.search == "terms" else policy.search

        def pieces(values: jax.Array, network: hk.TransformedWithState) -> Pieces:
            bound = bind(spec, {name: values[i] for i, name in enumerate(names)})
            optimizer = bound.optimizer.build()
            if bound.optimizer.clip_norm is not None:
                optimizer = optax.chain(optax.clip_by_global_norm(bound.optimizer.clip_norm), optimizer)
            return Pieces(
                network=network,
                classes=facts.classes,
                objective=bound.objective,
                threat=bound.threat,
                optimizer=frozen.updating(optimizer),
                frozen=frozen,
                ema=bound.train.ema,
                augment=on_device(bound.data.augment, facts.varies),
                statistics=Statistics(policy.terms, searching, policy.update),
                accumulate=spec.train.parts,
                by=plan.inside,
                recompute=spec.train.remat != "none",
                mix=partial(mix, mixings=bound.data.mix, classes=facts.classes) if spec.data.mix else None,
            )

        def init(seed: jax.Array, values: jax.Array, network: Any = None) -> TrainState:
            return initialise(pieces(values, network or self.network), facts.image_shape, seed)

        def step(state: TrainState, batch: Batch, seed: jax.Array, values: jax.Array, network: Any = None, **options):
            return train_step(pieces(values, network or trained), state, batch, seed, **options)

        def statistics(state: TrainState, batch: Batch, seed: jax.Array, values: jax.Array) -> Any:
            return with_batch(pieces(values, frozen.normalising(self.network)), state, batch, seed)

        def counted(*arguments: Any) -> Any:
            self.traced_steps += 1
            return step(*arguments)

        self.initialise, self.step, self.traced_steps = init, step, 0
        self.init = devices.pmap(init)
        self.train = devices.pmap(counted, donate=(0,))
        self.with_batch = devices.pmap(statistics)
        self.predict = devices.pmap(partial(_predict, self.network))


@functools.lru_cache(maxsize=8)
def functions_of(key: Key) -> Compiled:
    """Those of the key, which specs that share it share; the last eight are kept."""
    return Compiled(key)


def _predict(network: Any, variables: Any, images: jax.Array) -> jax.Array:
    params, model_state = variables
    return predict(network, params, model_state, images)
