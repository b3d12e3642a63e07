"""`llrflow plugins check`: sound plugins pass with their cost, every fault is found under its name."""

import json
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llrflow.commands.check_plugins import check as findings_of
from llrflow.components.registry import Component, make
from llrflow.models.network import Network

COSTS = {
    "elle": {"term elle": "9 F", "term elle_a": "9 F"},
    "grad_align": {"term grad_align": "9 F"},
    "mart": {"term boosted_cross_entropy": "3 F", "term weighted_kl": "6 F"},
    "confidence": {"term confidence": "3 F"},
    "awp": {"gradient awp": "2 objective(s), 1 with searches"},
}

TERM = '''
import jax
import jax.numpy as jnp
import numpy as np
from llrflow.method.term import Answer
from llrflow.components.registry import Component, register


@register("term", "{name}")
class Term(Component):
    """A term of a test."""

    def __call__(self, probe, delta):
        loss = probe.loss(delta)
        return {value}
'''

OWN_TRANSFORM = """
import jax
import jax.numpy as jnp
from llrflow.plugin import Component, register


@register("term", "own_vjp")
class OwnVjp(Component):
    def __call__(self, probe, delta):
        logits, back = jax.vjp(probe.logits, jnp.zeros_like(probe.x))
        return jnp.sum(back(jnp.ones_like(logits))[0] ** 2, axis=(1, 2, 3))


@register("term", "asked")
class Asked(Component):
    def __call__(self, probe, delta):
        return jnp.sum(probe.input_gradient() ** 2, axis=(1, 2, 3))
"""


def test_passes_of_a_transform_of_its_own_are_told_by_both_commands(command, tiny, write_spec, tmp_path):
    (tmp_path / "own.py").write_text(OWN_TRANSFORM)
    found = json.loads(command("plugins", "check", tmp_path / "own.py", "--json")[1])
    costs = [f["detail"] for findings in found["components"].values() for f in findings if f["what"] == "cost"]
    told = "a plugin differentiates the network by transforms of its own"
    assert costs[0].startswith("at least 3 F with its") and told in costs[0]
    assert 4.5 < float(re.search(r"XLA counts more, ([\d.]+) F", costs[0])[1]) < 8
    assert costs[1].startswith("7 F with its") and "XLA" not in costs[1]
    for term, at_least in (("own_vjp", True), ("asked", False)):
        changes = {"plugins": ["own.py"], "objective": {"terms": {"own": {"type": term, "weight": 0.1}}}}
        spec = write_spec(tmp_path / "spec.yaml", {**tiny(), **changes})
        result = json.loads(command("plan", spec, "--json", "--estimate")[1])
        assert result["at_least"] == (["own"] if at_least else [])
        out = command("plan", spec, "--estimate")[1]
        assert (told in out) == ("= at least " in out) == at_least


# name: (what a term returns, the finding that fails, what its detail says)
FAULTS = {
    "infinite": ("loss / 0", "finite values", "not finite"),
    "metric_nan": ("Answer(loss, {'ratio': 0 * loss / 0})", "finite values", "'ratio'"),
    "gradient_nan": ("loss + jnp.sqrt(0 * loss)", "finite gradient", "not finite"),
    "batch_mean": ("loss - jnp.mean(loss)", "an example does not see its batch-mates", "changed example 0"),
    "neighbour": ("jnp.roll(loss, 1)", "an example does not see its batch-mates", "changed example 2"),
    "constant": ("jax.lax.stop_gradient(loss)", "gradient reaches the parameters", "stop_gradient"),
    "logits": ("probe.logits(delta)", "runs", "its value is float32[6, 5]; return one number per example, float[6]"),
    "integer": ("jnp.argmax(probe.logits(delta), axis=-1)", "runs", "its value is int32[6]"),
    "raises": ("loss['absent']", "runs", ":15: "),
    "chance": ("loss * np.random.uniform(1, 2)", "the same batch gives the same values", ""),
}
REQUIRED = TERM.replace("    def", "    power: int\n\n    def").replace("{value}", "loss ** self.power")


def failed(findings):
    return {finding["what"]: finding["detail"] for finding in findings if not finding["ok"]}


@pytest.fixture
def write(tmp_path):
    """write(name, value, template) -> a plugin file whose term of that name returns the value."""

    def made(name, value="loss", template=TERM):
        path = tmp_path / f"{name}.py"
        path.write_text(template.replace("{name}", name).replace("{value}", value))
        return path

    return made


