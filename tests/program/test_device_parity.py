"""The number of devices changes nothing but float noise."""

import jax
import numpy as np
import pytest
from tree_difference import relative

import llrflow
from llrflow.program.compiled import functions_of

CNN = {"type": "cnn", "channels": [4, 8], "dense": 16}
RESNET = {"type": "resnet", "widths": [4], "norm": "batch"}


@pytest.fixture
def trained(load, train):
    """trained(devices, changes) -> (state, metrics by step) after 20 steps on that many devices."""

    def run(devices, changes):
        program = llrflow.compile(load({"train.steps": 20, "devices.count": devices, **changes}))
        assert len(program.devices) == devices
        states, metrics = train(program, 20)
        return states[-1], metrics

    return run


def test_llr_training_of_a_batch_free_net_does_not_depend_on_the_devices(trained):
    # Where g(delta; x) is itself float noise, its sign is too, and one example's search may turn round (2e-4 then).
    # In SGD what remains stays small; Adam divides it by the root of second moments near zero.
    changes = {"model": CNN, "optimizer": {"type": "sgd", "learning_rate": 0.05, "momentum": 0.9}, "train.ema": 0.9}
    single, metrics = trained(1, changes)
    for devices in (2, 4):
        state, others = trained(devices, changes)
        assert relative(state.params, single.params) < 1e-5 and relative(state.ema, single.ema) < 1e-5
        for ours, other in zip(metrics, others, strict=True):
            assert ours.keys() == {"objective", "accuracy", "loss", "gamma", "slope", "gradient_norm"}
            for name in ours:
                np.testing.assert_allclose(other[name], ours[name], rtol=2e-4, atol=1e-6, err_msg=name)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.05  # it trains, so equal parameters mean something


def test_batch_statistics_are_those_of_the_whole_batch(trained):
    changes = {"model": RESNET, "optimizer": {"type": "sgd", "learning_rate": 0.05}}
    single, metrics = trained(1, changes)
    state, others = trained(4, changes)
    assert relative(state.params, single.params) < 1e-4
    assert relative(state.model_state, single.model_state) < 1e-4
    assert others[0]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("take", ["drawn", "strongest"])
def test_choices_among_perturbations_do_not_depend_on_the_devices(trained, take):
    changes = {
        **dict.fromkeys(("objective.perturbations.llr", "objective.terms.gamma", "objective.terms.slope")),
        "optimizer": {"type": "sgd", "learning_rate": 0.05},
        "objective.perturbations": {"linf": {"steps": 2}, "l2": {"norm": "l2", "epsilon": 0.5, "steps": 3}},
        "objective.choices": {"any": {"of": ["linf", "l2"], "take": take}},
        "objective.terms": {"adversarial": {"type": "cross_entropy", "at": "any"}},
    }
    single, metrics = trained(1, changes)
    state, others = trained(2, changes)
    assert relative(state.params, single.params) < 1e-5
    assert others[-1]["adversarial"] == pytest.approx(metrics[-1]["adversarial"], rel=1e-5)


def test_without_pmap_the_same_numbers_are_computed(load, train, monkeypatch):
    changes = {
        "train.steps": 3,
        "devices.count": 2,
        "model": RESNET,
        "train.ema": 0.9,
        "data.mix": {"mixup": {"type": "mixup"}},
    }

    def numbers():
        functions_of.cache_clear()  # another mapping is no other program
        program = llrflow.compile(load(changes))
        states, metrics = train(program, 3)
        variables = program.devices.replicate((states[-1].params, states[-1].model_state))
        images = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
        return jax.tree.leaves((states[-1], metrics, program.logits(variables, images)))

    found = [numbers()]
    with monkeypatch.context() as without:
        without.delattr(jax, "pmap")
        found.append(numbers())
    functions_of.cache_clear()  # the other tests have pmap
    for ours, other in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_more_devices_than_there_are_is_an_error(load):
    says = r"devices\.count = 5 but JAX started with 4 cpu device\(s\); ask for at most 4"
    with pytest.raises(llrflow.SpecError, match=says):
        llrflow.compile(load({"devices.count": 5, "train.batch_size": 65}))


@pytest.mark.long
def test_devices_of_a_cpu_do_not_wait_for_each_other_for_good(tiny, write_spec, tmp_path, llrflow_command):
    """XLA:CPU stands still when one device is 32 steps ahead of another: between two looks there may be many."""
    changes = {"model": {"type": "cnn", "channels": [32, 64]}, "devices.count": 2, "evaluate.attacks.pgd": None}
    changes |= {"train.steps": 150, "train.log_every": 150, "checkpoint.every": 150}
    code, _, err = llrflow_command("run", write_spec(tmp_path / "spec.yaml", tiny(), changes), cwd=tmp_path)
    assert code == 0, err
