"""llrflow.attack on plain JAX functions: what it promises of its result, and how it refuses wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llrflow
from llrflow.base.errors import SpecError, ThreatError
from llrflow.method.ascent import misclassified, predicted_class
from llrflow.method.threat import Threat

KEY = jax.random.key(5)
LINF, L2 = {"norm": "linf", "epsilon": "8/255"}, {"norm": "l2", "epsilon": 0.3}


def cross_entropy(net, images):
    return -jnp.take_along_axis(jax.nn.log_softmax(net.logits(images)), net.y[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("config", ["fgsm", "noise", {"type": "pgd", "steps": 3, "restarts": 2}], ids=str)
def test_result_is_what_it_says(threat, config, net):
    result = llrflow.attack(net.logits, net.x, net.y, threat, config, KEY)
    ball = Threat.model_validate(threat)
    ball.check(result.x_adv - net.x, net.x)
    assert result.x_adv.shape == net.x.shape and float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    np.testing.assert_array_equal(result.success, jnp.argmax(net.logits(result.x_adv), axis=-1) != net.y)
    np.testing.assert_allclose(result.loss, cross_entropy(net, result.x_adv), rtol=1e-5)
    np.testing.assert_allclose(result.distance, ball.distance(result.x_adv - net.x), rtol=1e-4)
    assert float(result.distance.min()) > 0


@pytest.mark.parametrize("config", ["fgsm", "noise", {"type": "pgd", "steps": 2}], ids=str)
def test_images_at_the_edge_of_the_box_stay_inside(config, net):
    edge = jnp.round(net.x)
    result = llrflow.attack(net.logits, edge, net.y, LINF, config, KEY)
    assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    assert float(jnp.abs(result.x_adv - edge).max()) > 0


def noisy_batch(net, copies):
    """Copies of the batch with noise, and the network's own labels: a batch that starts fully correct."""
    x = jnp.tile(net.x, (copies, 1, 1, 1))
    x = jnp.clip(x + 0.2 * jax.random.normal(jax.random.key(0), x.shape), 0, 1)
    return x, jnp.argmax(net.logits(x), axis=-1)


@pytest.mark.parametrize("maximize", ["margin", "cross_entropy"])
def test_more_steps_or_restarts_never_raise_robust_accuracy(maximize, net):
    x, y = noisy_batch(net, 16)

    def robust(steps, restarts):
        # A fixed step size makes the longer search run through the iterates of the shorter one.
        config = {"type": "pgd", "maximize": maximize, "steps": steps, "restarts": restarts,
                  "step": {"type": "steepest", "size": 0.004}}  # fmt: skip
        return ~np.asarray(llrflow.attack(net.logits, x, y, {"epsilon": 0.012}, config, KEY).success)

    few, more, most = robust(1, 1), robust(3, 1), robust(3, 3)
    assert np.all(more <= few) and np.all(most <= more)
    assert few.mean() > most.mean() > 0


def test_every_example_counts_once_it_was_wrong_anywhere(net):
    """`pgd` prefers a misclassified iterate to a correct one of larger loss."""
    x, y = noisy_batch(net, 16)
    config = {"type": "pgd", "maximize": "cross_entropy", "steps": 3, "step": {"type": "steepest", "size": 0.05}}
    best = llrflow.attack(net.logits, x, y, {"epsilon": 0.03}, config, KEY).success
    last = llrflow.attack(net.logits, x, y, {"epsilon": 0.03}, config | {"keep": "last"}, KEY).success
    assert np.all(np.asarray(best) >= np.asarray(last))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_fgsm_is_one_analytic_step(threat, net):
    gradient = jax.grad(lambda images: jnp.sum(cross_entropy(net, images)))(net.x)
    length = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    step = 8 / 255 * jnp.sign(gradient) if threat is LINF else 0.3 * gradient / length
    result = llrflow.attack(net.logits, net.x, net.y, threat, "fgsm", KEY)
    np.testing.assert_allclose(result.x_adv, jnp.clip(net.x + step, 0, 1), atol=1e-6)


def test_fgsm_steps_by_epsilon_from_any_start(net):
    """From a random start the step is still epsilon long, not long enough to reach the far side of the ball."""
    config = {"type": "fgsm", "start": {"type": "uniform", "radius": 1.0}}
    result = llrflow.attack(net.logits, net.x, net.y, LINF, config, KEY)
    moved = np.abs(np.asarray(result.x_adv - net.x))
    assert np.mean(moved < 8 / 255 * 0.99) > 0.3


def test_published_fault_rounded_adversarials(net):
    result = llrflow.attack(net.logits, net.x, net.y, {"epsilon": 0.0101}, "fgsm", KEY)
    np.testing.assert_allclose(jnp.abs(result.x_adv - net.x), 0.0101, rtol=1e-4)


