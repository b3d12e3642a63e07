"""Components: strict configuration with advice, one name each, plugins that leave nothing behind when they fail."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llrflow.base.errors import PluginError, SpecError
from llrflow.components import registry
from llrflow.components.plugins import load_plugin
from llrflow.components.registry import KINDS, Component, entries, import_as, make, register
from llrflow.method.objective import Objective

TERM = """
from llrflow.components.registry import Component, register

@register("term", "{name}")
class Plugged(Component):
    scale: float = 1.0
    def __call__(self, probe, delta):
        return self.scale * probe.loss(delta)
"""


@pytest.fixture(autouse=True)
def _registrations_are_undone(monkeypatch):
    registry.load_builtins()
    monkeypatch.setattr(registry, "_entries", {kind: dict(known) for kind, known in registry._entries.items()})


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("term", {"type": "gradient_nrm"}, "type = 'gradient_nrm' is not a known term; did you mean 'gradient_norm'"),
        ("term", "zzz", "choose from .*cross_entropy,"),
        (
            "term",
            {"type": "gradient_norm", "squarred": True},
            "squarred.*of term gradient_norm; did you mean 'squared'",
        ),
        ("term", {"type": "gradient_norm", "p": 3}, "p = 3"),
        ("term", {"type": "gradient_norm", "squared": "yes"}, "squared = 'yes'"),
        ("term", {"type": "cross_entropy", "label_smoothing": 1}, "label_smoothing = 1 must be < 1"),
        ("term", {"type": "cross_entropy", "label_smoothing": True}, "label_smoothing = True is not a number"),
        ("term", {"type": ["margin"]}, "is not a known term"),
        ("term", {}, "has no `type`; one of .*cross_entropy,"),
        ("term", None, "needs a mapping"),
        ("term", {"type": "margin", "weight": 2}, "weight = 2 is not a field of term margin"),
        ("model", {"type": "cnn", "strides": [1]}, r"strides.*needs 2 values"),
        ("model", {"type": "mlp", "widths": []}, "widths"),
        ("attack", {"type": "pgd", "step": {"type": "sgn"}}, "step.type = 'sgn'.*did you mean 'sign'"),
    ],
)
def test_wrong_configuration_names_field_value_and_remedy(kind, config, message):
    with pytest.raises(SpecError, match=message) as caught:
        make(kind, config)
    assert "\n" not in str(caught.value)


def test_make_reads_fractions_and_returns_components_as_they_are():
    step = make("step", {"type": "sign", "size": "2/255"})
    assert step.size == 2 / 255 and make("step", step) is step
    with pytest.raises(ValueError, match="frozen"):
        step.size = 1.0


EXAMPLES = {
    "domain choice": {"type": "choice", "values": [1, "a"]},
    "domain grid": {"type": "grid", "values": [0.5, {"type": "mlp", "widths": [8]}]},
    "domain uniform": {"type": "uniform", "low": 0, "high": 1, "quantum": 0.1},
    "domain loguniform": {"type": "loguniform", "low": 0.1, "high": 1},
    "domain derived": {"type": "derived", "from": "threat.epsilon", "times": 2},
    "optax": {"type": "optax", "optimizer": {"type": "sgd", "learning_rate": 0.1}},
    "piecewise_constant_schedule": {
        "type": "piecewise_constant_schedule", "init_value": 1.0, "boundaries_and_scales": {100: 0.5, "2 epochs": 0.1},
    },
    "model python": {"type": "python", "call": "json:loads"},
    "piecewise": {"type": "piecewise", "pieces": {0: 1, "50%": {"type": "constant_schedule", "value": 0.5}}},
}  # fmt: skip


def example(kind, name):
    """The component with its defaults, and something valid for each required field."""
    for key in (f"{kind} {name}", name):
        if key in EXAMPLES:
            return make(kind, EXAMPLES[key])
    required = [field for field, info in entries(kind)[name].cls.model_fields.items() if info.is_required()]
    return make(kind, {"type": name, **dict.fromkeys(required, 2)})


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_survives_json(kind):
    load_plugin("json")  # a function of it stands for one that makes a network
    for name, known in entries(kind).items():
        if known.origin not in ("llrflow", "optax"):
            continue
        component = example(kind, name)
        plain = json.loads(json.dumps(component.model_dump()))
        assert plain["type"] == name
        assert make(kind, plain) == component, name
        assert known.cls.__doc__, name


def test_objective_survives_json():
    terms = {"gamma": {"type": "local_linearity", "at": "llr", "weight": "4/3"}}
    objective = Objective.model_validate({"perturbations": {"llr": {"epsilon": "8/255"}}, "terms": terms})
    assert Objective.model_validate(json.loads(objective.model_dump_json())) == objective


@pytest.mark.parametrize(
    ("kind", "name", "fields", "message"),
    [
        ("term", "margin", {}, "already registered by llrflow"),
        ("optimizer", "adam", {}, "already registered by optax"),
        ("trem", "mine", {}, "did you mean 'term'"),
        ("term", "mine", {"weight": 1.0}, "'weight' is reserved"),
        ("term", "mine", {"at": "clean"}, "'at' is reserved"),
        ("model", "mine", {"type": "x"}, "'type' is reserved"),
    ],
)
def test_registrations_that_are_refused(kind, name, fields, message):
    annotations = {field: type(value) for field, value in fields.items()}
    cls = type("Mine", (Component,), {"__annotations__": annotations, "__module__": __name__, **fields})
    with pytest.raises(PluginError, match=message):
        register(kind, name)(cls)
    assert kind not in KINDS or cls not in [known.cls for known in entries(kind).values()]


def test_entry_fields_are_reserved_before_anything_else_is_imported():
    """A script may register its term first thing; a `weight` of its own would silently be replaced by its place's."""
    script = (
        "from llrflow.components.registry import Component, register\n"
        "@register('term', 'mine')\n"
        "class Mine(Component):\n    weight: float = 2.0\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "'weight' is reserved" in done.stderr


def test_plugin_is_credited_and_made(tmp_path):
    (tmp_path / "good.py").write_text(TERM.format(name="plugged"))
    load_plugin(str(tmp_path / "good.py"))
    assert entries("term")["plugged"].origin == str(tmp_path / "good.py")
    assert make("term", {"type": "plugged", "scale": "1/4"}).scale == 0.25
    assert entries("term")["margin"].origin == "llrflow"


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("register('term', 'margin')(type('Other', (Component,), {}))", "already registered by llrflow"),
        ("def", "SyntaxError"),
    ],
)
def test_failing_plugin_leaves_nothing_behind_and_can_be_repaired(ending, message, tmp_path):
    plugin = tmp_path / "bad.py"
    plugin.write_text(TERM.format(name="half_done") + ending)
    with pytest.raises(PluginError, match=message):
        load_plugin(str(plugin))
    assert "half_done" not in entries("term") and "margin" in entries("term")
    plugin.write_text(TERM.format(name="half_done"))
    load_plugin(str(plugin))
    assert "half_done" in entries("term")


