"""The networks of the papers: their exact sizes, their blocks at the start, and the formula of feature denoising."""

from dataclasses import replace

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import size

from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.models.denoise import non_local_mean
from llrflow.models.network import AXIS
from llrflow.models.residual import Layers
from llrflow.program.step import network_of

CIFAR, IMAGENET = ((32, 32, 3), 10), ((224, 224, 3), 1000)
PUBLISHED = [
    ({"type": "wide_resnet", "depth": 28, "width": 10}, *CIFAR, 36_479_194),
    ({"type": "wide_resnet", "depth": 34, "width": 10}, *CIFAR, 46_160_474),
    ({"type": "preact_resnet"}, *CIFAR, 11_172_170),
    ({"type": "resnet_v1", "depth": 18}, *IMAGENET, 11_689_512),
    ({"type": "resnet_v1", "depth": 34}, *IMAGENET, 21_797_672),
    ({"type": "resnet_v1", "depth": 50}, *IMAGENET, 25_557_032),
    ({"type": "resnet_v1", "depth": 101}, *IMAGENET, 44_549_160),
    ({"type": "resnet_v1", "depth": 152}, *IMAGENET, 60_192_808),
    ({"type": "convnext"}, *IMAGENET, 28_589_128),
    ({"type": "vit"}, *IMAGENET, 22_050_664),
]
"""As the authors, torchvision or timm count them."""

OURS = [
    ({"type": "wide_resnet", "depth": 28, "width": 8}, *CIFAR, 23_354_842),
    ({"type": "wide_resnet", "depth": 40, "width": 8}, *CIFAR, 35_748_314),
    ({"type": "wide_resnet", "depth": 70, "width": 16}, *CIFAR, 266_796_506),
    ({"type": "preact_resnet", "depth": 34}, *CIFAR, 21_280_330),
    ({"type": "preact_resnet", "depth": 50}, *CIFAR, 23_513_162),
    ({"type": "resnet_v2", "depth": 18}, *IMAGENET, 11_687_720),
    ({"type": "resnet_v2", "depth": 50}, *IMAGENET, 25_549_352),
    ({"type": "resnet_v2", "depth": 152}, *IMAGENET, 60_185_128),
    ({"type": "convnext", "depths": [2, 2, 6, 2], "widths": [40, 80, 160, 320]}, *IMAGENET, 3_695_520),
    ({"type": "convnext", "depths": [2, 2, 6, 2], "widths": [48, 96, 192, 384]}, *IMAGENET, 5_217_784),
]
"""What `docs/models.md` states besides."""

COUNTED = pytest.mark.parametrize(("config", "image_shape", "classes", "expected"), PUBLISHED + OURS, ids=str)


@COUNTED
def test_number_of_parameters(config, image_shape, classes, expected):
    assert size(make("model", config), image_shape, classes) == expected


def test_sizes_that_follow_from_others():
    wrn = {"type": "wide_resnet", "depth": 16, "width": 2}
    channels = [(16, 32), (32, 64), (64, 128)]
    convolutions = 9 * 3 * 16 + sum(9 * (i * o + 3 * o * o) + i * o for i, o in channels)
    norms = sum(i + 3 * o for i, o in channels) + 128
    logits = 128 * 10 + 10
    assert size(make("model", wrn), (32, 32, 3)) == convolutions + 2 * norms + logits
    biases = 16 + 4 * (32 + 64 + 128)
    assert size(make("model", {**wrn, "norm": "none"}), (32, 32, 3)) == convolutions + biases + logits
    assert size(make("model", {**wrn, "norm": "group"}), (32, 32, 3)) == convolutions + 2 * norms + logits
    imagenet = size(make("model", {**wrn, "stem": "imagenet"}), (32, 32, 3))
    assert imagenet == convolutions + 2 * norms + logits + (49 - 9) * 3 * 16

    # A denoising block: a 1x1 convolution with its norm, and theta and phi of half the channels.
    plain = size(make("model", {"type": "resnet_v1", "depth": 50}), (32, 32, 3))
    widths = [256, 512, 1024, 2048]
    for embed in (False, True):
        more = sum(c * c + 2 * c + embed * c * c for c in widths)
        assert size(make("model", {"type": "denoise_resnet", "depth": 50, "embed": embed}), (32, 32, 3)) == plain + more
    token = size(make("model", {"type": "vit"}), (32, 32, 3)) - size(
        make("model", {"type": "vit", "pool": "mean"}), (32, 32, 3)
    )
    assert token == 2 * 384  # the token and its position


def names(config):
    network = network_of(make("model", config), 7)
    init = jax.vmap(lambda key: network.init(key, jnp.zeros((2, 12, 12, 3)), True), axis_name=AXIS)
    return [set(tree) for tree in jax.eval_shape(init, jax.random.split(jax.random.key(0), 1))]


def test_names_of_layers():
    params, state = names({"type": "resnet_v1", "depth": 50})
    assert {"stem", "stem_norm", "stage0_block0/conv1", "stage3_block2/norm3", "logits"} <= params
    assert "stage1_block0/shortcut_norm" in params and "stage1_block1/shortcut" not in params
    assert "stage3_block2/norm3/~/mean_ema" in state
    params, _ = names({"type": "wide_resnet", "depth": 10})
    blocks = {
        f"stage{s}_block0/{layer}" for s in range(3) for layer in ("norm1", "conv1", "norm2", "conv2", "shortcut")
    }
    assert params == {"stem", "final_norm", "logits", *blocks}
    params, _ = names({"type": "denoise_resnet", "depth": 18})
    assert {f"stage3_denoise_{part}" for part in ("theta", "phi", "conv", "norm")} <= params
    for config in ({"type": "convnext", "depths": [1, 1], "widths": [8, 16]}, {"type": "vit", "depth": 1}):
        assert names(config)[1] == set()


