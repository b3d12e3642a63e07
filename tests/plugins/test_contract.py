"""A plugin that breaks its contract is one line at its place in the spec, exit code 2, before anything is written."""

import re

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import PluginError
from llrflow.components.registry import Component, import_as, register
from llrflow.method.probe import Probe
from llrflow.method.term import ask

HEAD = '''
import jax
import jax.numpy as jnp
from llrflow.method.term import Answer
from llrflow.components.registry import Component, register


@register("{kind}", "{name}")
class Faulty(Component):
    """Breaks the contract."""

'''
STATEFUL = "    def init_state(self):\n        return {'mean': jnp.zeros(())}\n\n"

# name: (body of a term, what the message says of it)
TERMS = {
    "logits": (
        "    def __call__(self, probe, delta):\n        return probe.logits(delta)\n",
        r"its value is float32\[64, 10\]; return one number per example, float\[64\]",
    ),
    "batch mean": (
        "    def __call__(self, probe, delta):\n        return jnp.mean(probe.loss(delta))\n",
        r"its value is float32\[\]; return one number per example, float\[64\]",
    ),
    "integer": (
        "    def __call__(self, probe, delta):\n        return jnp.argmax(probe.logits(delta), axis=-1)\n",
        r"its value is int32\[64\]; return one number per example, float\[64\]",
    ),
    "nothing": (
        "    def __call__(self, probe, delta):\n        probe.loss(delta)\n",
        r"its value is .*; return one number per example, float\[64\]",
    ),
    "a pair": (
        "    def __call__(self, probe, delta):\n        return probe.loss(delta), {}\n",
        r"its value is .*; return one number per example, float\[64\]",
    ),
    "raises": (
        "    def __call__(self, probe, delta):\n        return {}['absent']\n",
        r"failed at {file}:13: KeyError: 'absent'; fix the plugin; --verbose shows the traceback",
    ),
    "raises in a library": (
        "    def __call__(self, probe, delta):\n        return probe.loss(delta) @ probe.x\n",
        r"failed at {file}:13: TypeError: .*; fix the plugin; --verbose shows the traceback",
    ),
    "metric": (
        "    def __call__(self, probe, delta):\n"
        "        return Answer(probe.loss(delta), {'largest': probe.logits(delta)})\n",
        r"the metric 'largest' is float32\[64, 10\]; return one number per example, float\[64\]",
    ),
    "integer metric": (
        "    def __call__(self, probe, delta):\n        return Answer(probe.loss(delta), {'label': probe.y})\n",
        r"the metric 'label' is int32\[64\]; return one number per example, float\[64\]",
    ),
    "state of another structure": (
        STATEFUL + "    def __call__(self, probe, delta, state):\n"
        "        return Answer(probe.loss(delta), {}, {'mean': state['mean'], 'count': jnp.ones(())})\n",
        r"its next state is \['count'\] float32\[\], \['mean'\] float32\[\], "
        r"init_state\(\) gave \['mean'\] float32\[\]; "
        r"return Answer\(value, metrics, state\) with a state of the same structure",
    ),
    "state of another shape": (
        STATEFUL + "    def __call__(self, probe, delta, state):\n"
        "        return Answer(probe.loss(delta), {}, {'mean': probe.loss(delta)})\n",
        r"its next state is \['mean'\] float32\[64\], init_state\(\) gave \['mean'\] float32\[\]; .*",
    ),
    "no first state": (
        "    def init_state(self):\n        return {}['absent']\n\n"
        "    def __call__(self, probe, delta, state):\n        return Answer(probe.loss(delta), {}, state)\n",
        r"failed at {file}:13: KeyError: 'absent'; fix the plugin; --verbose shows the traceback",
    ),
    "state forgotten": (
        STATEFUL + "    def __call__(self, probe, delta, state):\n        return probe.loss(delta)\n",
        r"its next state is nothing, init_state\(\) gave \['mean'\] float32\[\]; .*",
    ),
}

# name: (kind, body, what the message says): found when the plugin is imported
SIGNATURES = {
    "term without delta": (
        "term",
        "    def __call__(self, probe):\n        return probe.loss()\n",
        r"Faulty: __call__\(self, probe\): too many positional arguments; "
        r"a term needs `def __call__\(self, probe, delta\)`",
    ),
    "term with one more": (
        "term",
        "    def __call__(self, probe, delta, images):\n        return probe.loss()\n",
        r"Faulty: __call__\(self, probe, delta, images\): missing a required argument: 'images'; a term needs .*",
    ),
    "stateful term without state": (
        "term",
        STATEFUL + "    def __call__(self, probe, delta):\n        return probe.loss()\n",
        r".*a term needs `def __call__\(self, probe, delta, state\)`",
    ),
    "optimizer without build": ("optimizer", "    rate: float = 0.1\n", r"Faulty: has no method build; .*"),
    "step without move": (
        "step",
        "    def init(self, delta):\n        return ()\n",
        r"Faulty: has no method move; a step needs `def move\(self, gradient, delta, state, threat, auto\)`",
    ),
    "term that is not called": (
        "term",
        "    power: int = 2\n",
        r"Faulty: has no method __call__; a term needs `def __call__\(self, probe, delta\)`",
    ),
}


