"""`llrflow.examine`: signs of masking on functions that mask and none on honest ones, and the certificate of a run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.data.resident import load_split
from llrflow.runs.examine import FunctionRecord
from llrflow.runs.folder import RunFolder
from llrflow.runs.sealed import read_record

N, K, SIDE = 96, 8, 6
KEY = jax.random.key(5)
THREAT = {"norm": "linf", "epsilon": 0.03}


@functools.cache
def problem():
    """Noisy copies [N,6,6,1] of K patterns, and which pattern each is of."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0.1, 0.9, (K, SIDE, SIDE, 1))
    labels = np.arange(N) % K
    return np.clip(patterns[labels] + 0.12 * rng.normal(size=(N, SIDE, SIDE, 1)), 0, 1).astype(np.float32), labels


def read_out(features, ridge=0.3):
    """Logits of a network with these features, its last layer fitted to the labels by least squares."""
    x, y = problem()
    found = np.asarray(features(jnp.asarray(x)), np.float64)
    goal = 10 * np.eye(K)[y]
    last = jnp.asarray(np.linalg.solve(found.T @ found + ridge * np.eye(found.shape[1]), found.T @ goal), jnp.float32)
    return lambda images: features(images) @ last


def layers(*widths, seed=0):
    """Random weights of a network on the images, by layer."""
    sizes = (SIDE * SIDE, *widths)
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return [jax.random.normal(k, (i, o)) / np.sqrt(i / 2) for k, i, o in zip(keys, sizes, widths, strict=False)]


def through(weights, activation):
    def features(images):
        hidden = 3 * (images.reshape(len(images), -1) - 0.5)
        for w in weights:
            hidden = activation(hidden @ w)
        return hidden

    return features


