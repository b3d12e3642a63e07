"""`llrflow.plugin` is the one door for plugins; what they imported before says where it has gone."""

import ast
import importlib
import inspect

import pytest

from llrflow import plugin

OLD = {
    "llrflow.registry": ["Component", "register", "Traced", "Chosen", "make", "invalid"],
    "llrflow.answer": ["Answer", "ask"],
    "llrflow.probe": ["Probe", "SearchProbe"],
    "llrflow.threat": ["Threat", "unit"],
}


def test_everything_behind_the_door_is_what_it_says():
    missing = [name for name in plugin.__all__ if not inspect.getdoc(getattr(plugin, name))]
    assert missing == []


def test_plugins_and_their_pages_use_the_door_alone(repository):
    used = {}
    for path in (repository / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("llrflow"):
                used.setdefault(node.module, set()).update(alias.name for alias in node.names)
    assert set(used) == {"llrflow.plugin"} and used["llrflow.plugin"] <= set(plugin.__all__)
    page = (repository / "docs" / "plugins.md").read_text()
    assert [name for name in plugin.__all__ if name not in page] == []


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in OLD.items() for name in names])
def test_an_old_path_gives_the_same_thing_and_names_the_new_one(module, name):
    with pytest.warns(
        DeprecationWarning, match=rf"^{module}.{name} has moved: write `from (\S+) import {name}`$"
    ) as caught:
        found = getattr(importlib.import_module(module), name)
    home = str(caught[0].message).split("`from ")[1].split()[0]
    assert found is getattr(importlib.import_module(home), name)
    assert (home == "llrflow.plugin") == (name in plugin.__all__)
    assert caught[0].filename == __file__


def test_a_plugin_written_before_is_told_and_works(tmp_path, llrflow_command):
    path = tmp_path / "old.py"
    path.write_text(
        "from llrflow.registry import Component, register\n"
        '@register("term", "before")\n'
        "class Before(Component):\n"
        '    """l."""\n'
        "    def __call__(self, probe, delta):\n"
        "        return probe.loss(delta)\n"
    )
    code, out, err = llrflow_command("plugins", "check", str(path), cwd=tmp_path)
    assert code == 0, out + err
    assert f"{path}:1: DeprecationWarning: llrflow.registry.Component has moved" in err


def test_a_name_that_never_was():
    with pytest.raises(AttributeError, match=r"module 'llrflow\.probe' has no attribute 'nothing'"):
        importlib.import_module("llrflow.probe").nothing  # noqa: B018