@pytest.mark.parametrize("plugin", COSTS)
def test_every_plugin_of_the_repository_passes_with_its_cost(command, plugin_file, plugin):
    code, out, err = command("plugins", "check", plugin_file(plugin), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["failed"] == 0 and found["components"].keys() == COSTS[plugin].keys()
    for label, findings in found["components"].items():
        assert failed(findings) == {}
        (cost,) = [finding["detail"] for finding in findings if finding["what"] == "cost"]
        assert cost == COSTS[plugin][label] or cost.startswith(COSTS[plugin][label] + " with its parameter gradient")


def test_no_plugin_of_the_repository_is_left_out(repository):
    assert {path.stem for path in (repository / "plugins").rglob("*.py")} == set(COSTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_term(command, write, name):
    value, what, detail = FAULTS[name]
    path = write(name, value)
    code, out, err = command("plugins", "check", path, "--json")
    assert (code, err) == (1, ""), out
    (findings,) = json.loads(out)["components"].values()
    assert what in failed(findings) and detail in failed(findings)[what], findings
    assert json.loads(out)["failed"] == len(failed(findings))


def test_what_is_printed(command, write):
    path = write("printed")
    code, out, err = command("plugins", "check", path)
    assert (code, err) == (0, "")
    first, *lines, last = out.splitlines()
    assert first == "term printed" and last == "1 component(s), 0 check(s) failed"
    assert "  ok      shape: [B] = [6]" in lines and all(line.startswith("  ok      ") for line in lines)
    code, out, _ = command("plugins", "check", write("printed_fault", "loss + jnp.mean(loss)"))
    first, *lines, last = out.splitlines()
    bad = "  FAILED  an example does not see its batch-mates: changing example 1 changed example 0"
    assert code == 1 and bad in lines and last == "1 component(s), 1 check(s) failed"


def test_a_field_without_a_default_needs_a_value(command, write):
    path = write("required", template=REQUIRED)
    code, out, err = command("plugins", "check", path)
    assert (code, out) == (2, "") and err == "error: term configuration: power is missing; add it\n"
    assert command("plugins", "check", path, "--set", "required.power=2")[0] == 0
    code, _, err = command("plugins", "check", path, "--set", "required.power=much")
    assert code == 2 and "power = 'much'" in err


def test_a_value_that_is_set_reaches_the_component(command, plugin_file):
    values = {}
    for temperature in (1.0, 0.0):
        set_it = ("--set", f"confidence.temperature={temperature}")
        _, out, _ = command("plugins", "check", plugin_file("confidence"), "--json", *set_it)
        values[temperature] = failed(json.loads(out)["components"]["term confidence"])
    assert values[1.0] == {} and "finite values" in values[0.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import numpy\n", r"{path}: registers no component; decorate a class with @register"),
        ("1 / 0\n", r"failed to import at {path}:1: ZeroDivisionError"),
        (None, "there is no file {path}"),
    ],
    ids=["registers nothing", "raises", "no file"],
)
def test_a_file_that_is_no_plugin(command, tmp_path, text, says):
    path = tmp_path / "nothing.py"
    if text is not None:
        path.write_text(text)
    code, out, err = command("plugins", "check", path)
    assert (code, out) == (2, "") and err.count("\n") == 1 and says.format(path=path) in err, err


class Term(Component):
    """A term that was never registered."""

    def __call__(self, probe, delta):
        return probe.loss()


class ConstantTerm(Component):
    """A loss that no parameter can lower."""

    def __call__(self, probe, delta):
        return jax.lax.stop_gradient(probe.loss())


class Averaging(Network):
    """A linear classifier whose logits are centred over the batch."""

    def body(self, h, classes, batch_statistics):
        logits = hk.Linear(classes)(hk.Flatten()(h))
        return logits - jnp.mean(logits, axis=0)


class Narrow(Network):
    """One class too few."""

    def body(self, h, classes, batch_statistics):
        return hk.Linear(classes - 1)(hk.Flatten()(h))


class Idle(Network):
    """A linear classifier with a layer that nothing uses."""

    def body(self, h, classes, batch_statistics):
        hk.Linear(3, name="idle")(hk.Flatten()(h))
        return hk.Linear(classes)(hk.Flatten()(h))


class ClassTerm(Component):
    """Written for labels that are classes."""

    def __call__(self, probe, delta):
        return jnp.take_along_axis(probe.logits(delta), probe.y[:, None], axis=-1)[:, 0]


class Swapped(Component):
    """Shares outside [0, 1]."""

    def __call__(self, image, partner, key):
        return partner, 2.0 * jnp.ones(())


class Imageless(Component):
    """Only a share."""

    def __call__(self, image, partner, key):
        return jnp.ones(())


class PlacedTerm(Component):
    """Noise by the place in the batch, not by the example."""

    def __call__(self, probe, delta):
        return probe.loss(delta) * jax.random.uniform(jax.random.key(0), (len(probe.x),))


class Brighter(Component):
    """Pixels above 1."""

    def __call__(self, image, key):
        return image + 0.5


class Smaller(Component):
    """An image of another size."""

    def __call__(self, image, key):
        return image[1:]


class Chance(Component):
    """Another image every time, whatever the key."""

    def __call__(self, image, key):
        return image * np.random.uniform(0.1, 1.0)


class CentredStart(Component):
    """Starts at the difference to the mean image."""

    def __call__(self, threat, x, keys):
        return x - jnp.mean(x, axis=0)


class FlatStart(Component):
    """One number per example."""

    def __call__(self, threat, x, keys):
        return jnp.zeros(len(x))


class _Step(Component):
    def init(self, delta):
        return ()

    def move(self, gradient, delta, state, threat, auto):
        return auto * self.direction(gradient), state


class BatchNormalizedStep(_Step):
    """Divides by the norm of the whole batch."""

    def direction(self, gradient):
        return gradient / (jnp.linalg.norm(gradient) + 1e-9)


class UnguardedStep(_Step):
    """0 / 0 where the gradient vanishes."""

    def direction(self, gradient):
        return gradient / jnp.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)[:, None, None, None]


