"""Each built-in term against its formula in NumPy, or on a loss whose derivatives are known on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.components.registry import make
from llrflow.components.traced import bind
from llrflow.method.ascent import Search, maximise
from llrflow.method.objective import Objective
from llrflow.method.probe import Probe
from llrflow.method.term import lacking_classes
from llrflow.method.threat import Threat

CLASSES = 6
TARGETED = ("cross_entropy", "margin", "dlr")
TARGETS = (1, 2, 4, "least_likely", "random")


class Case:
    """A batch whose clean and perturbed logits are chosen freely: its network returns the image."""

    def __init__(self, examples=64, scale=3.0, shift=0.0, factor=1.0):
        rng = np.random.default_rng(0)
        clean, perturbed = rng.normal(scale=scale, size=(2, examples, CLASSES)).astype(np.float32)
        self.clean, self.perturbed = factor * clean + shift, factor * perturbed + shift
        self.y = rng.integers(0, CLASSES, examples)
        self.keys = jax.random.split(jax.random.key(0), examples)

    def probe(self, w=1.0, order=None):
        order = np.arange(len(self.y)) if order is None else order
        images = jnp.asarray(self.clean)[order, None, None, :]
        return Probe(lambda images: w * images[:, 0, 0, :], images, jnp.asarray(self.y)[order], self.keys[order])

    def delta(self, to=None):
        return jnp.asarray((self.perturbed if to is None else to) - self.clean)[:, None, None, :]

    def value(self, config, to=None):
        term = make("term", config)
        return np.asarray(jax.jit(lambda delta: term(self.probe(), delta))(self.delta(to)))


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))


def at_class(values, k):
    return np.take_along_axis(values, np.asarray(k)[:, None], axis=1)[:, 0]


def same(found, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("direction", ["clean_to_perturbed", "perturbed_to_clean"])
def test_kl_divergence(direction):
    case, config = Case(), {"type": "kl_divergence", "direction": direction}
    log_p, log_q = log_softmax(case.clean), log_softmax(case.perturbed)
    if direction == "perturbed_to_clean":
        log_p, log_q = log_q, log_p
    found = case.value(config)
    same(found, np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
    assert np.all(found > 0.01)
    same(case.value(config, to=case.clean), 0.0, atol=1e-6)


@pytest.mark.parametrize("direction", ["clean_to_perturbed", "perturbed_to_clean"])
def test_the_gradient_of_kl_divergence_flows_through_both_sides(direction):
    case = Case(scale=1.0)

    def by_hand(w):
        log_p, log_q = (jax.nn.log_softmax(w * logits) for logits in (case.clean, case.perturbed))
        if direction == "perturbed_to_clean":
            log_p, log_q = log_q, log_p
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    term = make("term", {"type": "kl_divergence", "direction": direction})
    w = jnp.linspace(0.5, 1.5, CLASSES)
    found = jax.jit(jax.grad(lambda w: jnp.sum(term(case.probe(w), case.delta()))))(w)
    same(found, jax.jit(jax.grad(by_hand))(w), rtol=1e-3)


def test_logit_pairing():
    case = Case()
    same(case.value("logit_pairing"), np.mean((case.perturbed - case.clean) ** 2, axis=1))
    same(case.value("logit_pairing", to=case.clean), 0.0)


@pytest.mark.parametrize("target", [None, 2, "least_likely", "random"])
def test_dlr_ignores_shift_and_scale_of_the_logits(target):
    dlr, margin = {"type": "dlr", "target": target}, {"type": "margin", "target": target}
    plain, moved = Case(), Case(shift=7.0, factor=4.0)
    same(moved.value(dlr), plain.value(dlr), rtol=1e-3)
    same(moved.value(margin), 4 * plain.value(margin), rtol=1e-3)
    assert np.ptp(plain.value(dlr)) > 0.5


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({"type": "dlr"}, 3),
        ({"type": "dlr", "target": 1}, 4),
        ({"type": "dlr", "target": 7}, 8),
        ({"type": "dlr", "target": "random"}, 4),
        ({"type": "margin", "target": 3}, 4),
        ({"type": "cross_entropy", "target": "least_likely"}, 2),
        ({"type": "margin"}, 2),
    ],
    ids=str,
)
def test_classes_that_a_term_needs(config, needed):
    term = make("term", config)
    assert lacking_classes(term, needed) is None
    _, got = lacking_classes(term, needed - 1)
    assert got == f"(term {config['type']}) needs {needed} classes, the model has {needed - 1}"


@pytest.mark.parametrize(
    ("objective", "path"),
    [
        ({"loss": "dlr"}, "objective.loss"),
        ({"terms": {"d": {"type": "dlr"}}}, "objective.terms.d"),
        ({"perturbations": {"p": {"maximize": "dlr"}}}, "objective.perturbations.p.maximize"),
    ],
)
def test_lacking_classes_are_found_wherever_the_term_stands(objective, path):
    assert lacking_classes(Objective.model_validate(objective), 2, ("objective",))[0] == path
    assert lacking_classes(Objective.model_validate(objective), 3, ("objective",)) is None


def expected_target(case, target):
    """The target class in NumPy; of a random one what the term drew."""
    if target == "random":
        return np.asarray(make("term", {"type": "margin", "target": target}).target_class(case.probe(), CLASSES))
    ranked = [[k for k in np.argsort(-clean) if k != y] for clean, y in zip(case.clean, case.y, strict=True)]
    return np.array(ranked)[:, -1 if target == "least_likely" else target - 1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TARGETED)
def test_a_target_is_a_class_of_the_clean_image(name, target):
    case = Case()
    z, t = case.perturbed, expected_target(case, target)
    descending = -np.sort(-z, axis=1)
    expected = {
        "cross_entropy": at_class(log_softmax(z), t),
        "margin": at_class(z, t) - at_class(z, case.y),
        "dlr": (at_class(z, t) - at_class(z, case.y)) / (descending[:, 0] - descending[:, 2:4].mean(axis=1)),
    }[name]
    same(case.value({"type": name, "target": target}), expected, rtol=1e-3)


@pytest.mark.parametrize("target", [None, 2, "random"])
def test_label_smoothing_mixes_with_the_label_or_the_target(target):
    case = Case()
    log_p, sign = log_softmax(case.perturbed), -1 if target is None else 1
    hot = np.eye(CLASSES)[case.y if target is None else expected_target(case, target)]
    found = case.value({"type": "cross_entropy", "target": target, "label_smoothing": 0.3})
    same(found, sign * np.sum((0.7 * hot + 0.3 / CLASSES) * log_p, axis=1))


def test_random_targets_are_every_wrong_class_and_never_the_label():
    case = Case(examples=1500)
    drawn = expected_target(case, "random")
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (case.y, drawn), 1)
    assert np.all(np.diag(counts) == 0)
    wrong = counts[~np.eye(CLASSES, dtype=bool)]
    assert wrong.sum() == 1500 and wrong.min() > 25 and wrong.max() < 80  # 50 expected of each


def test_a_random_target_goes_with_the_example_wherever_it_stands():
    case, term = Case(), make("term", {"type": "margin", "target": "random"})
    order = np.random.default_rng(1).permutation(len(case.y))
    drawn = np.asarray(term.target_class(case.probe(), CLASSES))
    np.testing.assert_array_equal(term.target_class(case.probe(order=order), CLASSES), drawn[order])
    np.testing.assert_array_equal(term.target_class(case.probe(order=order[:5]), CLASSES), drawn[order[:5]])


@pytest.mark.parametrize("name", TARGETED)
@pytest.mark.parametrize("target", [1, "least_likely", "random"])
def test_a_targeted_search_drives_examples_to_their_target(name, target, net, search_probe):
    search = Search.model_validate({"maximize": {"type": name, "target": target}, "steps": 8})

    @jax.jit
    def found(x, keys):
        clean = net.logits(x)
        y = jnp.argmax(clean, axis=1)
        probe = search_probe(net.logits, x, y)
        delta = maximise(search, lambda: probe, Threat(epsilon=0.5), keys, "scan")
        return y, search.maximize.target_class(probe, 5), clean, net.logits(x + delta)

    y, wanted, before, after = found(net.x, jax.random.split(jax.random.key(0), len(net.x)))
    assert np.all(at_class(before, wanted) < at_class(before, y))
    assert np.all(at_class(after, wanted) > at_class(after, y))
    if name == "cross_entropy":  # the other two only ask for more than the label
        np.testing.assert_array_equal(jnp.argmax(after, axis=1), wanted)


SHAPE = (3, 4, 4, 2)
CENTRE = 0.5


@pytest.fixture(scope="module")
def quadratic(dressed):
    """(logits, a, x, delta) of the loss 1 + 1/2 sum a (x - 1/2)^2, whose gradient is a (x - 1/2)."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 1.5, SHAPE[1:]).astype(np.float32)
    x, delta = (rng.uniform(*ends, SHAPE).astype(np.float32) for ends in ((0.1, 0.9), (-0.3, 0.3)))
    x[:, 0], delta[:, 0] = CENTRE, 0.0  # pixels without gradient, along which the sign does not move
    return dressed(lambda images: 1.0 + 0.5 * jnp.sum(a * (images - CENTRE) ** 2, axis=(1, 2, 3))), a, x, delta


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("direction", ["sign", "gradient"])
@pytest.mark.parametrize("perturbed", [False, True])
def test_curvature_of_a_quadratic_loss(quadratic, direction, squared, perturbed):
    logits, a, x, delta = quadratic
    term = make("term", {"type": "curvature", "h": 0.7, "direction": direction, "squared": squared})
    gradient = a * (x + delta * perturbed - CENTRE)
    along = np.sign(gradient) if direction == "sign" else gradient
    z = 0.7 * along / np.sqrt(np.sum(along**2, axis=(1, 2, 3), keepdims=True))
    expected = np.sum((a * z) ** 2, axis=(1, 2, 3))

    @jax.jit
    def found(x, delta):
        return term(Probe(logits, x, np.zeros(len(x), int)), delta if perturbed else None)

    same(found(x, delta), expected if squared else np.sqrt(expected), rtol=2e-3)


