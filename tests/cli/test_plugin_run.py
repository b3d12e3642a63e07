"""A plugin file's term is validated, listed, trained with and stored exactly like a built-in one."""

import json
import re

import pytest

PLUGIN = '''
import jax.numpy as jnp
from llrflow.components.registry import Component, register


@register("term", "{name}")
class ConfidencePenalty(Component):
    """The {power}-th power of the largest logit."""

    power: int = 2
    """Exponent."""

    def __call__(self, probe, delta):
        return jnp.max(probe.logits(delta), axis=-1) ** self.power
'''


@pytest.fixture
def with_plugin(tiny, write_spec, tmp_path):
    """with_plugin(name, changes) -> a spec in a folder of its own whose term comes from ../plugins/mine.py."""

    def write(name, changes=None):
        (tmp_path / "plugins").mkdir(exist_ok=True)
        (tmp_path / "specs").mkdir(exist_ok=True)
        (tmp_path / "plugins" / "mine.py").write_text(PLUGIN.replace("{name}", name))
        term = {"type": name, "power": 4, "weight": 0.5}
        sets = {
            "plugins": ["../plugins/mine.py"],
            "objective.terms.confident": term,
            "train.steps": 5,
            **(changes or {}),
        }
        return write_spec(tmp_path / "specs" / "mine.yaml", tiny(), {"evaluate.attacks": {}, **sets})

    return write


def test_from_the_spec_to_the_stored_run(command, with_plugin, tmp_path):
    import llrflow

    spec = with_plugin("end_to_end")
    assert command("validate", spec)[0] == 0
    code, _, err = command("run", spec, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        penalties = 0.2 * line["gamma"] + 0.1 * line["slope"] + 0.5 * line["confident"]
        assert line["objective"] == pytest.approx(line["loss"] + penalties, rel=1e-5) and line["confident"] > 0
    stored = llrflow.load_spec(tmp_path / "run/spec.yaml")
    assert stored.objective.terms["confident"].power == 4
    assert llrflow.load_model(tmp_path / "run").step == 5
    code, _, err = command("run", spec, "--out", tmp_path / "run")  # imported again, unchanged
    assert code == 0, err
    code, _, err = command("run", tmp_path / "run/spec.yaml", "--out", tmp_path / "run")
    assert code == 0, err  # the stored spec names the same experiment, wherever it finds the plugin


def test_its_fields_are_checked_like_any_other(command, with_plugin):
    spec = with_plugin("checked", {"objective.terms.confident": {"type": "checked", "powr": 3}})
    code, _, err = command("validate", spec)
    line = next(n for n, text in enumerate(spec.read_text().splitlines(), 1) if "powr" in text)
    says = r"objective\.terms\.confident\.powr = 3 is not a field of term checked; did you mean 'power'\?\n"
    assert code == 2 and re.fullmatch(rf"error: {re.escape(str(spec))}:{line}:\d+: {says}", err), err


def test_it_is_listed_and_in_the_schema(command, with_plugin, tmp_path):
    with_plugin("listed")
    plugin = tmp_path / "plugins" / "mine.py"
    terms = json.loads(command("types", "term", "--plugin", plugin, "--json")[1])["term"]
    (mine,) = [term for term in terms if term["type"] == "listed"]
    assert mine["origin"] == str(plugin) and "largest logit" in mine["summary"]
    power = {"name": "power", "type": "integer", "required": False, "default": 2, "summary": "Exponent."}
    assert power in mine["fields"]
    schema = json.loads(command("schema", "--plugin", plugin)[1])
    assert "listed" in json.dumps(schema["$defs"]["term"])


def test_two_plugins_cannot_take_one_name(command, with_plugin, tmp_path):
    spec = with_plugin("taken_twice", {"plugins": ["../plugins/mine.py", "../plugins/theirs.py"]})
    (tmp_path / "plugins/theirs.py").write_text(PLUGIN.replace("{name}", "taken_twice") + "\n# another file\n")
    code, _, err = command("validate", spec)
    assert code == 2 and err.count("\n") == 1
    assert re.search(r"theirs\.py'.*'taken_twice' is already registered by .*mine\.py; choose another name", err), err


def test_an_edited_plugin_takes_the_place_of_what_it_was(command, with_plugin, tmp_path):
    spec, plugin = with_plugin("edited"), tmp_path / "plugins/mine.py"
    assert command("validate", spec)[0] == 0
    plugin.write_text(plugin.read_text().replace("power: int = 2", "power: int = 2\n    shift: float = 0.0"))
    code, _, err = command("validate", spec, "--set", "objective.terms.confident.shift=1")
    assert code == 0, err
    plugin.write_text(plugin.read_text() + "\n1 / 0\n")
    assert command("validate", spec)[0] == 2
    plugin.write_text(plugin.read_text().replace("\n1 / 0\n", ""))
    assert command("validate", spec)[0] == 0
