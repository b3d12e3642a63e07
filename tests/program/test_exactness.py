"""LLR with BatchNorm is exactly itself: the gradient of double backpropagation, one g in search and objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.components.registry import make
from llrflow.method import objective as objectives
from llrflow.method.labels import cross_entropy
from llrflow.method.objective import Objective
from llrflow.method.threat import Threat
from llrflow.program.devices import Devices
from llrflow.program.step import Pieces, Statistics, network_of, views

DOUBLE = jax.config.jax_enable_x64
KINDS = ("batch", "clean", "moving")
EXACT = KINDS if DOUBLE else ("batch",)  # the others in float64 alone, where a difference is none of rounding
BATCH, CLASSES = 8, 5
LINEARITY, SLOPE, NORM = (make("term", t) for t in ("local_linearity", "gradient_inner_product", "gradient_norm"))


def pieces_of(norm, terms):
    model = make("model", {"type": "resnet", "widths": [4, 6], "norm": norm})
    statistics = Statistics(terms, terms, "auto")
    network = network_of(model, CLASSES)
    return Pieces(network, CLASSES, Objective(), Threat(epsilon=0.1), None, None, {}, statistics, 1, "unroll")


@pytest.fixture(scope="module")
def batch():
    rng, number = np.random.default_rng(0), np.float64 if DOUBLE else np.float32
    x, delta = rng.uniform(size=(BATCH, 6, 6, 2)), rng.uniform(-0.1, 0.1, (BATCH, 6, 6, 2))
    return x.astype(number), rng.integers(0, CLASSES, BATCH), delta.astype(number)


def started(pieces, x):
    """Parameters off their start, and moving statistics after two batches of random images."""
    devices = Devices(1)
    init = devices.pmap(lambda key, x: pieces.network.init(jax.random.wrap_key_data(key), x, True))
    see = devices.pmap(lambda variables, x: pieces.network.apply(*variables, None, x, True)[1])
    params, state = devices.fetch(init(devices.replicate(jax.random.key_data(jax.random.key(0))), x[None]))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)
    for _ in range(2):
        seen = rng.uniform(size=(1, *x.shape)).astype(x.dtype)
        state = devices.fetch(see(devices.replicate((params, state)), seen))
    return params, state


def penalised(linearity, slope, norm, loss):
    """LLR and a norm per example; gamma is weighted by 1 - p_y, as MART weights its divergence."""
    return loss + 4 * (1 - jnp.exp(-loss)) * linearity + 3 * slope + 0.1 * norm


def ours(pieces):
    """(params, state, x, y, delta) -> the device's mean objective, of llrflow's terms and probes."""

    def mean(params, state, x, y, delta):
        loss, terms, _ = views(pieces, params, state, x, y, None)
        parts = LINEARITY(terms, delta), SLOPE(terms, delta), NORM(terms, None), loss.loss()
        return jnp.mean(penalised(*parts))

    return mean


def double_backpropagation(pieces):
    """The same written out: grad l is jax.grad of the losses' sum, differentiated again with respect to parameters."""

    def mean(params, state, x, y, delta):
        kind = pieces.statistics.terms

        def apply(images, batch_statistics, state=state):
            return pieces.network.apply(params, state, None, images, batch_statistics)

        def loss(images):
            return cross_entropy(apply(images, kind != "moving")[0], y)

        def near(images):
            if kind != "clean" or not state:
                return loss(images)
            zero = jax.tree.map(jnp.zeros_like, state)  # Haiku's average of one batch is that batch's statistic
            return cross_entropy(apply(images, False, apply(x, True, zero)[1])[0], y)

        gradient = jax.grad(lambda images: loss(images).sum())(x)
        slope = jnp.sum(delta * gradient, axis=(1, 2, 3))
        linearity = jnp.abs(near(x + delta) - loss(x) - slope)
        norm = jnp.linalg.norm(gradient.reshape(len(x), -1), axis=1)
        nominal = cross_entropy(apply(x, True)[0], y)
        return jnp.mean(penalised(linearity, jnp.abs(slope), norm, nominal))

    return mean


def over(count, function, params, state, batch):
    """What a per-device function gives for the whole batch on so many devices, as the mean over them."""
    devices = Devices(count)
    mapped = devices.pmap(lambda params, state, *parts: jax.lax.pmean(function(params, state, *parts), "devices"))
    return devices.fetch(mapped(devices.replicate(params), devices.replicate(state), *devices.shard(batch)))


