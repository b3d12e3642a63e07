"""Rematerialisation: less memory by XLA's account, more computation, the same numbers."""

import pytest
from tree_difference import relative

import llrflow

VIT = {"type": "vit", "patch": 2, "width": 16, "depth": 3, "heads": 2}
WIDE = {"type": "wide_resnet", "depth": 16, "width": 1}
CHANGES = {
    "optimizer": {"type": "sgd", "learning_rate": 0.1},
    "objective.perturbations.llr.steps": 0,  # the slope alone has every kind of derivative
}


@pytest.mark.parametrize("model", [VIT, pytest.param(WIDE, marks=pytest.mark.long)], ids=["vit", "batch norm"])
def test_blocks_computed_anew_change_memory_alone(model, load, train):
    found = {}
    for remat in ("none", "blocks"):
        program = llrflow.compile(load({**CHANGES, "model": model, "train.remat": remat}))
        step = program.lowered_step().compile()
        memory, flops = step.memory_analysis().temp_size_in_bytes, step.cost_analysis()["flops"]
        states, metrics = train(program, 1)
        found[remat] = states[-1], metrics[0], memory, flops
    (state, metrics, memory, flops), (ours, same, less, more) = found["none"], found["blocks"]
    assert relative(ours.params, state.params) < 5e-6  # of each array; those that start at zero are gradients
    assert not ours.model_state or relative(ours.model_state, state.model_state) < 5e-6
    for name, value in metrics.items():
        assert same[name] == pytest.approx(value, rel=1e-5), name
    assert less < 0.75 * memory and more > 1.1 * flops, (less / memory, more / flops)


def test_a_network_without_blocks_is_refused(load):
    says = r"train\.remat = 'blocks', but mlp is not made of repeated blocks; set it to none"
    with pytest.raises(llrflow.SpecError, match=says):
        load({"train.remat": "blocks"})