def test_an_attack_does_not_depend_on_what_else_is_in_the_batch(net):
    whole = llrflow.attack(net.logits, net.x, net.y, LINF, {"type": "pgd", "steps": 2}, KEY)
    part = llrflow.attack(net.logits, net.x[:2], net.y[:2], LINF, {"type": "pgd", "steps": 2}, KEY)
    np.testing.assert_allclose(part.x_adv, whole.x_adv[:2], atol=1e-6)


def test_keys_decide_the_outcome(net):
    runs = [llrflow.attack(net.logits, net.x, net.y, LINF, "noise", jax.random.key(seed)).x_adv for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.all(np.any(np.asarray(runs[0] != runs[2]), axis=(1, 2, 3)))


@pytest.mark.parametrize(
    "key", [lambda: jax.random.PRNGKey(5), lambda: jax.random.key(5, impl="rbg")], ids=["raw", "rbg"]
)
def test_any_jax_key_will_do(key, net):
    assert llrflow.attack(net.logits, net.x, net.y, LINF, "noise", key()).x_adv.shape == net.x.shape


def test_output_outside_the_threat_model_is_an_error(net, monkeypatch):
    monkeypatch.setattr(Threat, "project", lambda self, delta, x: 2 * delta)
    with pytest.raises(ThreatError):
        llrflow.attack(net.logits, net.x, net.y, LINF, {"type": "pgd", "steps": 1}, KEY)


SCHEDULE = {"type": "linear_schedule", "init_value": 0.1, "end_value": 0.2, "transition_steps": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x * 255}, r"pass images in \[0, 1\]"),
        ({"x": lambda x: x - 0.5}, r"pass images in \[0, 1\]"),
        ({"x": lambda x: x.at[0, 0, 0, 0].set(jnp.nan)}, r"pass images in \[0, 1\]"),
        ({"x": lambda x: x[0]}, r"pass x \[B,H,W,C\]"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "at least one|empty"),
        ({"x": lambda x: jnp.round(x).astype(int)}, "float"),
        ({"y": lambda y: y[:2]}, r"pass x \[B,H,W,C\] and y \[B\]"),
        ({"y": lambda y: jax.nn.one_hot(y, 5)}, r"pass x \[B,H,W,C\] and y \[B\]"),
        ({"y": lambda y: y.astype(float)}, "integer"),
        ({"y": lambda y: y.at[0].set(5)}, "label"),
        ({"y": lambda y: y.at[0].set(-1)}, "label"),
        ({"config": lambda _: "pdg"}, "did you mean 'pgd'"),
        ({"config": lambda _: {"type": "pgd", "stepps": 3}}, "did you mean 'steps'"),
        ({"config": lambda _: {"type": "pgd", "steps": 0}}, "steps = 0"),
        ({"config": lambda _: {"type": "pgd", "maximize": "margn"}}, "maximize.type = 'margn'.*did you mean 'margin'"),
        ({"config": lambda _: {"type": "fgsm", "steps": 2}}, "steps = 2"),
        ({"config": lambda _: {"steps": 2}}, "has no `type`"),
        ({"config": lambda _: {"type": "pgd", "step": {"type": "sign", "size": SCHEDULE}}}, "step.size.*schedule"),
        ({"threat": lambda _: {"epsilon": SCHEDULE}}, "epsilon.*schedule"),
        ({"threat": lambda _: {"norm": "l3", "epsilon": 0.1}}, "norm = 'l3'"),
        ({"threat": lambda _: {"norm": "linf"}}, "epsilon is missing"),
        ({"threat": lambda _: {"norm": "linf", "eps": 0.1}}, "did you mean 'epsilon'|choose from epsilon"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(change, message, net):
    given = {"x": net.x, "y": net.y, "threat": LINF, "config": "noise"}
    given = {name: change.get(name, lambda value: value)(value) for name, value in given.items()}
    with pytest.raises(SpecError, match=message):
        llrflow.attack(net.logits, given["x"], given["y"], given["threat"], given["config"], KEY)


def test_an_example_whose_logits_are_not_finite_is_not_robust():
    x, y = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, int)

    def logits_fn(images):
        return jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=1) * jnp.array([[jnp.nan], [1.0]])

    result = llrflow.attack(logits_fn, x, y, {"norm": "linf", "epsilon": 0.1}, "fgsm", jax.random.key(0))
    assert result.success.tolist() == [True, False]


