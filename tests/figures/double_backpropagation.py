"""Time the LLR-2 step against the same step written with double backpropagation; prints the median ratios.

python double_backpropagation.py SPEC DATA_DIR; test_speed.py checks the values, method_ratios.py the time.
"""

import functools
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import llrflow
from llrflow.data.augment import augment
from llrflow.method.keys import example_keys, purpose_key
from llrflow.method.labels import cross_entropy
from llrflow.models.network import AXIS
from llrflow.program.compile import Program
from llrflow.program.cost import measure
from llrflow.program.state import Batch, TrainState


def double_backpropagation_step(program: Program, share: bool, state: TrainState, batch: Batch, seed: jax.Array) -> Any:
    """The same LLR-2 step with grad l(x) differentiated as a gradient.

    Public code searches in a function of its own, which computes l(x) and grad l(x) for itself (`share=False`).
    """
    spec, network = program.spec, program._compiled.network
    epsilon, weights = spec.threat.epsilon, {name: t.weight for name, t in spec.objective.terms.items()}
    keys = [example_keys(jax.random.fold_in(purpose_key(seed, p), state.step), batch.ids) for p in ("augment", "llr")]
    x = augment(batch.images.astype(jnp.float32) / 255.0, keys[0], {})

    def losses(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        logits, model_state = network.apply(params, state.model_state, None, images, True)
        return cross_entropy(logits, batch.labels), model_state

    def with_gradient(params: Any) -> tuple[jax.Array, jax.Array, Any]:
        def total(images: jax.Array) -> tuple[jax.Array, Any]:
            loss, model_state = losses(params, images)
            return jnp.sum(loss), (loss, model_state)

        gradient, (loss, model_state) = jax.grad(total, has_aux=True)(x)
        return loss, gradient, model_state

    def inner(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=(1, 2, 3))

    def objective(params: Any) -> tuple[jax.Array, Any]:
        loss, gradient, model_state = with_gradient(params)
        if share:
            fixed = jax.lax.stop_gradient((params, loss, gradient))
        else:
            constant = jax.lax.stop_gradient(params)
            fixed = (constant, *with_gradient(constant)[:2])

        def linearity(delta: jax.Array, at: Any, l: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.abs(losses(at, x + delta)[0] - l - inner(delta, g))

        restart = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys[1])
        delta = spec.threat.project(spec.threat.uniform(restart, x), x)
        for _ in range(2):
            ascent = jax.grad(lambda d: jnp.sum(linearity(d, *fixed)))(delta)
            delta = spec.threat.project(delta + 2.5 * epsilon / 2 * jnp.sign(ascent), x)
        delta = jax.lax.stop_gradient(delta)
        parts = weights["gamma"] * linearity(delta, params, loss, gradient)
        parts += weights["slope"] * jnp.abs(inner(delta, gradient))
        return jnp.mean(loss + parts), model_state

    (value, model_state), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    gradient, value = jax.lax.pmean((gradient, value), AXIS)
    optimizer = spec.optimizer.build()
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, model_state, optimizer_state, (), {}, state.step + 1), {"objective": value}


class Written:
    """That step in the place of a program's."""

    def __init__(self, program: Program, share: bool) -> None:
        self.spec, self.classes, self.image_shape = program.spec, program.classes, program.image_shape
        self._program, self.init = program, program.init
        step = functools.partial(double_backpropagation_step, program, share)
        self._compiled = types.SimpleNamespace(train=program.devices.pmap(step, donate=(0,)))

    def lowered_step(self) -> Any:
        return self._compiled.train.lower(*self._program._abstract_step()[:3])

    def train_step(self, state: TrainState, batch: Batch, step: int) -> Any:
        return self._compiled.train(state, self._program.devices.shard(batch), self._program._seed)


def written(spec: str, data_dir: str, **model: Any) -> tuple[Program, Written, Written]:
    """The program of a spec, its model changed; its step with double backpropagation, usual and shared."""
    changes = {"devices.count": 2, "data.dir": data_dir, **{f"model.{name}": value for name, value in model.items()}}
    program = llrflow.compile(llrflow.load_spec(spec, changes))
    return program, Written(program, share=False), Written(program, share=True)


def check_values(spec: str, data_dir: str, norm: str = "batch") -> None:
    """That all three compute the same objective, on a small network."""
    programs = written(spec, data_dir, norm=norm, widths=[16])
    rng, devices = np.random.default_rng(0), programs[0].devices
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), np.uint8), rng.integers(0, 10, 64, np.int32)
    batch = Batch(images, labels, np.arange(64, dtype=np.int32))
    values = [float(devices.fetch(made.train_step(made.init(), batch, 0)[1])["objective"]) for made in programs]
    np.testing.assert_allclose(values[1:], values[0], rtol=1e-4)


def main(spec: str, data_dir: str) -> None:
    check_values(spec, data_dir)
    ours, usual, shared = written(spec, data_dir)
    print(json.dumps({name: measure(ours, made, 9)["ratio"] for name, made in (("usual", usual), ("shared", shared))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
