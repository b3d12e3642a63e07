"""A run folder of somebody else runs none of its plugins unasked; one's own asks nothing."""

import shutil
import sys

import pytest

import llrflow
from llrflow.base.errors import CheckpointError, PluginError
from llrflow.components.registry import entries, forget
from llrflow.runs.export import export_model

PLUGIN = '''
from pathlib import Path

import jax.numpy as jnp
from llrflow.plugin import Component, register

Path(__file__).with_name("ran").touch()


@register("term", "of_a_stranger")
class OfAStranger(Component):
    """The largest logit."""

    def __call__(self, probe, delta):
        return jnp.max(probe.logits(delta), axis=-1)
'''


@pytest.fixture(scope="module")
def trained(tiny, write_spec, tmp_path_factory):
    """(folder with mine.py and a run that was trained with it, where that is remembered)."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(PLUGIN)
    changes = {
        "plugins": ["mine.py"],
        "train.steps": 2,
        "checkpoint.every": 2,
        "evaluate.attacks": {},
        "objective.terms.own": {"type": "of_a_stranger", "weight": 0.1},
    }
    spec = write_spec(folder / "spec.yaml", tiny(), changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        llrflow.run(llrflow.load_spec(spec), folder / "run")
    return folder


@pytest.fixture
def later(monkeypatch, trained):
    """later(state) -> nothing: as in another process, of a user who remembers what is in `state`."""

    def begin(state):
        for name in [name for name in sys.modules if name.startswith("llrflow_plugin_mine")]:
            del sys.modules[name]
        if "of_a_stranger" in entries("term"):
            forget(entries("term")["of_a_stranger"].origin)
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        (trained / "ran").unlink(missing_ok=True)

    return begin


@pytest.fixture
def strange(trained, tmp_path, later):
    """The run and its plugin as somebody else would hand them out."""
    shutil.copy(trained / "mine.py", tmp_path / "mine.py")
    shutil.copytree(trained / "run", tmp_path / "run")
    stored = tmp_path / "run/spec.yaml"
    stored.write_text(stored.read_text().replace(str(trained), str(tmp_path)))
    later(trained / "state")
    return tmp_path


def test_a_strange_plugin_is_refused_in_one_line_and_not_run(command, strange, monkeypatch):
    stored = strange / "run/spec.yaml"
    line = next(n for n, text in enumerate(stored.read_text().splitlines(), 1) if "mine.py" in text)
    says = (
        f"plugins: {strange}/mine.py is code that you have not trained with on this machine, so it was not run; "
        "read it, then name it in `plugins:` of the spec that you run; evaluate and export also take --trust-plugins, "
        "Python takes trust_plugins=True\n"
    )
    for arguments in (["evaluate"], ["evaluate", "--attacks", "quick", "--study", "strength"], ["export"]):
        code, out, err = command(*arguments[:1], strange / "run", *arguments[1:])
        assert (code, out) == (2, "") and err.startswith(f"error: {stored}:{line}:") and err.endswith(says), err
    for load in (llrflow.load_model, export_model):
        with pytest.raises(PluginError, match="so it was not run"):
            load(strange / "run")
    for reading in (("runs", strange), ("compare", strange / "run", strange / "run"), ("report", strange / "run")):
        assert command(*reading)[0] == 0
    assert not (strange / "ran").exists()


def test_with_consent_it_runs_and_is_asked_for_again(command, strange, later, trained):
    assert command("export", strange / "run", "--trust-plugins")[0] == 0
    assert (strange / "ran").exists()
    later(trained / "state")
    code, _, err = command("evaluate", strange / "run")
    assert code == 2 and "so it was not run" in err
    assert command("evaluate", strange / "run", "--trust-plugins")[0] == 0
    later(trained / "state")
    (strange / "attacks.yaml").write_text("fgsm: {type: fgsm}\n")
    arguments = ("--attacks", strange / "attacks.yaml", "--trust-plugins")
    assert command("evaluate", strange / "run", *arguments)[0] == 0
    later(trained / "state")
    assert llrflow.load_model(strange / "run", trust_plugins=True).step == 2


def test_a_run_of_ones_own_asks_nothing(command, trained, later, tmp_path):
    later(trained / "state")
    code, _, err = command("evaluate", trained / "run")
    assert code == 0 and (trained / "ran").exists(), err
    later(trained / "state")
    assert llrflow.load_model(trained / "run").step == 2
    later(tmp_path / "of another user")
    code, _, err = command("evaluate", trained / "run")
    assert code == 2 and f"plugins: {trained}/mine.py is code" in err
    assert command("run", trained / "spec.yaml", "--out", trained / "run")[0] == 0  # a spec that the user names
    later(tmp_path / "of another user")
    assert command("evaluate", trained / "run")[0] == 0


def test_other_code_of_a_plugin_is_not_what_was_trained(trained, later):
    later(trained / "state")
    try:
        (trained / "mine.py").write_text(PLUGIN.replace("jnp.max", "jnp.min"))
        with pytest.raises(CheckpointError, match=r"names plugins that have changed .*mine\.py; put the original"):
            llrflow.load_model(trained / "run", trust_plugins=True)
    finally:
        (trained / "mine.py").write_text(PLUGIN)


def test_a_transfer_attack_on_a_strange_run_is_refused_too(command, strange, trained, later, tiny, write_spec):
    changes = {"train.steps": 2, "evaluate.attacks": {"other": {"type": "transfer", "run": str(strange / "run")}}}
    spec = write_spec(strange / "own.yaml", tiny(), changes)
    code, _, err = command("run", spec, "--out", strange / "own")
    assert code == 2 and f"{strange}/run/spec.yaml:" in err and "so it was not run" in err
    assert not (strange / "ran").exists()


def test_a_start_from_a_strange_run_is_refused_until_the_own_spec_names_its_plugin(
    command, strange, later, trained, tiny, write_spec
):
    start = {"model.start": {"run": str(strange / "run")}, "train.steps": 2, "evaluate.attacks": {}}
    spec = write_spec(strange / "own.yaml", tiny(), start)
    for name in ("validate", "run"):
        code, out, err = command(name, spec)
        assert (code, out, err.count("\n")) == (2, "", 1) and "name it in `plugins:` of the spec that you run" in err
    assert not (strange / "ran").exists() and not (strange.parent / "cwd" / "runs").exists()
    spec = write_spec(strange / "own.yaml", tiny(), {**start, "plugins": ["mine.py"]})
    code, _, err = command("run", spec, "--out", strange / "own")
    assert code == 0 and (strange / "ran").exists(), err