def relative(a, b):
    """||a - b|| / ||b|| over all leaves."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return np.sqrt(sum(np.sum((x - y) ** 2) for x, y in pairs) / sum(np.sum(y**2) for _, y in pairs))


@pytest.mark.parametrize(
    ("norm", "kind"), [*(("batch", kind) for kind in EXACT), *((norm, "batch") for norm in ("group", "none") if DOUBLE)]
)
def test_the_parameter_gradient_is_that_of_double_backpropagation(norm, kind, batch):
    pieces = pieces_of(norm, kind)
    variables = started(pieces, batch[0])
    expected = over(1, jax.grad(double_backpropagation(pieces)), *variables, batch)
    for devices in (2,) if DOUBLE else (1, 2):
        found = over(devices, jax.grad(ours(pieces)), *variables, batch)
        assert relative(found, expected) <= (1e-10 if DOUBLE else 1e-4), f"on {devices} devices"
    if norm == "none":
        loss = lambda params, *rest: jnp.mean(views(pieces, params, *rest[:3], None)[0].loss())  # noqa: E731
        nominal = over(1, jax.grad(loss), *variables, batch)
        assert relative(nominal, expected) > 0.1  # the penalty is most of it


@pytest.mark.parametrize("kind", EXACT)
def test_g_vanishes_at_the_clean_image(kind, batch):
    pieces = pieces_of("batch", kind)

    def value(params, state, x, y, delta):
        _, terms, _ = views(pieces, params, state, x, y, None)
        return jnp.max(LINEARITY(terms, 0 * delta)), jnp.mean(LINEARITY(terms, delta))

    zero, elsewhere = over(1, value, *started(pieces, batch[0]), batch)
    assert zero <= (1e-12 if DOUBLE else 2e-6) and elsewhere > 1e-3


@pytest.mark.parametrize("kind", EXACT)
def test_every_policy_compares_both_sides_of_a_divergence_alike(kind, batch):
    """A term of two passes is zero where they are one: it was not, with moving statistics at perturbed images alone."""
    pieces = pieces_of("batch", kind)

    def value(params, state, x, y, delta):
        _, terms, _ = views(pieces, params, state, x, y, None)
        return [jnp.max(make("term", name)(terms, 0 * delta)) for name in ("kl_divergence", "logit_pairing")]

    for found in over(1, value, *started(pieces, batch[0]), batch):
        assert abs(found) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_maximises_what_the_objective_penalises_in_float32(kind, load, train, batch_of):
    """g at the search's own result, in search and in objective, after training: one number per example."""
    spec = {"model": {"type": "resnet", "widths": [4], "norm": "batch"}, "train.batch_norm": {"terms": kind}}
    program = llrflow.compile(load({**spec, "devices.count": 2, "optimizer.learning_rate": 0.003}))
    states, _ = train(program, 12)
    batch = batch_of(program, 12)
    pieces = pieces_of("batch", kind)._replace(network=network_of(program.spec.model, 10))
    search = program.spec.objective.perturbations["llr"]

    def both(params, state, x, y):
        _, terms, searches = views(pieces, params, state, x, y, None)
        keys = jax.random.split(jax.random.key(0), len(x))
        delta = objectives.perturb(program.spec.objective, searches, Threat(epsilon=0.15), lambda name: keys, "unroll")
        probe = searches.searching(searches.constants({"loss", "logits", "gradient", "state"}), Threat(epsilon=0.15))
        return jax.lax.all_gather([search.maximize(p, delta["llr"]) for p in (probe, terms)], "devices")

    devices, last = Devices(2), states[-1]
    x = (batch.images / 255).astype(np.float32)
    parts = devices.shard((x, batch.labels))
    found = devices.fetch(devices.pmap(both)(*devices.replicate((last.params, last.model_state)), *parts))
    searched, penalised = (part.ravel() for part in found)
    assert len(searched) == 64 and np.mean(penalised) > 1e-3
    np.testing.assert_allclose(searched, penalised, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(np.mean(searched), np.mean(penalised), rtol=1e-5)


def test_moving_statistics_after_relative_passes_are_haikus_in_float32(load, train):
    """Passes that begin with fresh statistics leave the moving ones where passes on the moving ones do."""
    model = {"type": "resnet", "widths": [4], "norm": "batch"}
    sgd = {"type": "sgd", "learning_rate": 0.0}  # so that both see the same network
    after = []
    for kind in ("batch", "clean"):
        program = llrflow.compile(load({"model": model, "train.batch_norm": {"terms": kind}, "optimizer": sgd}))
        after.append(train(program, 3)[0][-1].model_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *after)


def test_statistics_that_saw_no_batch_are_those_of_a_standard_normal_in_float32(load):
    model = {"type": "resnet", "widths": [4], "norm": "batch"}
    program = llrflow.compile(load({"model": model, "train.batch_norm": {"terms": "moving"}}))
    state = program.devices.fetch(program.init()).model_state
    averages = {name: held["average"] for name, held in state.items()}
    assert {float(v) for name, held in averages.items() if name.endswith("var_ema") for v in held.ravel()} == {1.0}
    assert {float(v) for name, held in averages.items() if name.endswith("mean_ema") for v in held.ravel()} == {0.0}


def test_unlike_passes_are_refused_with_what_to_write(load):
    with pytest.raises(llrflow.SpecError, match=r"train\.batch_norm\.perturbed.* unlike statistics.*`terms: moving`"):
        load({"train.batch_norm": {"perturbed": "moving"}})