@pytest.fixture
def refused(command, tiny, write_spec, tmp_path):
    """refused(verb, code, changes, key) -> what the one line says after the place, which is that of a key."""

    def run(verb, code, changes, key):
        plugin = tmp_path / "plugin.py"
        plugin.write_text(code)
        spec = write_spec(tmp_path / "spec.yaml", tiny(), {"plugins": ["plugin.py"], **changes})
        before = sorted(tmp_path.rglob("*"))
        exit_code, out, err = command(verb, spec)
        assert exit_code == 2 and out == "", err
        found = re.fullmatch(rf"error: {re.escape(str(spec))}:(\d+):(\d+): (.*)\n", err)
        assert found, err
        line, column, message = found.groups()
        assert spec.read_text().splitlines()[int(line) - 1][int(column) - 1 :].startswith(key), err
        assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
        return message, re.escape(str(plugin))

    return run


@pytest.mark.parametrize("verb", ["validate", "run"])
@pytest.mark.parametrize("case", TERMS)
def test_a_term(refused, case, verb):
    body, says = TERMS[case]
    name = f"term_{list(TERMS).index(case)}_{verb}"
    code = HEAD.format(kind="term", name=name) + body
    message, file = refused(verb, code, {"objective.terms.extra": {"type": name}}, "extra:")
    says = says.replace("{file}", file)
    assert re.fullmatch(rf"objective\.terms\.extra term {name} \({file}\): {says}", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
@pytest.mark.parametrize(("kind", "body", "says"), SIGNATURES.values(), ids=SIGNATURES)
def test_a_signature_is_checked_at_import(refused, kind, body, says, verb):
    message, file = refused(verb, HEAD.format(kind=kind, name="signature") + body, {}, "plugin.py")
    assert re.fullmatch(rf"plugin '{file}': {says}", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_the_loss(refused, verb):
    body = "    def __call__(self, probe, delta):\n        return probe.logits(delta)\n"
    code = HEAD.format(kind="term", name=f"loss_{verb}") + body
    message, _ = refused(verb, code, {"objective.loss": {"type": f"loss_{verb}"}}, "loss:")
    assert re.match(rf"objective\.loss term loss_{verb} \(.*\): its value is float32\[64, 10\];", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_term_that_a_search_maximises(refused, verb):
    body = "    def __call__(self, probe, delta):\n        return probe.logits(delta)\n"
    code = HEAD.format(kind="term", name=f"maximised_{verb}") + body
    changes = {"objective.perturbations.llr.maximize": {"type": f"maximised_{verb}"}}
    message, file = refused(verb, code, changes, "llr:")
    says = (
        rf"term maximised_{verb} \({file}\): its value is float32\[64, 10\]; return one number per example, float\[64\]"
    )
    assert re.fullmatch(rf"objective\.perturbations\.llr {says}", message), message


def test_a_term_that_raises_where_a_search_asks_it(refused):
    code = (
        HEAD.format(kind="term", name="raising_in_search")
        + "    def __call__(self, probe, delta):\n        {}['gone']\n"
    )
    changes = {"objective.perturbations.llr.maximize": {"type": "raising_in_search"}}
    message, file = refused("validate", code, changes, "llr:")
    assert re.fullmatch(
        rf"objective\.perturbations\.llr term raising_in_search \({file}\): failed at {file}:\d+: KeyError: 'gone'; .*",
        message,
    ), message


def test_an_answer_may_be_maximised(tiny, tmp_path):
    code = "    def __call__(self, probe, delta):\n        return Answer(probe.loss(delta))\n"
    (tmp_path / "plugin.py").write_text(HEAD.format(kind="term", name="answering") + code)
    changes = {"plugins": [str(tmp_path / "plugin.py")], "objective.perturbations.llr.maximize": {"type": "answering"}}
    program = llrflow.compile(llrflow.load_spec(tiny(), changes))
    assert len(program.probes()[0].searches["llr"]) == 1


def test_a_term_that_cannot_be_differentiated(refused):
    body = (
        "    def __call__(self, probe, delta):\n        import jax\n"
        "        return jax.lax.while_loop(lambda v: v[0] > 9, lambda v: v / 2, probe.loss())\n"
    )
    changes = {"objective.terms.extra": {"type": "looping"}}
    message, _ = refused("validate", HEAD.format(kind="term", name="looping") + body, changes, "objective:")
    assert re.match(
        r"objective cannot be traced with these plugins: \w+: .*; try each one with `llrflow plugins", message
    )


def test_an_installed_plugin_is_located_too():
    def load():
        @register("term", "installed_and_broken")
        class Broken(Component):
            def __call__(self, probe, delta):
                raise RuntimeError("no way")

        return Broken

    term = import_as("some_distribution", load)()
    with pytest.raises(
        PluginError, match=rf"some_distribution.*: failed at {re.escape(__file__)}:\d+: RuntimeError: no way"
    ):
        ask(term, Probe(lambda images: images, np.zeros((1, 2, 2, 1), np.float32), np.zeros(1, int)), None)


OTHER_KINDS = {
    "start": (
        "    def __call__(self, threat, x, keys):\n        return x[:, 0]\n",
        {"objective.perturbations.llr.start": {"type": "other_start"}},
        (
            "llr:",
            r"objective\.perturbations\.llr start",
            r"returns float32\[64, 8, 1\]; return an array \[64, 8, 8, 1\]",
        ),
    ),
    "augmentation": (
        "    def __call__(self, image, key):\n        return image[1:]\n",
        {"data.augment": {"cut": {"type": "other_augmentation"}}},
        ("cut:", r"data\.augment\.cut augmentation", r"returns float32\[7, 8, 1\]; return an array \[8, 8, 1\]"),
    ),
    "mixing": (
        "    def __call__(self, image, partner, key):\n        return image\n",
        {"data.mix": {"own": {"type": "other_mixing"}}},
        ("own:", r"data\.mix\.own mixing", r"returns float32\[8, 8, 1\]; return an image \[8, 8, 1\] and a share \[\]"),
    ),
    "model": (
        "    def __call__(self, images, classes, batch_statistics):\n        return images.oops\n",
        {"model": {"type": "other_model"}},
        ("model:", "model model", r"failed at {file}:\d+: AttributeError: .*"),
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds(refused, kind):
    body, changes, (key, place, says) = OTHER_KINDS[kind]
    message, file = refused("validate", HEAD.format(kind=kind, name=f"other_{kind}") + body, changes, key)
    says = says.replace("{file}", file)
    assert re.fullmatch(rf"{place} other_{kind} \({file}\): {says}", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_term_that_an_attack_maximises(refused, verb):
    body = "    def __call__(self, probe, delta):\n        return probe.logits(delta)\n"
    code = HEAD.format(kind="term", name=f"attacking_{verb}") + body
    changes = {"evaluate.attacks.pgd.maximize": {"type": f"attacking_{verb}"}}
    message, _ = refused(verb, code, changes, "pgd:")
    assert re.match(rf"evaluate\.attacks\.pgd term attacking_{verb} \(.*\): its value is float32\[", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_gradient_hook(refused, verb):
    body = "    def __call__(self, gradient, params):\n        return gradient(params.absent)\n"
    code = HEAD.format(kind="gradient", name=f"hook_{verb}") + body
    message, file = refused(verb, code, {"objective.gradient": {"type": f"hook_{verb}"}}, "gradient:")
    says = rf"gradient hook_{verb} \({file}\): failed at {file}:13: AttributeError: .*; fix the plugin; .*"
    assert re.fullmatch(rf"objective\.gradient {says}", message), message


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_gradient_hook_that_returns_something_else(refused, verb):
    body = "    def __call__(self, gradient, params):\n        return gradient(params).value\n"
    code = HEAD.format(kind="gradient", name=f"other_{verb}") + body
    message, file = refused(verb, code, {"objective.gradient": {"type": f"other_{verb}"}}, "gradient:")
    assert re.match(rf"objective\.gradient gradient other_{verb} \({file}\): ", message), message


def test_verbose_shows_the_traceback_of_the_plugin(command, tiny, write_spec, tmp_path):
    body = "    def __call__(self, probe, delta):\n        return {}['absent']\n"
    (tmp_path / "plugin.py").write_text(HEAD.format(kind="term", name="traced") + body)
    changes = {"plugins": ["plugin.py"], "objective.terms.extra": {"type": "traced"}}
    spec = write_spec(tmp_path / "spec.yaml", tiny(), changes)
    code, _, err = command("validate", "--verbose", spec)
    assert code == 2 and f'File "{tmp_path / "plugin.py"}", line 13, in __call__' in err
