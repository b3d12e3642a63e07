"""Which parameters are weights of layers, on the networks that Haiku makes, and what weight decay leaves alone."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llrflow.components.parameters import weights_of
from llrflow.components.registry import make
from llrflow.models.network import AXIS
from llrflow.program.step import network_of

NETWORKS = {
    "batch": {"type": "resnet", "widths": [8, 16], "norm": "batch"},
    "group": {"type": "resnet", "widths": [8, 16], "norm": "group"},
    "convnext": {"type": "convnext", "widths": [8, 16], "depths": [1, 1], "patch": 2},
    "vit": {"type": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
}
ADAMW = {"type": "adamw", "learning_rate": 1e-3, "weight_decay": 100.0}


def parameters(config):
    network, images = network_of(make("model", config), 10), jnp.zeros((1, 2, 8, 8, 3))
    params, _ = jax.vmap(lambda x: network.init(jax.random.key(0), x, True), axis_name=AXIS)(images)
    return jax.tree.map(lambda leaf: leaf[0] + 0.5, params)  # nothing is 0, so that all that is decayed moves


def by_name(tree):
    return {"/".join(entry.key for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.fixture(params=NETWORKS)
def params(request):
    return parameters(NETWORKS[request.param])


def test_adamw_leaves_all_but_weights_alone(params, load):
    optimizer = load({"optimizer": {**ADAMW, "decayed": "weights"}}).optimizer.build()
    still = jax.tree.map(jnp.zeros_like, params)
    after = by_name(optax.apply_updates(params, optimizer.update(still, optimizer.init(params), params)[0]))
    left = {name for name, leaf in by_name(params).items() if np.array_equal(after[name], leaf)}
    assert left == {name for name in after if name.split("/")[-1] in ("b", "scale", "offset", "token", "positions")}
    for name in after.keys() - left:
        np.testing.assert_allclose(after[name], 0.9 * by_name(params)[name], rtol=1e-6)


def test_scales_of_four_axes_tokens_and_positions_are_in_these_networks():
    scales = [leaf.shape for name, leaf in by_name(parameters(NETWORKS["batch"])).items() if name.endswith("scale")]
    assert scales and all(shape[:3] == (1, 1, 1) for shape in scales)
    assert {"token", "positions"} <= {name.split("/")[-1] for name in by_name(parameters(NETWORKS["vit"]))}


def test_every_norm_layer_of_haiku():
    def network(x):
        layers = [
            hk.BatchNorm(True, True, 0.9),
            hk.GroupNorm(2),
            hk.InstanceNorm(True, True),
            hk.LayerNorm(-1, True, True),
            hk.LayerNorm((1, 2, 3), True, True, param_axis=(1, 2, 3)),
        ]
        for layer in layers:
            x = layer(x, is_training=True) if isinstance(layer, hk.BatchNorm) else layer(x)
        return hk.Linear(1)(x)

    params = hk.transform_with_state(network).init(jax.random.key(0), jnp.ones((2, 4, 4, 4)))[0]
    assert {name for name, weight in by_name(weights_of(params)).items() if weight} == {"linear/w"}


def test_parameters_that_a_plugin_names():
    params = {
        "kernel": jnp.ones((1, 1, 2, 3)),
        "temperature": jnp.ones(()),
        "gains": jnp.ones((1, 5)),
        "w": jnp.ones(3),
    }
    assert weights_of(params) == {"kernel": True, "temperature": False, "gains": False, "w": True}
