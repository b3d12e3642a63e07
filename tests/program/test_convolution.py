"""Weight gradients summed over parts of the batch: the same numbers, from networks of every kind of block."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.components.registry import make
from llrflow.models import convolution
from llrflow.models.repeated import Tracing
from llrflow.program.step import network_of

RESNET = {"type": "wide_resnet", "depth": 10, "width": 1, "norm": "group"}
CNN = {"type": "cnn", "channels": [8, 12], "dense": 8}


def convolutions(function, *arguments):
    """JAX's own convolutions in a function's trace."""
    found, todo = [], [jax.make_jaxpr(function)(*arguments).jaxpr]
    while todo:
        for equation in todo.pop().eqns:
            if equation.primitive.name == "conv_general_dilated":
                found.append(equation)
            todo += [jaxpr.jaxpr for jaxpr in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr"))
                     if hasattr(jaxpr, "jaxpr")]  # fmt: skip
    return found


def convolved_batches(function, *arguments):
    """Their batch sizes."""
    return [equation.invars[0].aval.shape[0] for equation in convolutions(function, *arguments)]


@pytest.fixture
def networks(monkeypatch):
    """networks(config) -> (parameters, state, images, directions, [the network whole, and in parts])."""
    monkeypatch.setattr(convolution, "_CACHED", 2**12)

    def make_both(config):
        model, rng = make("model", config), np.random.default_rng(0)
        images, towards = (jnp.asarray(rng.random((7, 16, 16, 3)), jnp.float32) for _ in range(2))
        both = [network_of(model, 5, tracing=Tracing(for_cpu=chosen)) for chosen in (False, True)]
        params, state = both[0].init(jax.random.key(0), images, True)
        assert jax.tree.structure(params) == jax.tree.structure(both[1].init(jax.random.key(0), images, True)[0])
        return params, state, images, towards, both

    return make_both


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, other)


@pytest.mark.parametrize("config", [RESNET, CNN])
def test_outputs_and_derivatives_are_those_of_the_whole_batch(config, networks):
    params, state, images, towards, both = networks(config)

    def passes(network, params, images):
        def logits(images):
            return network.apply(params, state, None, images, False)[0]

        return jax.jvp(logits, (images,), (towards,))

    def total(params, images, network):
        return sum(jnp.sum(jnp.sin(out)) for out in passes(network, params, images))

    assert_close(*(passes(network, params, images) for network in both))
    slope = jax.grad(total, (0, 1))
    assert_close(*(jax.jit(slope, static_argnums=2)(params, images, network) for network in both))
    whole, parts = (convolved_batches(lambda p, x, n=n: slope(p, x, n), params, images) for n in both)
    assert set(whole) == {7} and min(parts) < 7, "gradients of weights are convolutions with a part of the images"


def test_derivatives_of_every_order_and_batches_of_batches(networks):
    params, state, images, towards, both = networks(CNN)

    def loss(params, images, network):
        return jnp.sum(jnp.sin(network.apply(params, state, None, images, False)[0]))

    def double(params, network):  # double backpropagation
        return jnp.sum(jax.grad(loss, 1)(params, images, network) * towards)

    assert_close(*(jax.grad(double)(params, network) for network in both))

    def along(params, network):  # the Hessian in the parameters, along the parameters
        return jax.jvp(lambda p: jax.grad(loss)(p, images, network), (params,), (params,))[1]

    assert_close(*(along(params, network) for network in both))
    pairs = jnp.stack([images, towards])
    assert_close(*(jax.vmap(lambda x, n=n: jax.grad(loss)(params, x, n))(pairs) for n in both))


@pytest.mark.parametrize(("side", "parts"), [(8, [32]), (32, [16, 16]), (64, [4] * 8)])  # 0.1, 2 and 8 MiB of output
def test_only_what_exceeds_a_cache_is_summed_over_parts(side, parts):
    layers = [hk.transform(f(lambda x: hk.Conv2D(64, 3, stride=2)(x))) for f in (lambda f: f, convolution.for_cpu)]
    images = jnp.zeros((32, side, side, 3))
    params = layers[0].init(jax.random.key(0), images)

    def of_weights(layer):
        return convolved_batches(lambda p: jax.grad(lambda p: jnp.sum(layer.apply(p, None, images)))(p), params)

    assert of_weights(layers[0])[1:] == [32] and of_weights(layers[1]) == parts


@pytest.mark.parametrize(
    "settings", [{"feature_group_count": 3}, {"mask": np.ones((3, 3, 3, 6))}, {"rate": 2}, {"padding": "VALID"}]
)
def test_layers_of_other_kinds(settings, monkeypatch):
    monkeypatch.setattr(convolution, "_CACHED", 2**10)
    layers = [hk.transform(f(lambda x: hk.Conv2D(6, 3, **settings)(x))) for f in (lambda f: f, convolution.for_cpu)]
    images = jnp.asarray(np.random.default_rng(0).random((5, 8, 8, 3)), jnp.float32)
    params = layers[0].init(jax.random.key(1), images)
    assert_close(*(jax.grad(lambda p, n=n: jnp.sum(jnp.sin(n.apply(p, None, images))))(params) for n in layers))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "in_blocks"),
    [
        (4, 2, "SAME", True),
        (2, 2, "VALID", True),
        ((4, 3), (4, 1), [(3, 0), (1, 2)], True),
        (2, 2, [(0, 0), (-1, 0)], True),
        (3, 2, "SAME", False),
        (1, 2, "SAME", False),
    ],
)
@pytest.mark.parametrize("channels", [3, 5])
def test_strides_that_divide_the_kernel_leave_no_zeros_to_convolve(kernel, stride, padding, in_blocks, channels):
    images = jnp.asarray(np.random.default_rng(0).random((2, 11, 14, channels)), jnp.float32)

    def layer(x):
        return hk.Conv2D(6, kernel, stride, padding=padding)(x)

    layers = [hk.transform(f(layer)) for f in (lambda f: f, convolution.for_cpu)]
    params = layers[0].init(jax.random.key(1), images)

    def derivatives(layer):
        def loss(params, images):
            return jnp.sum(jnp.sin(layer.apply(params, None, images)))

        def double(params, images):
            return jnp.sum(jnp.sin(jax.grad(loss, 1)(params, images)))

        return jax.jit(loss), jax.grad(loss, (0, 1)), jax.grad(double, (0, 1))

    whole, for_cpu = map(derivatives, layers)
    for one, other in zip(whole, for_cpu, strict=True):
        assert_close(one(params, images), other(params, images))
    found = convolutions(lambda x: for_cpu[1](params, x)[1], images)
    assert any({*c.params["lhs_dilation"]} != {1} for c in found) != in_blocks
    assert ("stride = [1, 1]" in for_cpu[0].lower(params, images).as_text()) == (in_blocks and channels <= 4)


class Standardised(hk.Conv2D):
    """A layer of a plugin, which does more than its base."""

    def __call__(self, images):
        return 3 * super().__call__(images)


def test_layers_of_other_classes_and_other_ways_of_calling_are_left_alone(monkeypatch):
    monkeypatch.setattr(convolution, "_CACHED", 2**10)
    images = jnp.asarray(np.random.default_rng(0).random((5, 8, 8, 3)), jnp.float32)
    for network in (
        lambda x: Standardised(6, 3)(x),
        lambda x: hk.Conv2D(6, 3)(inputs=x),
        lambda x: hk.Conv2D(6, 3)(x[0]),
    ):
        layers = [hk.transform(f(network)) for f in (lambda f: f, convolution.for_cpu)]
        params = layers[0].init(jax.random.key(1), images)
        assert_close(*(jax.grad(lambda p, n=n: jnp.sum(jnp.sin(n.apply(p, None, images))))(params) for n in layers))


def test_parts_are_bounded():
    layer = hk.transform(convolution.for_cpu(lambda x: hk.Conv2D(64, 3)(x)))
    images = jnp.zeros((64, 64, 64, 3))  # 64 MiB of output
    params = layer.init(jax.random.key(0), images)
    batches = convolved_batches(lambda p: jax.grad(lambda p: jnp.sum(layer.apply(p, None, images)))(p), params)
    assert batches == [4] * 16


def test_bfloat16_networks_are_summed_over_parts_in_float32(monkeypatch):
    monkeypatch.setattr(convolution, "_CACHED", 2**10)
    model, images = make("model", CNN), jnp.asarray(np.random.default_rng(0).random((8, 16, 16, 3)), jnp.float32)
    both = [network_of(model, 5, "bfloat16", Tracing(for_cpu=chosen)) for chosen in (False, True)]
    params, state = both[0].init(jax.random.key(0), images, True)
    slopes = [
        jax.grad(lambda p, n=n: jnp.sum(jnp.sin(n.apply(p, state, None, images, False)[0])))(params) for n in both
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02), *slopes)
