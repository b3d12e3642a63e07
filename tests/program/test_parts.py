"""Convolutions in parts of the batch: the same numbers, from networks of every kind of block."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.models import parts
from llrflow.models.repeated import Tracing
from llrflow.program.step import network_of
from llrflow.registry import make

RESNET = {"type": "wide_resnet", "depth": 10, "width": 1, "norm": "group"}


def convolved_batches(function, *arguments):
    """Batch sizes of the convolutions in a function's trace."""
    found, todo = [], [jax.make_jaxpr(function)(*arguments).jaxpr]
    while todo:
        for equation in todo.pop().eqns:
            if equation.primitive.name == "conv_general_dilated":
                found.append(equation.invars[0].aval.shape[0])
            todo += [jaxpr.jaxpr for jaxpr in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr"))
                     if hasattr(jaxpr, "jaxpr")]  # fmt: skip
    return found


@pytest.mark.parametrize("config", [RESNET, {"type": "cnn", "channels": [8, 12], "dense": 8}])
def test_outputs_and_derivatives_are_those_of_the_whole_batch(config, monkeypatch):
    monkeypatch.setattr(parts, "_CACHED", 2**12)
    model, rng = make("model", config), np.random.default_rng(0)
    images, towards = (jnp.asarray(rng.random((7, 16, 16, 3)), jnp.float32) for _ in range(2))
    whole, divided = (network_of(model, 5, tracing=Tracing(in_parts=chosen)) for chosen in (False, True))
    params, state = whole.init(jax.random.key(0), images, True)
    assert jax.tree.structure(params) == jax.tree.structure(divided.init(jax.random.key(0), images, True)[0])

    def passes(network, params, images):
        def logits(images):
            return network.apply(params, state, None, images, False)[0]

        return jax.jvp(logits, (images,), (towards,))

    def total(params, images, network):
        return sum(jnp.sum(jnp.sin(out)) for out in passes(network, params, images))

    made = [passes(network, params, images) for network in (whole, divided)]
    slopes = [jax.jit(jax.grad(total, (0, 1)), static_argnums=2)(params, images, n) for n in (whole, divided)]
    for one, other in (made, slopes):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, other)
    batches = [
        convolved_batches(lambda p, x, n=n: n.apply(p, state, None, x, False)[0], params, images)
        for n in (whole, divided)
    ]
    assert set(batches[0]) == {7} and min(batches[1]) < 7 and sum(batches[0]) == sum(batches[1])


def test_only_what_exceeds_a_cache_is_divided():
    layer = hk.transform(lambda x: hk.Conv2D(64, 3, stride=2)(x))
    layer_in_parts = hk.transform(parts.in_parts(lambda x: hk.Conv2D(64, 3, stride=2)(x)))
    for side, expected in ((8, [32]), (32, [16, 16]), (64, [8, 8, 8, 8])):  # 0.1, 2 and 8 MiB of output
        images = jnp.zeros((32, side, side, 3))
        params = layer.init(jax.random.key(0), images)
        assert convolved_batches(lambda p, x: layer_in_parts.apply(p, None, x), params, images) == expected
        assert convolved_batches(lambda p, x: layer.apply(p, None, x), params, images) == [32]