@pytest.mark.parametrize("optimizer", ["adam", "sm3", "lamb", "adamw"])
def test_an_optax_step_sees_each_example_alone(optimizer):
    weights = jax.random.normal(jax.random.key(1), (12, 3))
    x, y = jax.random.uniform(jax.random.key(2), (6, 2, 2, 3)), jnp.arange(6) % 3
    config = {
        "type": "pgd",
        "steps": 3,
        "step": {"type": "optax", "optimizer": {"type": optimizer, "learning_rate": 0.02}},
    }

    def attacked(n):
        def logits_fn(images):
            return images.reshape(len(images), -1) @ weights

        return llrflow.attack(logits_fn, x[:n], y[:n], {"norm": "l2", "epsilon": 0.3}, config, jax.random.key(0))

    np.testing.assert_allclose(attacked(6).x_adv[:2], attacked(2).x_adv, atol=1e-6)


EACH = {
    "linf": np.array([0.002, 0.03, 0.3], np.float32),
    "l2": np.array([0.02, 0.3, 1.5], np.float32),
}
EVERY = [
    ("linf", "noise"),
    ("linf", {"type": "pgd", "steps": 4, "restarts": 2}),
    ("l2", {"type": "pgd", "steps": 4}),
    ("linf", {"type": "apgd_t", "steps": 8, "targets": 2}),
    ("linf", {"type": "auto_attack", "profile": "rand"}),
    ("l2", {"type": "fab_t", "steps": 8, "targets": 2}),
    ("linf", {"type": "square", "queries": 20}),
    ("l2", {"type": "square", "queries": 20}),
    ("linf", {"type": "deepfool", "steps": 4}),
]


@pytest.mark.parametrize(("norm", "config"), EVERY, ids=str)
def test_a_radius_for_each_image_gives_what_it_gives_alone(net, norm, config):
    x, y = noisy_batch(net, 3)
    radii = np.resize(EACH[norm], len(y))
    together = llrflow.attack(net.logits, x, y, {"norm": norm, "epsilon": radii}, config, KEY, batch_size=5)
    for radius in EACH[norm]:
        alone = llrflow.attack(net.logits, x, y, {"norm": norm, "epsilon": float(radius)}, config, KEY, batch_size=5)
        mine = radii == radius
        np.testing.assert_array_equal(together.success[mine], alone.success[mine])
        np.testing.assert_allclose(together.x_adv[mine], alone.x_adv[mine], atol=2e-5)
        np.testing.assert_array_equal(together.queries[mine], alone.queries[mine])
    success = np.asarray(together.success)
    inside = success if isinstance(config, dict) and config["type"] in ("deepfool", "fab_t") else np.ones_like(success)
    assert (np.asarray(together.distance) <= radii * (1 + 1e-5) + 1e-7)[inside].all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1e-4, 0.9), min_size=6, max_size=6))
def test_every_image_stays_within_its_own_radius(net, radii):
    x, y, radii = *(part[:6] for part in noisy_batch(net, 2)), np.array(radii, np.float32)
    result = llrflow.attack(net.logits, x, y, {"norm": "linf", "epsilon": radii}, "fgsm", KEY)
    distance = np.abs(np.asarray(result.x_adv - x)).max(axis=(1, 2, 3))
    assert (distance <= radii * (1 + 1e-5) + 1e-7).all()
    one = [
        llrflow.attack(
            net.logits, x[i : i + 1], y[i : i + 1], {"norm": "linf", "epsilon": radii[i : i + 1]}, "fgsm", KEY
        )
        for i in range(6)
    ]
    np.testing.assert_allclose(result.x_adv, np.concatenate([r.x_adv for r in one]), atol=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "says"),
    [
        ([0.1, 0.2], r"threat: epsilon has the shape \[2\], for \d+ images; give one number, or one for each image"),
        (0, "must be > 0"),
        (np.nan, "is not finite"),
        (8.0, "larger than the pixel range"),
        (["8/255"], "an array that does not hold numbers"),
    ],
)
def test_radii_that_are_none_are_one_line(net, epsilon, says):
    own = epsilon if isinstance(epsilon, list) else np.where(np.arange(len(net.y)) == 1, epsilon, 0.1)
    with pytest.raises(SpecError, match=says):
        llrflow.attack(net.logits, net.x, net.y, {"epsilon": own}, "fgsm", KEY)


def test_verdict_and_predicted_class_are_of_one_meaning():
    """-inf is a class that is never predicted; NaN, +inf, or -inf throughout predict nothing, which is never right."""
    logits = jnp.array([[2.0, 1.0], [2.0, -jnp.inf], [jnp.nan, 1.0], [jnp.inf, 1.0], [-jnp.inf, -jnp.inf], [1.0, 2.0]])
    assert predicted_class(logits).tolist() == [0, 0, -1, -1, -1, 1]
    assert misclassified(logits, jnp.zeros(6, int)).tolist() == [False, False, True, True, True, True]
    assert misclassified(logits, jnp.full(6, -1)).all()  # a corrupt image has no label
