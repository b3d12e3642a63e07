"""Probe and SearchProbe: one interface, each pass computed once, per-example answers, and published faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.ascent import Search, maximise
from llrflow.objective import Objective, evaluate, perturb
from llrflow.probe import Pass, Probe
from llrflow.registry import entries, make
from llrflow.threat import Threat

TERMS = sorted(entries("term"))
NORMS = [{"p": 1}, {"p": 2}, {"p": "inf"}, {"p": 2, "squared": True}]


@pytest.fixture
def keys(net):
    return jax.random.split(jax.random.key(0), len(net.x))


def answers(probe, delta):
    return {
        "loss": probe.loss(),
        "loss at delta": probe.loss(delta),
        "logits": probe.logits(),
        "logits at delta": probe.logits(delta),
        "slope": probe.slope(delta),
        "input gradient": probe.input_gradient(),
        "input gradient at delta": probe.input_gradient(delta),
        **{name: make("term", name)(probe, delta) for name in TERMS},
    }


def test_both_probes_agree_on_every_answer(net, search_probe):
    in_objective = jax.jit(lambda delta: answers(Probe(net.logits, net.x, net.y), delta))(net.delta)
    in_search = jax.jit(lambda delta: answers(search_probe(net.logits, net.x, net.y), delta))(net.delta)
    for question, answer in in_objective.items():
        np.testing.assert_allclose(in_search[question], answer, rtol=1e-4, atol=1e-5, err_msg=question)


def test_answers_match_plain_derivatives(net):
    def loss(images):
        return -jnp.take_along_axis(jax.nn.log_softmax(net.logits(images)), net.y[:, None], axis=1)[:, 0]

    def by_hand(delta):
        gradient = jax.jacrev(loss)(net.x)[np.arange(len(net.x)), np.arange(len(net.x))]
        return loss(net.x), loss(net.x + delta), gradient, jnp.sum(delta * gradient, axis=(1, 2, 3))

    def asked(delta):
        probe = Probe(net.logits, net.x, net.y)
        return probe.loss(), probe.loss(delta), probe.input_gradient(), probe.slope(delta)

    for actual, expected in zip(jax.jit(asked)(net.delta), jax.jit(by_hand)(net.delta), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_terms_that_share_a_perturbation_share_its_passes(net, keys):
    traced = []

    def counting(images):
        traced.append(images)
        return net.logits(images)

    objective = Objective(
        loss={"type": "cross_entropy", "at": "p"},
        perturbations={"p": {"steps": 1}},
        terms={
            "gamma": {"type": "local_linearity", "at": "p"},
            "slope": {"type": "gradient_inner_product", "at": "p"},
            "margin": {"type": "margin", "at": "p"},
            "clean": {"type": "cross_entropy"},
            "norm": {"type": "gradient_norm"},
        },
    )

    def total(x):
        probe = Probe(counting, x, net.y)
        search = (lambda _: keys, lambda images, _: (net.logits(images), None), True, "unroll")
        outcome = evaluate(objective, probe, perturb(objective, probe, Threat(epsilon=0.1), *search), {})
        # One slope along the perturbation, one along the gradient's dual vector.
        clean = Pass("clean", differentiated=True, slopes=2, gradient=True)
        assert list(probe.passes.values()) == [Pass("p", differentiated=True), clean]
        return outcome

    jax.eval_shape(total, net.x)
    assert len(traced) == 2


def test_two_perturbations_are_not_confused(net):
    probe = Probe(net.logits, net.x, net.y)
    first, second = probe.loss(net.delta), probe.loss(-net.delta)
    assert np.all(np.abs(first - second) > 1e-3)
    np.testing.assert_array_equal(probe.loss(net.delta), first)


@pytest.mark.parametrize("config", NORMS, ids=str)
def test_gradient_norm_equals_double_backpropagation(config, reference):
    order = {1: 1, 2: 2, "inf": jnp.inf}[config["p"]]

    def direct(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        norm = jnp.linalg.norm(probe.input_gradient().reshape(len(reference.x), -1), order, axis=1)
        return jnp.mean(norm**2 if config.get("squared") else norm)

    def dual(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return jnp.mean(make("term", {"type": "gradient_norm", **config})(probe, None))

    value, gradient = jax.jit(jax.value_and_grad(dual))(reference.params)
    expected_value, expected = jax.jit(jax.value_and_grad(direct))(reference.params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for name, part in expected.items():
        np.testing.assert_allclose(
            gradient[name], part, rtol=1e-3, atol=1e-4 * float(jnp.abs(part).max()), err_msg=name
        )


@pytest.mark.parametrize("name", TERMS)
def test_a_flat_loss_has_finite_values_and_gradients(name, reference):
    flat = {part: jnp.zeros_like(value) for part, value in reference.params.items()}
    configs = [{"type": name, **options} for options in (NORMS if name == "gradient_norm" else [{}])]

    @jax.jit
    def all_of(params, delta):
        def total(params, delta):
            probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
            values = [make("term", config)(probe, delta) for config in configs]
            return sum(jnp.sum(value) for value in values), values

        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, delta)

    for delta in (reference.delta, jnp.zeros_like(reference.delta)):
        for leaf in jax.tree.leaves(all_of(flat, delta)):
            assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_saturated_logits_have_finite_terms(logit, net):
    def logits(images):
        spread = [
            logit * images.mean((1, 2, 3)),
            images.sum((1, 2, 3)),
            *(k * images.max((1, 2, 3)) for k in (0, 1, 2)),
        ]
        return jnp.stack(spread, axis=-1)

    values = jax.jit(lambda delta: answers(Probe(logits, net.x, 0 * net.y), delta))(net.delta)
    for question, answer in values.items():
        assert np.all(np.isfinite(answer)), question


@pytest.mark.parametrize("name", [*TERMS, "search"])
def test_an_example_does_not_see_its_batch_mates(name, net, keys, search_probe):
    @jax.jit
    def outcome(x, delta):
        if name == "search":
            search = Search(maximize="local_linearity", steps=2, restarts=2, keep="best")
            return maximise(search, lambda: search_probe(net.logits, x, net.y), Threat(epsilon=0.1), keys, "unroll")
        return make("term", name)(Probe(net.logits, x, net.y), delta)

    before = outcome(net.x, net.delta)
    after = outcome(net.x.at[1].set(net.x[2]), net.delta.at[1].multiply(-0.5))
    others = np.array([0, 2, 3])
    np.testing.assert_allclose(after[others], before[others], rtol=1e-5, atol=1e-6)
    assert np.any(np.abs(after[1] - before[1]) > 1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_published_fault_mean_loss_gradient(name, net):
    """The gradient of the batch mean is B times too small: a batch repeated would halve every slope."""

    @jax.jit
    def value(x, y, delta):
        return make("term", name)(Probe(net.logits, x, y), delta)

    once = value(net.x, net.y, net.delta)
    twice = value(*(jnp.concatenate([part, part]) for part in (net.x, net.y, net.delta)))
    np.testing.assert_allclose(twice, jnp.concatenate([once, once]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_probe", ["objective", "search"])
def test_published_fault_product_of_all_pairs(make_probe, net, search_probe):
    """<delta, grad l> of B examples is B numbers, the diagonal of the B x B product of all pairs."""
    probe = search_probe(net.logits, net.x, net.y) if make_probe == "search" else Probe(net.logits, net.x, net.y)
    pairs = net.delta.reshape(len(net.x), -1) @ probe.input_gradient().reshape(len(net.x), -1).T
    assert probe.slope(net.delta).shape == (len(net.x),)
    np.testing.assert_allclose(probe.slope(net.delta), np.diag(pairs), rtol=1e-4)


@pytest.mark.parametrize("first", ["loss", "slope", "input_gradient"])
def test_published_fault_cleared_gradient_buffer(first, net):
    """The linear term was silently zero when something else was computed in between: answers have no order."""
    ask = {
        "loss": lambda probe: probe.loss(net.delta),
        "slope": lambda probe: probe.slope(net.delta),
        "input_gradient": lambda probe: probe.input_gradient(),
    }
    probe = Probe(net.logits, net.x, net.y)
    ask[first](probe)
    found = {name: question(probe) for name, question in ask.items()}
    assert np.all(np.abs(found["slope"]) > 0.1)
    np.testing.assert_allclose(found["slope"], jnp.sum(net.delta * found["input_gradient"], axis=(1, 2, 3)), rtol=1e-4)


def test_label_smoothing_mixes_the_uniform_distribution_in(net):
    smoothed = make("term", {"type": "cross_entropy", "label_smoothing": 0.3})(
        Probe(net.logits, net.x, net.y), net.delta
    )
    log_p = np.asarray(jax.nn.log_softmax(net.logits(net.x + net.delta)))
    target = 0.7 * np.eye(5)[np.asarray(net.y)] + 0.3 / 5
    np.testing.assert_allclose(smoothed, -np.sum(target * log_p, axis=1), rtol=1e-5)
