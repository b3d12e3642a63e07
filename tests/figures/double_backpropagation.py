"""Time the LLR-2 step against the same step written with double backpropagation; prints the median ratios.

Run by test_speed.py in a process of its own: python double_backpropagation.py SPEC DATA_DIR
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import llrflow
from llrflow.data.augment import augment
from llrflow.keys import example_keys, purpose_key
from llrflow.models.network import AXIS
from llrflow.probe import cross_entropy
from llrflow.program.compile import Program
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


def steps_of(spec: str, data_dir: str, norm: str) -> tuple[Program, list[Callable[[TrainState], Any]]]:
    changes = {"devices.count": 2, "data.dir": data_dir, "model.norm": norm}
    if norm == "none":
        changes["model.widths"] = [16]  # only its values are looked at, not its time
    program = llrflow.compile(llrflow.load_spec(spec, changes))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), np.uint8), rng.integers(0, 10, 64, np.int32)
    batch = Batch(images, labels, np.arange(64, dtype=np.int32))
    seed, on_devices = program.devices.replicate(np.uint32(program.spec.seed)), program.devices.shard(batch)
    usual, shared = (
        program.devices.pmap(functools.partial(double_backpropagation_step, program, share)) for share in (False, True)
    )
    return program, [
        lambda state: program.train_step(state, batch, 0),
        lambda state: usual(state, on_devices, seed),
        lambda state: shared(state, on_devices, seed),
    ]


def main(spec: str, data_dir: str) -> None:
    # Batch statistics couple examples, and then <delta_i, grad_i sum l> is not the derivative of l_i along delta:
    # only without them must the steps agree to the last digit.
    program, steps = steps_of(spec, data_dir, "none")
    values = [float(program.devices.fetch(step(program.init())[1])["objective"]) for step in steps]
    np.testing.assert_allclose(values[1:], values[0], rtol=1e-4)
    program, steps = steps_of(spec, data_dir, "batch")

    def seconds(step: Callable[[TrainState], Any]) -> float:
        state = jax.block_until_ready(program.init())
        began = time.perf_counter()
        jax.block_until_ready(step(state)[1])
        return time.perf_counter() - began

    for step in steps:
        seconds(step)
    ours, usual, shared = np.array([[seconds(step) for step in steps] for _ in range(9)]).T
    print(json.dumps({"usual": np.median(ours / usual), "shared": np.median(ours / shared)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