STARTS = [
    (
        {"type": "denoise_resnet", "depth": 18, "width": 8, "norm": "group"},
        {
            "logits": 0.01,
            "stage3_denoise_theta": 0.01,
            "stage3_denoise_conv": (2 / 64) ** 0.5,
            "stage3_block1/conv1": (2 / (9 * 64)) ** 0.5,
        },
    ),
    ({"type": "vit", "depth": 1, "width": 96}, {"logits": 0.02, "block0/qkv": 0.02, "patches": 0.02}),
    ({"type": "convnext", "depths": [1], "widths": [64]}, {"logits": 0.02, "stage0_block0/expand": 0.02}),
]


@pytest.mark.parametrize(("config", "stds"), STARTS, ids=str)
def test_weights_start_as_the_authors_have_them(config, stds):
    network = network_of(make("model", config), 1000)
    params, _ = jax.jit(lambda key: network.init(key, jnp.zeros((1, 16, 16, 3)), True))(jax.random.key(0))
    for name, std in stds.items():
        weights = params[name]["w"]
        assert np.std(weights) == pytest.approx(std, rel=4 / np.sqrt(2 * weights.size)), name


H = jax.random.normal(jax.random.key(1), (2, 3, 3, 8))


def part(call):
    """(its parameters at the start, parameters -> output) of a part of a network at the features H."""
    network = hk.transform_with_state(lambda: call(H))

    def over_devices(run):
        return lambda *args: jax.tree.map(lambda leaf: leaf[0], jax.vmap(lambda _: run(*args), axis_name=AXIS)(ONE))

    params, state = jax.jit(over_devices(lambda: network.init(jax.random.key(0))))()
    return params, jax.jit(over_devices(lambda params: network.apply(params, state, None)[0]))


ONE = jnp.zeros(1)
BLOCKS = {
    "pre_basic": (8, "conv2", "conv2"),
    "pre_bottleneck": (2, "conv3", "conv3"),
    "post_basic": (8, "norm2", "conv2"),
    "post_bottleneck": (2, "norm3", "conv3"),
}
"""Width, and the last layer with norm layers and without."""


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", BLOCKS)
def test_zero_init_makes_a_block_the_identity(name, norm):
    width, *last = BLOCKS[name]
    layers = Layers(norm, jax.nn.softplus, True, zero_last=True)
    params, run = part(lambda h: getattr(layers, name)(h, width, 1))
    identity = jax.nn.softplus(H) if name.startswith("post") else H
    np.testing.assert_allclose(run(params), identity, atol=1e-6)
    key = last[norm == "none"]
    field = "scale" if key.startswith("norm") else "w"
    others = [layer["w"] for layer_name, layer in params.items() if "conv" in layer_name and layer_name != key]
    assert not np.any(params[key][field]) and others and all(map(np.any, others))
    moved = {**params, key: {**params[key], field: params[key][field] + 0.3}}
    assert np.max(np.abs(run(moved) - identity)) > 1e-2
    usual, run = part(lambda h: getattr(replace(layers, zero_last=False), name)(h, width, 1))
    assert np.max(np.abs(run(usual) - identity)) > 1e-2


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("embed", [True, False])
@pytest.mark.parametrize("kind", ["gaussian", "dot_product"])
def test_denoising_starts_as_the_identity_and_is_its_formula(kind, embed, norm):
    model = make("model", {"type": "denoise_resnet", "denoise": kind, "embed": embed, "norm": norm})
    params, run = part(lambda h: model.after_stage(model.layers(True), h, 2))
    np.testing.assert_array_equal(run(params), H)
    assert len(params) == 1 + 2 * embed + (norm == "batch")
    if norm == "none":
        weights = jax.random.normal(jax.random.key(2), (1, 1, 8, 8))
        conv = {"w": weights, "b": params["stage2_denoise_conv"]["b"]}
        theta, phi = (H @ params[f"stage2_denoise_{p}"]["w"][0, 0] if embed else H for p in ("theta", "phi"))
        expected = H + non_local_mean(theta, phi, H, kind) @ weights[0, 0]
        np.testing.assert_allclose(run({**params, "stage2_denoise_conv": conv}), expected, rtol=1e-4, atol=1e-5)


def test_non_local_mean_is_the_papers_formula():
    rng = np.random.default_rng(0)
    theta, phi = rng.normal(size=(2, 2, 3, 4, 5))
    x = rng.normal(size=(2, 3, 4, 6))
    for kind in ("gaussian", "dot_product"):
        expected = np.zeros_like(x)
        for image in range(2):
            for i in np.ndindex(3, 4):
                inner = {j: np.dot(theta[(image, *i)], phi[(image, *j)]) for j in np.ndindex(3, 4)}
                f = {j: np.exp(value / np.sqrt(5)) if kind == "gaussian" else value for j, value in inner.items()}
                total = sum(f.values()) if kind == "gaussian" else 12
                expected[(image, *i)] = sum(f[j] * x[(image, *j)] for j in f) / total
        found = non_local_mean(*map(jnp.asarray, (theta, phi, x)), kind)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "wide_resnet", "depth": 30}, "depth = 30 is no depth of a wide residual network; give 6 n"),
        ({"type": "preact_resnet", "depth": 101}, "depth = 101 should be 18, 34 or 50"),
        ({"type": "convnext", "widths": [8, 16]}, r"widths = \[8, 16\] needs 4 values, one per stage"),
        ({"type": "vit", "heads": 5}, "heads = 5 does not divide the width 384; choose a divisor"),
    ],
)
def test_a_wrong_field_is_named(config, message):
    with pytest.raises(SpecError, match=message):
        make("model", config)