def test_the_length_of_curvatures_step_is_an_input_of_the_program(quadratic):
    logits, _, x, delta = quadratic
    traces = []

    @jax.jit
    def found(h):
        traces.append(h)
        return bind(make("term", "curvature"), {"h": h})(Probe(logits, x, np.zeros(len(x), int)), delta)

    same(found(0.9), 9 * found(0.3), rtol=1e-2)
    assert len(traces) == 1


@pytest.mark.parametrize("perturbed", [False, True])
def test_gradient_norm_is_that_of_the_gradient_at_its_point(net, perturbed):
    @jax.jit
    def found_at(delta):
        def total(images):
            log_p = jax.nn.log_softmax(net.logits(images))
            return -jnp.sum(jnp.take_along_axis(log_p, net.y[:, None], axis=1))

        probe, at = Probe(net.logits, net.x, net.y), delta if perturbed else None
        norms = [make("term", {"type": "gradient_norm", "p": p})(probe, at) for p in (1, 2, "inf")]
        squared = make("term", {"type": "gradient_norm", "squared": True})(probe, at)
        return norms, squared, jax.grad(total)(net.x + delta * perturbed)

    norms, squared_norm, gradient = found_at(net.delta)
    flat = np.asarray(gradient).reshape(len(net.x), -1)
    for found, order in zip(norms, (1, 2, np.inf), strict=True):
        same(found, np.linalg.norm(flat, order, axis=1))
    same(squared_norm, np.sum(flat**2, axis=1))