def test_failing_plugin_does_not_take_the_builtins_with_it(tmp_path):
    """Even when it was the first to import them."""
    (tmp_path / "first.py").write_text("import llrflow.method.terms\nraise RuntimeError('boom')\n")
    script = (
        "from llrflow.base.errors import PluginError\nfrom llrflow.components.plugins import load_plugin\n"
        f"try:\n    load_plugin({str(tmp_path / 'first.py')!r})\nexcept PluginError:\n    pass\n"
        "from llrflow.components.registry import entries\nprint(entries('term')['margin'].origin)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "llrflow", done.stderr


def test_import_as_restores_the_origin_after_a_failure():
    with pytest.raises(KeyError):
        import_as("somewhere", lambda: {}["missing"])

    @register("start", "mine_after_failure")
    class Mine(Component):
        """A component."""

        def __call__(self, threat, x, keys):
            return x

    assert entries("start")["mine_after_failure"].origin == str(Path(__file__).resolve())


def test_a_plugin_imported_by_hand_and_by_a_spec_is_one(tmp_path, monkeypatch):
    """In either order, and again after a reload: each import takes the place of the one before."""
    plugin = tmp_path / "by_hand.py"
    plugin.write_text(TERM.format(name="by_hand"))
    monkeypatch.syspath_prepend(tmp_path)
    first = importlib.import_module("by_hand")
    load_plugin(str(plugin))
    assert entries("term")["by_hand"].origin == str(plugin)
    importlib.reload(first)
    assert sys.modules[entries("term")["by_hand"].cls.__module__] is first
    plugin.write_text(TERM.format(name="by_hand") + TERM.format(name="by_hand").replace("class ", "class Other"))
    with pytest.raises(PluginError, match=r"'by_hand' is already registered by .*by_hand\.py"):
        importlib.reload(first)