class Reciprocal(Component):
    """Infinite at step 0."""

    def build(self):
        return lambda step: 1 / step


class Pair(Component):
    """Two numbers a step."""

    def build(self):
        return lambda step: jnp.array([1.0, 2.0])


class Exploding(Component):
    """Divides by zero."""

    def build(self):
        return optax.scale(float("inf"))


class Bare(Component):
    """Returns the gradient without what came with it."""

    def __call__(self, gradient, params):
        return gradient(params).value


class Scattered(Component):
    """A gradient that is not finite."""

    def __call__(self, gradient, params):
        found = gradient(params)
        return found._replace(value=jax.tree.map(lambda leaf: leaf / 0, found.value))


BATCH_MATES = "an example does not see its batch-mates"
COMPONENTS = {
    "term": (
        Term(),
        {
            ConstantTerm(): "gradient reaches the parameters",
            PlacedTerm(): "an example's place in the batch does not matter",
            ClassTerm(): "a one-hot label gives what its class gives",
        },
    ),
    "model": (
        make("model", {"type": "mlp", "widths": [4]}),
        {Averaging(): BATCH_MATES, Narrow(): "runs", Idle(): "gradient reaches every parameter"},
    ),
    "augmentation": (
        make("augmentation", "pad_crop"),
        {Brighter(): "pixels stay in [0, 1]", Smaller(): "shape", Chance(): "the same key gives the same image"},
    ),
    "mixing": (make("mixing", "cutmix"), {Swapped(): "pixels and shares stay in [0, 1]", Imageless(): "runs"}),
    "start": (make("start", "uniform"), {CentredStart(): BATCH_MATES, FlatStart(): "shape"}),
    "step": (make("step", "normalized"), {BatchNormalizedStep(): BATCH_MATES, UnguardedStep(): "finite values"}),
    "schedule": (
        make("schedule", {"type": "cosine_decay_schedule", "init_value": 1.0, "decay_steps": 10}),
        {Reciprocal(): "finite values", Pair(): "one number a step"},
    ),
    "optimizer": (make("optimizer", {"type": "adam", "learning_rate": 0.1}), {Exploding(): "finite updates"}),
    "gradient": (
        make("gradient", "plain"),
        {Bare(): "returns a Gradient like the parameters", Scattered(): "finite values"},
    ),
    "attack": (make("attack", {"type": "pgd", "steps": 2}), {}),
}
FAULTY = {
    type(part).__name__: (kind, part, what) for kind, (_, bad) in COMPONENTS.items() for part, what in bad.items()
}


@pytest.mark.parametrize("kind", COMPONENTS)
def test_a_sound_component_of_each_kind(kind):
    findings = list(findings_of(kind, COMPONENTS[kind][0]))
    assert findings and [finding for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_component_of_each_kind(name):
    kind, component, what = FAULTY[name]
    assert [finding.what for finding in findings_of(kind, component) if not finding.ok] == [what]
