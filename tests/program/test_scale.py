"""Half precision, batches in parts, averaged parameters, and what an optimizer does besides optax's part."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from tree_difference import relative

import llrflow
from llrflow.components.registry import make
from llrflow.method.ascent import Plan
from llrflow.program import compiled as module
from llrflow.program.compile import Program
from llrflow.program.cost import parts
from llrflow.program.step import network_of

CNN = {"type": "cnn", "channels": [4, 8], "dense": 16}
RESNET = {"type": "resnet", "widths": [8], "norm": "batch"}
WIDE = {"type": "wide_resnet", "depth": 10, "width": 1, "activation": "silu"}
ENDS = [
    {"type": "mlp", "widths": [8]},
    CNN,
    {"type": "resnet", "widths": [8], "norm": "group"},
    {"type": "denoise_resnet", "depth": 18, "width": 2, "norm": "group", "stem": "cifar"},
    {"type": "convnext", "depths": [1], "widths": [8]},
    {"type": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2},
    {"type": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "pool": "mean"},
]
SGD = {"type": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def compiled(load, **changes) -> Program:
    return llrflow.compile(load({"model": CNN, "optimizer": SGD, **changes}))


@pytest.mark.parametrize("model", [CNN, RESNET], ids=["without a norm", "batch norm"])
def test_bfloat16_changes_loss_and_linearity_error_little(load, train, batch_of, model):
    # Of a network that has learnt something: what is left of gamma at initialisation is rounding.
    changes = {"model": model, "optimizer": {"type": "adam", "learning_rate": 0.02}, "train.steps": 60}
    whole = compiled(load, **changes, **{"threat.epsilon": 0.3})
    half = compiled(load, **changes, **{"threat.epsilon": 0.3, "train.precision": "bfloat16"})
    state = train(whole, 60)[0][-1]
    made = []  # on three batches: searches that differ by rounding end at perturbations of their own
    for step in (60, 61, 62):
        batch = batch_of(whole, step)
        made += [[p.devices.fetch(p.train_step(p.devices.replicate(state), batch, step)) for p in (whole, half)]]
    (after, _), (kept, _) = made[-1]
    (loss, half_loss), (gamma, half_gamma) = (
        np.mean([[metrics[name] for _, metrics in pair] for pair in made], axis=0) for name in ("loss", "gamma")
    )
    assert half_loss != loss and gamma > 0.02
    np.testing.assert_allclose(half_loss, loss, rtol=0.02)
    np.testing.assert_allclose(half_gamma, gamma, rtol=0.1)
    assert jax.tree.map(lambda leaf: leaf.dtype, kept) == jax.tree.map(lambda leaf: leaf.dtype, after)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("model", [RESNET, WIDE], ids=["resnet", "repeated blocks"])
def test_bfloat16_computes_products_in_half_the_bits_and_norms_in_all(load, model):
    program = compiled(load, model=model)
    state, _, _, _ = program._abstract_step()
    images = jax.ShapeDtypeStruct((4, *program.image_shape), jnp.float32)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (state.params, state.model_state))

    def kinds(precision):
        network = network_of(program.spec.model, 10, precision)
        made = jax.make_jaxpr(lambda params, kept, x: network.apply(params, kept, None, x, False)[0])(*one, images)
        found = {}
        for equation in equations(made.jaxpr):
            found.setdefault(equation.primitive.name, set()).update(v.aval.dtype.name for v in equation.invars)
        assert made.out_avals[0].dtype == jnp.float32
        return found

    half, whole = kinds("bfloat16"), kinds("float32")
    assert half["conv_general_dilated"] == {"bfloat16"} and half["rsqrt"] == {"float32"}
    assert whole["conv_general_dilated"] == {"float32"}  # traced in the other precision before


def products(lowered):
    """In what the products of a lowered program are computed."""
    lines = re.findall(r"stablehlo\.(?:dot_general|convolution).*", lowered.as_text())
    assert len(lines) > 3
    return {tuple(re.findall("HIGHEST|HIGH|DEFAULT", line)) for line in lines}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_products_of_float32_are_what_the_spec_says_and_whole_in_evaluations(load, precision):
    # Unasked, JAX takes TF32 on NVIDIA's GPUs and bfloat16 on TPUs; that it was asked shows on any device.
    program = compiled(load, **{"model": RESNET, "train.precision": precision})
    assert products(program.lowered_step()) == {("HIGH", "HIGH") if precision == "tf32" else ("HIGHEST", "HIGHEST")}
    state, _, _, _ = program._abstract_step()
    variables = jax.tree.map(lambda leaf: leaf.update(shape=leaf.shape[1:]), (state.params, state.model_state))
    images = jax.ShapeDtypeStruct((4, *program.image_shape), jnp.float32)
    attacked = jax.jit(jax.grad(lambda x, variables: program.network.predict(variables, x).sum()))
    assert products(attacked.lower(images, variables)) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("model", ENDS, ids=str)
def test_logits_of_a_bfloat16_network_are_computed_in_float32(model):
    whole, half = (network_of(make("model", model), 10, precision) for precision in ("float32", "bfloat16"))
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    variables = jax.jit(lambda: whole.init(jax.random.key(0), images, True))()

    def logits(params, kept):
        return half.apply(params, kept, None, images, False)[0]

    *others, last = (
        e for e in equations(jax.make_jaxpr(logits)(*variables).jaxpr) if e.primitive.name == "dot_general"
    )
    assert {v.aval.dtype for v in (*last.invars, *last.outvars)} == {jnp.dtype("float32")}
    assert {v.aval.dtype for e in others for v in e.invars} <= {jnp.dtype("bfloat16")}
    pooled = [e for e in equations(jax.make_jaxpr(logits)(*variables).jaxpr) if e.primitive.name == "reduce_sum"]
    assert {v.aval.dtype for e in pooled for v in e.outvars} <= {jnp.dtype("float32")}
    values = jax.jit(logits)(*variables)
    assert np.mean(values == values.astype(jnp.bfloat16)) < 0.1


def test_a_batch_in_parts_has_the_gradient_of_the_whole(load, train):
    whole, once = train(compiled(load), 8)
    cut, fourfold = train(compiled(load, **{"train.accumulate": 4}), 8)
    assert relative(cut[-1].params, whole[-1].params) < 1e-5
    for ours, other in zip(fourfold, once, strict=True):
        for name in other:
            np.testing.assert_allclose(ours[name], other[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_parts_are_written_out_on_cpu_and_scanned_elsewhere(load, monkeypatch):
    def loops(count):
        module.functions_of.cache_clear()
        changes = {"objective.terms": None, "objective.perturbations": None, "train.accumulate": count}
        return compiled(load, **changes).lowered_step().as_text().count("stablehlo.while")

    whole = loops(1)
    assert loops(4) == whole
    monkeypatch.setattr(module, "plan_steps", lambda steps, platform, inside: Plan("scan", steps))
    assert loops(4) == whole + 1
    monkeypatch.undo()
    module.functions_of.cache_clear()


def test_parts_do_not_change_the_count_of_passes(load):
    assert parts(compiled(load, **{"train.accumulate": 4})) == parts(compiled(load))


def test_parts_that_do_not_divide_are_refused(load):
    with pytest.raises(llrflow.SpecError, match=r"train\.accumulate = 5 parts do not divide the 64 .*try 4"):
        compiled(load, **{"train.accumulate": 5})


def test_every_part_updates_the_moving_statistics(load, train):
    states, _ = train(compiled(load, **{"model": RESNET, "train.accumulate": 2}), 1)
    counters = [v for path, v in jax.tree.leaves_with_path(states[-1].model_state) if "counter" in str(path)]
    assert counters and all(int(c) == 2 for c in counters)


def test_an_equal_average_is_the_mean_of_the_last_parameters(load, train):
    states, _ = train(compiled(load, **{"train.ema": {"type": "equal_average", "begin": "50%"}, "train.steps": 8}), 8)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(state.params for state in states[5:]))
    assert relative(states[-1].ema, mean) < 1e-5


@pytest.mark.parametrize("rule,factor", [("linear", 0.5), ("sqrt", 0.5**0.5), ("no", 1.0)])
def test_the_learning_rate_follows_the_batch(load, rule, factor):
    program = compiled(load, **{"optimizer.scale_for_batch": rule, "optimizer.base_batch": 128})
    column = program.inputs.names.index("optimizer.learning_rate")
    np.testing.assert_allclose(program.inputs.at(3)[column], 0.05 * factor, rtol=1e-6)
    assert program._compiled is compiled(load)._compiled


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [("adamw", "weight_decay"), ("lars", "weight_decay"), ("adafactor", "weight_decay_rate"), ("sgd", "weight_decay")],
)
def test_weight_decay_leaves_biases_alone(load, optimizer, rate):
    chosen = {"type": optimizer, "learning_rate": 0.1, rate: 0.5}
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    still = jax.tree.map(jnp.zeros_like, params)

    def update(**more):
        made = llrflow.load_spec(load().model_dump() | {"optimizer": {**chosen, **more}}).optimizer.build()
        return made.update(still, made.init(params), params)[0]

    everything, weights = update(), update(decayed="weights")
    assert (everything["b"] != 0).all() and (weights["b"] == 0).all()
    np.testing.assert_array_equal(weights["w"], everything["w"])
    assert (weights["w"] != 0).all()


def test_nothing_to_decay_is_refused(load):
    with pytest.raises(llrflow.SpecError, match=r"optimizer\.decayed = 'weights', but sgd decays no weights"):
        load({"optimizer": {**SGD, "decayed": "weights"}})
    with pytest.raises(llrflow.SpecError, match=r"optimizer\.decayed = 'weights', but optax's novograd decays all"):
        load({"optimizer": {"type": "novograd", "learning_rate": 0.1, "weight_decay": 0.1, "decayed": "weights"}})


def test_one_step_of_adamw_decays_weights_alone(load, batch_of):
    def after(rate):
        chosen = {"type": "adamw", "learning_rate": 1e-3, "weight_decay": rate, "decayed": "weights"}
        program = compiled(load, model=RESNET, optimizer=chosen)
        state, _ = program.train_step(program.init(), batch_of(program, 0), 0)
        return jax.tree.leaves_with_path(program.devices.fetch(state).params)

    for (path, decayed), (_, plain) in zip(after(100.0), after(0.0), strict=True):
        assert np.array_equal(decayed, plain) == (path[-1].key in ("b", "scale", "offset")), path


def test_the_gradient_is_clipped_before_decay_is_added(load, batch_of):
    chosen = {"type": "sgd", "learning_rate": 0.5, "clip_norm": 1e-6, "weight_decay": 0.1}
    program = compiled(load, optimizer=chosen)
    before = program.devices.fetch(program.init()).params
    state, metrics = program.train_step(program.init(), batch_of(program, 0), 0)
    assert program.devices.fetch(metrics)["gradient_norm"] > 1e-3
    after = program.devices.fetch(state).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95 * b, rtol=1e-5, atol=1e-6), after, before)


def test_decay_is_a_number_of_the_compiled_step(load):
    chosen = {**SGD, "weight_decay": 0.1}
    schedule = {"type": "linear_schedule", "init_value": 0.1, "end_value": 0.0, "transition_steps": "100%"}
    first, other = compiled(load, optimizer=chosen), compiled(load, optimizer={**SGD, "weight_decay": schedule})
    assert first._compiled is other._compiled
    column = other.inputs.names.index("optimizer.weight_decay")
    np.testing.assert_allclose([other.inputs.at(step)[column] for step in (0, 6)], [0.1, 0.05], rtol=1e-6)


def test_a_decay_given_twice_is_refused(load):
    chosen = {"type": "adafactor", "learning_rate": 0.1, "weight_decay_rate": 0.1, "weight_decay": 0.1}
    with pytest.raises(
        llrflow.SpecError, match=r"weight_decay = 0\.1 is not a field of .*did you mean 'weight_decay_rate'"
    ):
        load({"optimizer": chosen})
