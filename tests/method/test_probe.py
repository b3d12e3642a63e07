"""Probe and SearchProbe: one interface, each pass computed once, per-example answers, and published faults."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llrflow.components.registry import entries, make
from llrflow.method.ascent import Search, maximise
from llrflow.method.labels import cross_entropy
from llrflow.method.objective import Objective, evaluate, foresee, perturb
from llrflow.method.probe import Pass, Probe
from llrflow.method.threat import Threat

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
        foresee(objective, probe, probe, {}, 5)
        assert traced == []
        found = perturb(objective, probe, Threat(epsilon=0.1), lambda _: keys, "unroll")
        traced.clear()  # the search's own passes
        outcome = evaluate(objective, probe, found, {})
        # The slope along the perturbation and the norm are differentiated together.
        clean = Pass("clean", differentiated=True, gradient=True, derivative=True)
        assert list(probe.passes.values()) == [Pass("p", differentiated=True), clean]
        return outcome

    jax.eval_shape(total, net.x)
    assert len(traced) == 2


def test_two_perturbations_are_not_confused(net):
    probe = Probe(net.logits, net.x, net.y)
    first, second = probe.loss(net.delta), probe.loss(-net.delta)
    assert np.all(np.abs(first - second) > 1e-3)
    np.testing.assert_array_equal(probe.loss(net.delta), first)


def doubly(reference, params, delta=0.0):
    """The gradient of the losses' sum with respect to the images, whose own derivative is double backpropagation."""

    def total(images):
        logits = reference.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, reference.y).sum()

    return jax.grad(total)(reference.x + delta)


@pytest.mark.parametrize("config", NORMS, ids=str)
def test_gradient_norm_equals_double_backpropagation(config, reference):
    order = {1: 1, 2: 2, "inf": jnp.inf}[config["p"]]

    def direct(params):
        norm = jnp.linalg.norm(doubly(reference, params).reshape(len(reference.x), -1), order, axis=1)
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


def cosine(first, second):
    """The cosine of two gradients per example, [B,H,W,C] -> [B]."""

    def inner(a, b):
        return jnp.sum(a * b, axis=(1, 2, 3))

    return inner(first, second) / jnp.sqrt(inner(first, first) * inner(second, second))


@pytest.mark.parametrize("clean_first", [True, False])
def test_a_function_of_two_gradients_equals_double_backpropagation(clean_first, reference):
    points = (None, reference.delta) if clean_first else (reference.delta, -reference.delta)

    def mean(params, double):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        if double:
            return jnp.mean(cosine(*(doubly(reference, params, 0.0 if d is None else d) for d in points)))
        return jnp.mean(cosine(*(probe.input_gradient(point) for point in points)))

    value, gradient = jax.jit(jax.value_and_grad(lambda params: mean(params, False)))(reference.params)
    expected_value, expected = jax.jit(jax.value_and_grad(lambda params: mean(params, True)))(reference.params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for name, part in expected.items():
        scale = float(jnp.abs(part).max())
        assert scale > 1e-5
        np.testing.assert_allclose(gradient[name], part, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("answer", "constant"), [("input_gradient", True), ("input_gradient", False), ("logits", True)]
)
def test_a_constant_answer_has_no_derivative(answer, constant, reference):
    def total(params, delta):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return jnp.sum(getattr(probe, answer)(delta, constant=constant) ** 2)

    slopes = jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(reference.params, reference.delta))
    moved = [float(jnp.abs(slope).max()) > 1e-3 for slope in slopes]
    assert not any(moved) if constant else all(moved)


