"""The pages of the site's reference, made once in this process, without Sphinx."""

import sys

import pytest

from llrflow.components import registry


@pytest.fixture(scope="session")
def docs(repository):
    """The folder of the documentation, with its extension importable."""
    sys.path.insert(0, str(repository / "docs"))
    return repository / "docs"


@pytest.fixture(scope="module", autouse=True)
def _plugins_are_forgotten(docs):
    """What these tests register besides the built-in components no other test sees."""
    registry.load_builtins()
    before, modules = {kind: dict(known) for kind, known in registry._entries.items()}, set(sys.modules)
    yield
    registry._entries.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("llrflow_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def pages(docs, _plugins_are_forgotten):
    """Text of every page of the reference, by path."""
    import llrflow_docs

    return llrflow_docs.pages()
