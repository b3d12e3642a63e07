"""A distribution with an entry point of the group `llrflow.plugins`: built, installed, and used by its name."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import llrflow
from llrflow.base.errors import PluginError

pytestmark = pytest.mark.slow

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny-terms"
version = "1.2"

[project.entry-points."llrflow.plugins"]
tiny_terms = "tiny_terms_code"

[tool.setuptools]
py-modules = ["tiny_terms_code"]
"""
MODULE = '''
import jax.numpy as jnp
from llrflow.components.registry import Component, register


@register("term", "from_afar")
class FromAfar(Component):
    """Largest logit, from an installed distribution."""

    power: int = 2
    """Exponent."""

    def __call__(self, probe, delta):
        return jnp.max(probe.logits(delta), axis=-1) ** self.power
'''
COMMANDS = """
import contextlib, io, json, sys
from llrflow.cli import main

done = []
for arguments in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([done, "tiny_terms_code" in sys.modules]))
"""
"""Runs commands one after the other in one process; also prints whether the plugin was imported."""


def run(*command, cwd, **more):
    options = {"cwd": cwd, **more, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "timeout": 300}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def build(project):
    """A wheel of a project, by its own build backend."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", project)
    code, _, err = run(sys.executable, "-m", "pip", "wheel", *options, project, cwd=project)
    assert code == 0, err
    (wheel,) = project.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(tmp_path_factory, repository):
    """The interpreter of a new environment that sees all of this one and has the distribution installed."""
    folder = tmp_path_factory.mktemp("entry_point")
    (folder / "project").mkdir()
    (folder / "project" / "pyproject.toml").write_text(PYPROJECT)
    (folder / "project" / "tiny_terms_code.py").write_text(MODULE)
    environment = folder / "environment"
    code, _, err = run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    assert code == 0, err
    interpreter = environment / "bin" / "python"
    code, found, err = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    assert code == 0, err
    seen = f"{repository}\n{sysconfig.get_path('purelib')}\n"
    (Path(found.strip()) / "llrflow.pth").write_text(seen)  # pip too, so that nothing is fetched
    install = ("-m", "pip", "install", "--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")
    code, _, err = run(interpreter, *install, build(folder / "project"), cwd=folder)
    assert code == 0, err
    return interpreter


@pytest.fixture
def llrflow_there(python, tmp_path):
    """llrflow_there(*commands) -> ([(exit code, stdout, stderr) of each], whether the plugin was imported).

    The commands are run by one process of the new environment.
    """

    def there(*commands):
        asked = json.dumps([list(map(str, command)) for command in commands])
        code, out, err = run(python, "-c", COMMANDS, cwd=tmp_path, input=asked)
        assert code == 0, err
        return json.loads(out)

    return there


@pytest.fixture
def spec(tiny, write_spec, tmp_path):
    """A tiny spec file with the distribution's term, which it names as a plugin."""
    changes = {
        "plugins": ["tiny_terms"],
        "objective.terms.far": {"type": "from_afar", "power": 3, "weight": 0.5},
        "train.steps": 4,
        "evaluate.attacks": {},
    }
    return write_spec(tmp_path / "spec.yaml", tiny(), changes)


def test_its_terms_are_listed_and_checked_and_a_spec_that_names_it_trains(llrflow_there, spec, tmp_path):
    (listed, checked, trained), _ = llrflow_there(
        ("types", "term", "--plugin", "tiny_terms", "--json"),
        ("plugins", "check", "tiny_terms"),
        ("run", spec, "--out", tmp_path / "run"),
    )
    code, out, err = listed
    assert code == 0, err
    (term,) = [term for term in json.loads(out)["term"] if term["type"] == "from_afar"]
    assert term["origin"] == "tiny_terms" and [field["name"] for field in term["fields"]] == ["power"]
    code, out, err = checked
    assert code == 0 and out.splitlines()[0] == "term from_afar" and "3 F" in out, err
    code, _, err = trained
    assert code == 0, err
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    total = line["loss"] + 0.2 * line["gamma"] + 0.1 * line["slope"] + 0.5 * line["far"]
    assert line["objective"] == pytest.approx(total, rel=1e-5) and abs(line["far"]) > 1e-3
    with pytest.raises(PluginError, match=r"'tiny_terms' failed to import: ModuleNotFoundError"):
        llrflow.load_spec(tmp_path / "run" / "spec.yaml")  # it is not installed here


def test_without_its_name_nothing_of_it_is_imported(python, llrflow_there, spec, tmp_path):
    (validated, listed), imported = llrflow_there(
        ("validate", spec, "--set", "plugins=[]"), ("types", "term", "--json")
    )
    code, out, err = validated
    assert (code, out) == (2, "")
    assert "objective.terms.far.type = 'from_afar' is not a known term" in err
    code, out, _ = listed
    assert code == 0 and "from_afar" not in out and not imported
    looks = (
        "import importlib.metadata; points = importlib.metadata.entry_points(group='llrflow.plugins'); "
        "print([point.name for point in points])"
    )
    assert run(python, "-c", looks, cwd=tmp_path)[1] == "['tiny_terms']\n"