def k_winners(hidden):
    """k-winners-take-all (Xiao et al. 2020): the tenth that is largest stays, the rest is 0."""
    least = jnp.sort(hidden, axis=-1)[:, -(hidden.shape[-1] // 10)]
    return jnp.where(hidden >= least[:, None], hidden, 0.0)


def half_stopped(hidden):
    """The rectifier, of which half of the units pass no gradient."""
    hidden, half = jax.nn.relu(hidden), hidden.shape[-1] // 2
    return jnp.concatenate([jax.lax.stop_gradient(hidden[:, :half]), hidden[:, half:]], axis=-1)


def normalised(images):
    """BatchNorm in prediction: moving statistics."""
    x = problem()[0].reshape(N, -1)
    flat = (images.reshape(len(images), -1) - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    return jax.nn.relu(0.3 * flat @ layers(64)[0])


@functools.cache
def honest():
    """A network as people train them, with confident logits."""
    return read_out(through(layers(64, 64), jax.nn.relu))


def before(change):
    """(of images) -> logits of the honest network behind a change of its input."""
    network = honest()
    return lambda images: network(change(images))


def noisy():
    network = honest()
    return lambda images, key: network(images + 0.1 * jax.random.normal(key, images.shape))


def scaled(factor):
    network = honest()
    return lambda images: factor * network(images)


MASKED = {
    "k-WTA": (lambda: read_out(through(layers(400), k_winners)), {"gradient_wrong"}),
    "half of the gradient stopped": (lambda: read_out(through(layers(64, 64), half_stopped)), {"gradient_wrong"}),
    "quantised": (
        lambda: before(lambda images: jnp.round(8 * images) / 8),
        {"gradients_vanish", "loss_flat", "gradient_wrong", "survives_huge_epsilon"},
    ),
    "noise": (noisy, {"stochastic"}),
    "logits x 100": (lambda: scaled(100), {"gradients_vanish"}),
}

HONEST = {
    "linear": lambda: read_out(lambda images: images.reshape(len(images), -1) - 0.5),
    "tanh": lambda: read_out(through(layers(64, 64), jnp.tanh)),
    "maxout": lambda: read_out(through([layers(64)[0]], lambda h: h.reshape(len(h), -1, 2).max(-1))),
    "deep and narrow": lambda: read_out(through(layers(*[24] * 8), jax.nn.softplus), 1e-4),
    "batch norm": lambda: read_out(normalised),
    "logits / 100": lambda: scaled(0.01),
}


def examined(fn, **how):
    return llrflow.examine(fn, *problem(), THREAT, KEY, **{"attacks": {"fgsm": {"type": "fgsm"}}, "checks": 64, **how})


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_function_is_flagged(name):
    make, expected = MASKED[name]
    found = examined(make())
    assert found.nominal.accuracy > 0.7
    assert expected <= {flag.name for flag in found.fired}, found
    text = str(found)
    assert f"MASKED? {sorted(expected)[0]}" in text and f"<= {found.worst_case.accuracy:.2%}" in text


@pytest.mark.parametrize("name", HONEST)
def test_an_odd_function_that_is_honest_is_not(name):
    found = examined(HONEST[name]())
    assert found.nominal.accuracy > 0.9 and len(found.flags) == 10
    assert found.fired == [], found
    assert f"signs of gradient masking: none on {found.record.checked} images" in str(found)


def test_the_network_of_a_run_gets_the_verdicts_of_the_run(finished, tmp_path):
    model = llrflow.load_model(finished)
    block, split = model.spec.evaluate, load_split(model.spec.data, "test")
    x, y = split.images.astype(np.float32) / 255, split.labels
    attacks = {"attacks": block.model_dump()["attacks"], "cascade": False}
    key, how = jax.random.key(model.spec.seed), {"checks": 0, "batch_size": 120}
    found = llrflow.examine(model.logits, x, y, model.threat, key, attacks, name="tiny", **how).record
    run = RunFolder(finished).evaluations()[12]
    assert (found.nominal, found.worst_case, found.classes) == (run.nominal, run.worst_case, run.classes)
    assert (found.threat, found.epsilon, found.cascade, found.flags) == (run.threat, run.epsilon, run.cascade, {})
    for name, attack in run.attacks.items():
        assert found.attacks[name].model_copy(update={"seconds": attack.seconds}) == attack
    assert {n: g.mean for n, g in found.gamma.items()} == pytest.approx({n: g.mean for n, g in run.gamma.items()}, 1e-3)
    found.write(tmp_path / "tiny.json")
    written = json.loads((tmp_path / "tiny.json").read_text())
    assert read_record(FunctionRecord, tmp_path / "tiny.json", "") == found
    assert not written.keys() & {"spec_hash", "checkpoint", "network_sha256", "parameters", "identity"}


def test_of_a_stochastic_function_each_attack_is_one_draw():
    """Right in 70 % of its draws, whatever the image: 0.7 of the images without an attack, 0.7^2 after one, 0.7^3."""
    n = 4000

    def fn(images, key):
        right = jax.random.bernoulli(key, 0.7, (len(images),))
        return jnp.where(right[:, None], jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))

    x, y = np.full((n, 1, 1, 1), 0.5, np.float32), np.zeros(n, int)
    attacks = {"a": {"type": "noise"}, "b": {"type": "fgsm"}}
    found = llrflow.examine(fn, x, y, THREAT, KEY, attacks, checks=0, batch_size=n, class_names=["left", "right"])
    shares = [found.nominal.accuracy, *(attack.accuracy for attack in found.attacks.values())]
    assert shares == pytest.approx([0.7, 0.49, 0.343], abs=0.03) and found.worst_case.accuracy == shares[-1]
    assert found.record.stochastic and found.record.classes.taken["worst case"][0].keys() == {0, 1}
    assert "left" in str(found)


def test_other_variables_are_seen_and_compile_nothing(caplog):
    x, y = problem()
    weights = [layers(64, K, seed=seed) for seed in (0, 1)]

    def fn(params, images):
        return through(params[:1], jnp.tanh)(images) @ params[1]

    def verdict(params):
        return llrflow.examine(fn, x, y, THREAT, KEY, {"fgsm": {"type": "fgsm"}}, checks=8, variables=params).record

    first = verdict(weights[0])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        caplog.clear()
        second = verdict(weights[1])
    assert [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()] == []
    for params, found in zip(weights, (first, second), strict=True):
        assert found.nominal.correct == int((np.argmax(fn(params, x), axis=1) == y).sum())
    assert first.arrays_sha256 != second.arrays_sha256 and first.images_sha256 == second.images_sha256
    assert first.nominal != second.nominal


def test_a_class_of_minus_infinity_is_as_if_it_were_not_there():
    network, (x, y) = honest(), problem()
    rest = y < K - 1
    how = {"attacks": {"pgd": {"type": "pgd", "steps": 5}}, "checks": 24}
    masked = llrflow.examine(
        lambda images: jnp.where(jnp.arange(K) == K - 1, -jnp.inf, network(images)),
        x[rest],
        y[rest],
        THREAT,
        KEY,
        **how,
    )
    without = llrflow.examine(lambda images: network(images)[:, : K - 1], x[rest], y[rest], THREAT, KEY, **how)
    assert masked.worst_case == without.worst_case and masked.nominal == without.nominal
    assert masked.fired == without.fired == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": "standrd"}, "'standrd' is no preset"),
        ({"attacks": {"pgd": {"type": "pgd", "stepz": 3}}}, "attacks.pgd.stepz.*did you mean 'step'"),
        ({"attacks": {"t": {"type": "transfer", "run": "runs/a"}}}, "attacks.t: searches on the model of another run"),
        ({"attacks": {"attacks": {}, "surface": {}}}, "sets 'surface', which a function has not"),
        (
            {"attacks": {"df": {"type": "deepfool"}}, "threat": {"norm": "l1", "epsilon": 1}},
            r"attacks\.df: attack deepfool knows no l1 threat; choose an attack for l1",
        ),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"checks": -1}, "checks.examples = -1"),
        ({"class_names": ["a"]}, "class_names: are 1, the function has 8 classes"),
        ({"threat": {"norm": "linf", "epsilon": np.full(N, 0.1)}}, "epsilon for each image"),
        ({"threat": {"norm": "l3", "epsilon": 0.1}}, "threat: norm"),
        ({"key": 0}, r"pass jax.random.key\(0\)"),
        ({"x": problem()[0] * 255}, r"pixels in \[0, 255\]"),
        ({"y": np.full(N, K)}, "a label is one of 0 to 7"),
        ({"logits_fn": "model"}, "is str; pass a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_examined_is_one_line(changes, message):
    x, y = problem()
    given = {"logits_fn": lambda images: images.reshape(len(images), -1)[:, :K], "x": x, "y": y, "key": KEY}
    with pytest.raises(SpecError, match=message) as error:
        llrflow.examine(**{**given, "threat": THREAT, **changes})
    assert "\n" not in str(error.value)