PASSES = {
    "constant logits": (lambda probe, d: probe.logits(d, constant=True), Pass("p")),
    "logits": (lambda probe, d: probe.logits(d), Pass("p", differentiated=True)),
    "loss": (lambda probe, d: probe.loss(d), Pass("p", differentiated=True)),
    "constant gradient": (lambda probe, d: probe.input_gradient(d, constant=True), Pass("p", gradient=True)),
    "gradient": (
        lambda probe, d: probe.input_gradient(d),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
    "slope": (lambda probe, d: probe.slope(probe.x, d), Pass("p", differentiated=True, gradient=True, derivative=True)),
    "one slope twice": (
        lambda probe, d: (probe.slope(probe.x, d), probe.slope(probe.x, d)),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
    "two slopes": (
        lambda probe, d: (probe.slope(probe.x, d), probe.slope(2 * probe.x, d)),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
    "slope and norm": (
        lambda probe, d: (probe.slope(probe.x, d), jnp.sum(probe.input_gradient(d) ** 2)),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
    "constant, then not": (
        lambda probe, d: (probe.input_gradient(d, constant=True), probe.input_gradient(d)),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
    "not constant, then constant": (
        lambda probe, d: (probe.input_gradient(d), probe.input_gradient(d, constant=True)),
        Pass("p", differentiated=True, gradient=True, derivative=True),
    ),
}


@pytest.mark.parametrize("at", ["clean", "p", "elsewhere"])
@pytest.mark.parametrize(("ask", "made"), PASSES.values(), ids=PASSES)
def test_a_probe_records_what_was_asked(ask, made, at, net):
    def asked(delta):
        probe = Probe(net.logits, net.x, net.y)
        if at == "p":
            probe.name(delta, "p")
        ask(probe, None if at == "clean" else delta)
        assert list(probe.passes.values()) == [Pass(at, made.differentiated, made.gradient, made.derivative)]

    jax.eval_shape(asked, net.delta)


def test_curvature_at_a_perturbation_makes_one_pass_there_and_one_further_on(net):
    def asked(delta):
        probe = Probe(net.logits, net.x, net.y)
        probe.name(delta, "p")
        make("term", "curvature")(probe, delta)
        here, further = probe.passes.values()
        assert here == Pass("p", differentiated=True, gradient=True, derivative=True)
        assert further == Pass("elsewhere", differentiated=True, gradient=True, derivative=True)

    jax.eval_shape(asked, net.delta)


def test_all_answers_at_one_point_share_one_pass(net, keys):
    traced = []

    def counting(images):
        traced.append(images)
        return net.logits(images)

    def ask_all(probe, delta):
        for point in (None, delta):
            for _ in range(2):
                first, second = probe.loss(point), probe.loss(point)
                assert first is second
                probe.logits(point), probe.logits(point, constant=True), probe.input_gradient(point)
                probe.input_gradient(point, constant=True), probe.slope(delta, point), probe.slope(net.x, point)
                make("term", "gradient_norm")(probe, point), make("term", "margin")(probe, point)

    def asked(delta):
        probe = Probe(counting, net.x, net.y, keys)
        sketched = probe.sketch(5)
        ask_all(sketched, delta)
        probe.expect(sketched)
        assert len(traced) == 0
        ask_all(probe, delta)
        assert len(traced) == 2
        probe.loss(delta + 0.0)  # equal, but another array
        assert len(traced) == 3
        ask_all(Probe(counting, net.x, net.y, keys), delta)  # not told: values and gradient are passes apart
        assert len(traced) == 7

    jax.eval_shape(asked, net.delta)


def test_a_search_follows_a_networks_own_derivative_rules(net, keys):
    """Of a rounding network it learns nothing; by a straight-through estimator it climbs."""
    straight = jax.custom_vjp(lambda a: jnp.round(a))
    straight.defvjp(lambda a: (jnp.round(a), None), lambda _, c: (c,))
    objective = Objective(loss={"type": "cross_entropy", "at": "p"}, perturbations={"p": {"steps": 3}})

    def reached(rounded):
        probe = Probe(lambda images: net.logits(rounded(20 * images) / 20), net.x, net.y, keys)
        found = perturb(objective, probe, Threat(epsilon=0.3), lambda _: keys, "unroll")
        return float(jnp.mean(evaluate(objective, probe, found, {}).value))

    assert reached(straight) > reached(jnp.round) + 0.05


def test_a_parameter_inside_a_rule_learns_by_the_rule(net):
    straight = jax.custom_vjp(lambda a: jnp.round(a))
    straight.defvjp(lambda a: (jnp.round(a), None), lambda _, c: (c,))

    def loss(weights, ask):
        probe = Probe(lambda images: images.reshape(len(images), -1)[:, :5] * straight(weights), net.x, net.y)
        return jnp.sum(ask(probe))

    weights = jnp.linspace(0.2, 3.0, 5)
    by_hand = jax.grad(lambda w: loss(w, lambda probe: cross_entropy(probe.logits(), net.y)))(weights)
    found = jax.grad(lambda w: loss(w, lambda probe: probe.loss()))(weights)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert (found != 0).all()


def test_keys_are_an_examples_own_for_each_purpose(net, keys):
    def drawn(keys, purpose):
        return jax.random.key_data(Probe(net.logits, net.x[: len(keys)], net.y, keys).keys(purpose))

    first = drawn(keys, "one")
    np.testing.assert_array_equal(drawn(keys, "one"), first)
    np.testing.assert_array_equal(drawn(keys[::-1], "one"), first[::-1])
    np.testing.assert_array_equal(drawn(keys[2:3], "one"), first[2:3])
    everything = np.concatenate([first, drawn(keys, "other"), jax.random.key_data(keys)])
    assert len(np.unique(everything, axis=0)) == 3 * len(keys)


def test_a_probe_without_keys_says_so(net):
    probe = Probe(net.logits, net.x, net.y)
    with pytest.raises(ValueError, match="made without random keys: pass `keys`"):
        probe.keys("target")
    with pytest.raises(ValueError, match="pass `keys`"):
        make("term", {"type": "margin", "target": "random"})(probe, None)


def test_the_batch_mean_is_that_of_all_devices_and_a_constant(net):
    values = jnp.arange(12.0).reshape(3, 4) ** 2

    def mean(values, axis):
        probe = Probe.stateful(lambda images: (net.logits(images), None), net.x, net.y, axis=axis)
        return probe.batch_mean(values)

    over_devices = jax.vmap(lambda values: jax.value_and_grad(mean)(values, "devices"), axis_name="devices")
    means, slopes = over_devices(values)
    np.testing.assert_allclose(means, np.mean(values))
    np.testing.assert_array_equal(slopes, 0.0)
    np.testing.assert_allclose(mean(values[1], None), np.mean(values[1]))


def test_a_penalty_on_the_gradient_may_be_weighted_by_other_answers(reference):
    def weighted(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return jnp.mean(probe.loss() * jnp.sum(probe.input_gradient() ** 3, axis=(1, 2, 3)))

    def directly(params):
        loss = optax.softmax_cross_entropy_with_integer_labels(reference.apply(params, reference.x), reference.y)
        return jnp.mean(loss * jnp.sum(doubly(reference, params) ** 3, axis=(1, 2, 3)))

    ours, theirs = (jax.jit(jax.value_and_grad(value))(reference.params) for value in (weighted, directly))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("outside", [False, True], ids=["jit of grad", "grad of jit"])
def test_the_gradient_has_its_derivative_however_it_is_transformed(outside, reference):
    """What a linearised pass remembers must reach the derivative's rule as an argument, never as a constant."""

    def value(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return jnp.sum(probe.slope(reference.delta) ** 2)

    gradient = (jax.grad(jax.jit(value)) if outside else jax.jit(jax.grad(value)))(reference.params)
    expected = jax.grad(
        lambda params: jnp.sum(jnp.sum(reference.delta * doubly(reference, params), axis=(1, 2, 3)) ** 2)
    )(reference.params)
    for name, part in expected.items():
        np.testing.assert_allclose(gradient[name], part, rtol=1e-3, atol=1e-4 * float(jnp.abs(part).max()))


def test_functions_of_gradients_are_written_out_now(net):
    probe = Probe(net.logits, net.x, net.y)
    with pytest.warns(DeprecationWarning, match=r"write function\(probe\.input_gradient"):
        found = probe.of_gradients(lambda near, far: jnp.sum(near * far, axis=(1, 2, 3)), None, net.delta)
    expected = jnp.sum(probe.input_gradient() * probe.input_gradient(net.delta), axis=(1, 2, 3))
    np.testing.assert_array_equal(found, expected)
