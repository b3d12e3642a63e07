"""Attacks on functions that are not llrflow's: never stale, nothing compiled twice, one line for what is refused."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.attacks.function import foreign
from llrflow.base.errors import SpecError

KEY = jax.random.key(3)
THREAT = {"norm": "linf", "epsilon": 0.1}
PGD = {"type": "pgd", "steps": 3, "maximize": "cross_entropy", "step": {"type": "steepest", "size": 0.03}}


@pytest.fixture(scope="module")
def problem():
    """(images [24,3,3,1], two sets of weights [9,4], the labels that each gives them)."""
    x = jax.random.uniform(jax.random.key(0), (24, 3, 3, 1))
    weights = [jax.random.normal(jax.random.key(seed), (9, 4)) for seed in (1, 2)]
    return x, weights, [jnp.argmax(x.reshape(24, 9) @ w, axis=1) for w in weights]


@dataclasses.dataclass
class Layer:
    """A model as people write them: weights that training replaces; equal by value, so that it has no hash."""

    w: jax.Array
    factor: float = 1.0

    def __call__(self, images):
        return self.factor * images.reshape(len(images), -1) @ self.w

    def logits(self, images):
        return self(images)


def compilations(caplog, work):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        caplog.clear()
        result = work()
        return result, [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]


FORMS = {
    "module object": lambda layer: layer,
    "bound method": lambda layer: layer.logits,
    "closure": lambda layer: lambda images: layer(images),
    "partial": lambda layer: functools.partial(lambda w, images: images.reshape(len(images), -1) @ w, layer.w),
    "jit": lambda layer: jax.jit(lambda images, w=layer.w: images.reshape(len(images), -1) @ w),
    "jit in a function": lambda layer: (lambda inner: lambda images: inner(images) + 1)(FORMS["jit"](layer)),
    "arrays of NumPy": lambda layer: (lambda w: lambda images: images.reshape(len(images), -1) @ w)(
        np.asarray(layer.w)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_changed_weights_are_seen_and_compile_nothing(form, problem, caplog):
    x, weights, labels = problem
    layer = Layer(weights[0])
    fn = FORMS[form](layer)
    # Labels of the second weights: what still had the first would find most of these misclassified.
    before = llrflow.attack(fn, x, labels[1], THREAT, PGD, KEY)
    layer.w = weights[1]
    fn = fn if form in ("module object", "bound method", "closure") else FORMS[form](layer)
    after, compiled = compilations(caplog, lambda: llrflow.attack(fn, x, labels[1], THREAT, PGD, KEY))
    assert compiled == []
    right = jnp.argmax(fn(after.x_adv), axis=1) == labels[1]
    np.testing.assert_array_equal(after.success, ~right)
    assert before.success.mean() > 0.6 and after.success.mean() < before.success.mean() - 0.2


def test_variables_are_arguments_of_the_program(problem, caplog):
    """A pytree in front of the images, numbers of Python in it included."""
    x, weights, labels = problem

    def fn(params, images):
        return params["scale"] * (images.reshape(len(images), -1) @ params["layers"][0])

    def attacked(w, scale):
        return llrflow.attack(fn, x, labels[1], THREAT, PGD, KEY, variables={"layers": [w], "scale": scale})

    before = attacked(weights[0], 1.0)
    after, compiled = compilations(caplog, lambda: attacked(weights[1], 1.0))
    assert compiled == [] and before.success.mean() > after.success.mean() + 0.2
    upside_down, compiled = compilations(caplog, lambda: attacked(weights[1], -1.0))
    assert compiled == [] and upside_down.success.mean() > 0.9
    closed = llrflow.attack(
        lambda images: fn({"layers": [weights[1]], "scale": 1}, images), x, labels[1], THREAT, PGD, KEY
    )
    np.testing.assert_allclose(after.x_adv, closed.x_adv, atol=1e-6)


def test_variables_of_a_stochastic_function(problem):
    x, weights, labels = problem

    def fn(w, images, key):
        return (images + 0.3 * jax.random.normal(key, images.shape)).reshape(len(images), -1) @ w

    kept, lost = (llrflow.attack(fn, x, labels[0], THREAT, "noise", KEY, variables=w) for w in weights)
    assert lost.success.mean() > kept.success.mean() + 0.2


def test_what_is_no_array_is_seen_too(problem):
    """A number of Python is part of the program, which is compiled anew when it changes."""
    x, weights, labels = problem
    layer = Layer(weights[0])
    shares = []
    for layer.factor in (1.0, -1.0, 1.0):
        shares.append(float(llrflow.attack(layer, x, labels[0], THREAT, "noise", KEY).success.mean()))
    assert shares[0] == shares[2] < 0.5 < shares[1]


def test_a_jitted_function_is_what_it_answers(problem):
    """JAX traces it once: what it closed over then, it answers with ever after; another one has its own."""
    x, weights, labels = problem
    layer = Layer(weights[0])
    fn = jax.jit(lambda images: layer(images))
    for function in (fn, jax.jit(lambda images, w=weights[1]: images.reshape(len(images), -1) @ w)):
        result = llrflow.attack(function, x, labels[0], THREAT, "noise", KEY)
        np.testing.assert_array_equal(result.success, jnp.argmax(function(result.x_adv), axis=1) != labels[0])
    layer.w = weights[1]
    result = llrflow.attack(fn, x, labels[0], THREAT, "noise", KEY)
    np.testing.assert_array_equal(result.success, jnp.argmax(fn(result.x_adv), axis=1) != labels[0])


def test_functions_that_differ_in_a_derivative_rule_alone_are_two(problem):
    """The values are the same, and so are the programs to look at; only one of the gradients leads uphill."""
    x, weights, labels = problem

    def through(sign):
        rule = jax.custom_jvp(lambda images: images * 1.0)
        rule.defjvp(lambda primals, tangents: (primals[0], sign * tangents[0]))
        return lambda images: rule(images).reshape(len(images), -1) @ weights[0]

    up, down = (llrflow.attack(through(s), x, labels[0], THREAT, "fgsm", KEY) for s in (1.0, -1.0))
    assert up.loss.mean() > down.loss.mean() + 0.1


@pytest.mark.parametrize("config", ["fgsm", PGD, "apgd_ce", "fab_t", "deepfool"], ids=str)
def test_a_straight_through_estimator_leads_an_attack_past_quantisation(config, problem):
    """Backward-pass differentiable approximation (Athalye et al. 2018): rounding has no gradient, the rule has one."""
    x, weights, _ = problem
    straight = jax.custom_vjp(lambda images: jnp.round(images * 20) / 20)
    straight.defvjp(lambda images: (jnp.round(images * 20) / 20, None), lambda _, cotangent: (cotangent,))

    def logits(quantise):
        return lambda images: quantise(images).reshape(len(images), -1) @ weights[0]

    y = jnp.argmax(logits(straight)(x), axis=1)
    masked, found = (
        llrflow.attack(logits(quantise), x, y, THREAT, config, KEY)
        for quantise in (lambda images: jnp.round(images * 20) / 20, straight)
    )
    assert found.success.mean() > masked.success.mean() + 0.2, (found.success.mean(), masked.success.mean())


def test_a_class_of_minus_infinity_is_never_predicted_and_no_error(problem):
    x, weights, _ = problem

    def masked(images):
        logits = images.reshape(len(images), -1) @ weights[0]
        return jnp.where(jnp.arange(4) == 3, -jnp.inf, logits)

    y = jnp.argmax(masked(x), axis=1)
    for config in (PGD, "apgd_ce", "fab_t"):
        result = llrflow.attack(masked, x, y, {"norm": "linf", "epsilon": 0.01}, config, KEY)
        without = llrflow.attack(
            lambda images: masked(images)[:, :3], x, y, {"norm": "linf", "epsilon": 0.01}, config, KEY
        )
        np.testing.assert_array_equal(result.success, without.success)
        np.testing.assert_allclose(result.loss, without.loss, atol=1e-5)
        inside = jnp.abs(result.x_adv - x).max((1, 2, 3)) < 0.0101
        np.testing.assert_array_equal(result.success, (jnp.argmax(masked(result.x_adv), axis=1) != y) & inside)
        assert result.success.mean() < 0.5


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_attacked_in_float32(dtype, problem):
    x, weights, labels = problem
    fn = lambda images: images.reshape(len(images), -1) @ weights[0]  # noqa: E731
    half = llrflow.attack(fn, x.astype(dtype), labels[0], THREAT, PGD, KEY)
    full = llrflow.attack(fn, x.astype(dtype).astype(jnp.float32), labels[0], THREAT, PGD, KEY)
    assert half.x_adv.dtype == jnp.float32
    np.testing.assert_array_equal(half.x_adv, full.x_adv)
    low = llrflow.attack(lambda images: fn(images).astype(dtype), x, labels[0], THREAT, PGD, KEY)
    assert abs(float(low.success.mean() - full.success.mean())) < 0.2


@pytest.mark.parametrize("config", ["deepfool", "fab_t", "square", "apgd_ce", PGD], ids=str)
def test_double_precision_may_be_enabled(config, problem):
    x, weights, labels = problem
    fn = lambda images: images.reshape(len(images), -1) @ weights[0]  # noqa: E731
    config = {"type": "square", "queries": 20} if config == "square" else config
    single = llrflow.attack(fn, x, labels[0], THREAT, config, KEY)
    with jax.enable_x64(True):
        double = llrflow.attack(fn, x, labels[0], THREAT, config, KEY)
    assert double.x_adv.dtype == jnp.float32
    assert abs(int(single.success.sum()) - int(double.success.sum())) <= 2


def batch_normalised(images):
    """BatchNorm left in training mode."""
    flat = images.reshape(len(images), -1)
    return ((flat - flat.mean(0)) / (flat.std(0) + 1e-3))[:, :4]


def leaving(images):
    return jnp.asarray(np.asarray(images).reshape(len(images), -1)[:, :4])


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (batch_normalised, "other logits among other images.*moving statistics"),
        (leaving, "leaves JAX.*jax.numpy"),
        (lambda images: images.reshape(len(images), -1)[:, :4] if images.sum() > 0 else images, "leaves JAX"),
        (lambda images: (images.reshape(len(images), -1)[:, :4], {}), "returns a tuple; return the logits alone"),
        (lambda images: {"logits": images.reshape(len(images), -1)}, "returns a dict; return the logits alone"),
        (lambda images: jnp.argmax(images.reshape(len(images), -1), axis=1), r"returns \(24,\)"),
        (lambda images: images.reshape(len(images), -1)[:, :4].astype(int), "returns int32.*float logits"),
        (lambda images: {}["logits"], "fails on images .*KeyError: 'logits'; fix the function"),
        (lambda images: images @ images[:3, 0], "fails on images .*; pass images as it takes them"),
        ("model", "is str; pass a function"),
    ],
    ids=["batch-mates", "numpy", "branch", "tuple", "dict", "classes", "integers", "fault", "shape", "no function"],
)
def test_a_function_that_cannot_be_judged_is_refused(fn, message, problem):
    x, _, labels = problem
    with pytest.raises(SpecError, match=message) as error:
        llrflow.attack(fn, x, labels[0], THREAT, "noise", KEY)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("fn", "variables", "message"),
    [
        (lambda w, images, key: images, None, r"takes \(w, images, key\).*variables="),
        (lambda images: images, {}, r"takes \(images\); pass a function of \(variables, images\)"),
        (lambda w, images: images, {"act": "relu"}, r"variables: hold a str at \['act'\]; pass a pytree of arrays"),
    ],
    ids=["forgotten", "unwanted", "no array"],
)
def test_variables_that_do_not_fit(fn, variables, message, problem):
    x, _, labels = problem
    with pytest.raises(SpecError, match=message):
        llrflow.attack(fn, x, labels[0], THREAT, "noise", KEY, variables=variables)


def test_arrays_of_a_fixed_batch_are_refused_where_other_batches_come(problem):
    x = problem[0]
    network, arrays, _ = foreign(
        "logits_fn", lambda images: images.reshape(len(images), 9) - np.ones((len(images), 9)), x, 24
    )
    assert network.predict(arrays, x).shape == (24, 9)
    with pytest.raises(SpecError, match="depends on the number of images"):
        network.predict(arrays, x[:8])


@pytest.mark.parametrize("key", [0, None, "seed"])
def test_a_key_that_is_none_is_refused(key, problem):
    x, weights, labels = problem
    with pytest.raises(SpecError, match=r"pass jax.random.key\(0\)"):
        llrflow.attack(lambda images: images.reshape(len(images), -1) @ weights[0], x, labels[0], THREAT, "noise", key)


def test_probabilities_in_place_of_logits_are_told(problem):
    x, weights, labels = problem
    with pytest.warns(UserWarning, match="returns probabilities"):
        llrflow.attack(
            lambda images: jax.nn.softmax(images.reshape(len(images), -1) @ weights[0]), x, labels[0], THREAT, PGD, KEY
        )


@pytest.mark.parametrize("term", ["local_linearity", "gradient_inner_product", "kl_divergence", "logit_pairing"])
def test_a_search_does_not_start_where_its_term_is_flat(term, problem):
    x, weights, labels = problem
    fn = lambda images: images.reshape(len(images), -1) @ weights[0]  # noqa: E731
    for config in ({"type": "fgsm", "maximize": term}, {"type": "pgd", "maximize": term, "start": "zero"}):
        with pytest.raises(SpecError, match=f"start.*{term} is flat.*start: uniform"):
            llrflow.attack(fn, x, labels[0], THREAT, config, KEY)
