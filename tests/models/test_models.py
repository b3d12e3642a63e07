"""Networks: their sizes, and predictions that depend on nothing but the image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from llrflow.components.registry import make
from llrflow.models.network import AXIS
from llrflow.program.step import network_of, predict


def variables_of(model, image_shape, classes=10):
    """(params, moving statistics) after one pass that updates the latter."""
    network = network_of(model, classes)

    def init(key):
        images = jax.random.uniform(key, (4, *image_shape))
        params, state = network.init(key, images, True)
        return params, network.apply(params, state, None, images, True)[1]

    variables = jax.vmap(jax.jit(init), axis_name=AXIS)(jax.random.split(jax.random.key(0), 1))
    return jax.tree.map(lambda leaf: leaf[0], variables)


def size(model, image_shape, classes=10):
    def init(key):
        return network_of(model, classes).init(key, jnp.zeros((2, *image_shape)), True)[0]

    shapes = jax.eval_shape(jax.vmap(init, axis_name=AXIS), jax.random.split(jax.random.key(0), 1))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def mlp(height, width, channels):
    return height * width * channels * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


def cnn(height, width, channels):
    convolutions = 9 * channels * 32 + 32 + 9 * 32 * 64 + 64
    return convolutions + -(-height // 2) * -(-width // 2) * 64 * 128 + 128 + 128 * 10 + 10


def resnet(channels, norm):
    """Convolutions and logits; a scale and an offset per channel of a norm layer, or a bias per convolution."""
    weights = (
        9 * channels * 16 + 2 * 9 * 16 * 16 + 9 * (16 * 32 + 32 * 32) + 9 * (32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    )
    biases = 16 + 2 * 16 + 2 * 32 + 2 * 64
    normed = (16 + 16) + (16 + 32) + (32 + 64) + 64
    return weights + 64 * 10 + 10 + (biases if norm == "none" else 2 * normed)


SIZES = [
    ({"type": "mlp"}, (8, 8, 1), 85_002),
    ({"type": "mlp"}, (32, 32, 3), 855_050),
    ({"type": "cnn"}, (8, 8, 1), 151_306),
    ({"type": "cnn"}, (32, 32, 3), 2_117_962),
    *(({"type": "resnet", "norm": norm}, (8, 8, 1), resnet(1, norm)) for norm in ("batch", "group", "none")),
    *(({"type": "resnet", "norm": norm}, (32, 32, 3), resnet(3, norm)) for norm in ("batch", "group", "none")),
]


@pytest.mark.parametrize(("config", "image_shape", "expected"), SIZES, ids=str)
def test_number_of_parameters(config, image_shape, expected):
    assert size(make("model", config), image_shape) == expected


def test_golden_sizes_follow_from_the_architecture():
    assert [mlp(8, 8, 1), mlp(32, 32, 3), cnn(8, 8, 1), cnn(32, 32, 3)] == [count for _, _, count in SIZES[:4]]
    assert size(
        make("model", {"type": "cnn", "channels": [16, 32], "kernel": 4, "strides": [2, 2], "dense": 100}), (28, 28, 1)
    ) == (16 * 16 + 16 + 16 * 16 * 32 + 32 + 7 * 7 * 32 * 100 + 100 + 100 * 10 + 10)


MODELS = [
    {"type": "mlp", "widths": [8]},
    {"type": "cnn", "channels": [4], "dense": 0, "norm": "batch"},
    {"type": "resnet", "widths": [4, 8], "norm": "batch"},
    {"type": "resnet", "widths": [4, 8], "norm": "group"},
    {"type": "wide_resnet", "depth": 10, "width": 1, "norm": "batch"},
    {"type": "denoise_resnet", "depth": 18, "width": 2, "norm": "batch", "stem": "imagenet"},
    {"type": "convnext", "depths": [1], "widths": [8], "patch": 2, "layer_scale": 1},
    {"type": "vit", "patch": 3, "width": 8, "depth": 1, "heads": 2},
]


@functools.cache
def trained(index):
    model = make("model", MODELS[index])
    network = network_of(model, 10)
    variables = variables_of(model, (6, 6, 1))
    return network, *variables, jax.jit(functools.partial(predict, network))


@pytest.mark.parametrize("index", range(len(MODELS)), ids=lambda index: str(MODELS[index]))
def test_a_prediction_does_not_depend_on_batch_mates(index):
    _, params, state, predicted = trained(index)
    logits = functools.partial(predicted, params, state)
    images = jax.random.uniform(jax.random.key(1), (5, 6, 6, 1))
    whole = logits(images)
    np.testing.assert_allclose(logits(images[2:3])[0], whole[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(images.at[:2].set(0.0))[2:], whole[2:], rtol=1e-4, atol=1e-5)
    assert np.all(np.ptp(np.asarray(whole), axis=1) > 0)


@pytest.mark.parametrize("index", range(len(MODELS)), ids=lambda index: str(MODELS[index]))
def test_prediction_uses_moving_statistics_and_leaves_them_alone(index):
    network, params, state, predicted = trained(index)
    images = jax.random.uniform(jax.random.key(1), (5, 6, 6, 1))
    logits, after = jax.jit(lambda *variables: network.apply(*variables, None, images, False))(params, state)
    np.testing.assert_allclose(logits, predicted(params, state, images), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert bool(state) == (MODELS[index].get("norm") == "batch")
    if state:
        other = jax.tree.map(lambda leaf: 2 * leaf + 1, state)
        assert np.any(np.abs(predicted(params, other, images) - logits) > 1e-3)


def test_published_fault_normalised_inputs_clipped():
    """Pixels below the mean are negative once normalised: they must still tell images apart."""
    _, params, state, predicted = trained(0)
    dark = predicted(params, state, jnp.full((1, 6, 6, 1), 0.1))
    black = predicted(params, state, jnp.zeros((1, 6, 6, 1)))
    assert np.any(np.abs(dark - black) > 1e-3)


def gelu(x):
    """x Phi(x)."""
    return x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2


def test_gelu_is_that_of_the_papers_and_not_its_approximation():
    act = make("model", {"type": "vit", "activation": "gelu"}).act
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    np.testing.assert_allclose(act(x), gelu(x), atol=2e-6)
    slope = scipy.special.ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(jax.vmap(jax.grad(act))(x), slope, atol=2e-6)
    assert np.max(np.abs(jax.nn.gelu(x) - gelu(x))) > 4e-4  # by tanh


@pytest.mark.parametrize("activation", ["softplus", "silu", "gelu", "elu", "tanh", "relu"])
def test_mean_and_std_normalise_before_the_first_layer(activation):
    network = network_of(
        make("model", {"type": "mlp", "widths": [5], "mean": [0.2], "std": [0.5], "activation": activation}), 3
    )
    params, _ = network.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), True)
    images = jax.random.uniform(jax.random.key(1), (4, 2, 2, 1))
    layers = [params["linear"], params["linear_1"]]
    act = gelu if activation == "gelu" else getattr(jax.nn, activation)
    hidden = act(((images - 0.2) / 0.5).reshape(4, -1) @ layers[0]["w"] + layers[0]["b"])
    np.testing.assert_allclose(
        predict(network, params, {}, images), hidden @ layers[1]["w"] + layers[1]["b"], rtol=1e-4, atol=1e-5
    )
