"""Shared by the tests of plugins: what a test registers is forgotten, and losses dressed as networks."""

import sys

import jax
import jax.numpy as jnp
import pytest

from llrflow.components import registry


@pytest.fixture(autouse=True)
def _plugins_are_forgotten(monkeypatch):
    registry.load_builtins()
    monkeypatch.setattr(registry, "_entries", {kind: dict(known) for kind, known in registry._entries.items()})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("llrflow_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def plugin_file(repository):
    """plugin_file(name) -> the absolute path of plugins/<name>/<name>.py, as a spec names it."""
    return lambda name: str(repository / "plugins" / name / f"{name}.py")


@pytest.fixture
def load_term(plugin_file):
    """load_term(plugin, configuration) -> a term of that plugin of the repository."""
    from llrflow.components.plugins import load_plugin

    def made(plugin, configuration):
        load_plugin(plugin_file(plugin))
        return registry.make("term", configuration)

    return made


@pytest.fixture
def probe_of():
    """probe_of(loss, x, epsilon) -> a Probe whose cross-entropy is a positive loss [B,H,W,C] -> [B]."""
    from llrflow.method.probe import Probe
    from llrflow.method.threat import Threat

    def made(loss, x, epsilon=0.1):
        def logits(images):
            value = loss(images)
            return jnp.stack([jnp.zeros_like(value), value + jnp.log(-jnp.expm1(-value))], axis=-1)

        keys = jax.random.split(jax.random.key(1), len(x))
        return Probe(logits, jnp.asarray(x), jnp.zeros(len(x), int), keys, Threat(epsilon=epsilon))

    return made
