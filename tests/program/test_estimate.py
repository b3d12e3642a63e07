"""Estimates from one forward pass, against what XLA says of the compiled step; and plans without data or devices."""

import json
import time

import pytest

import llrflow
from llrflow.base.memory_size import amount
from llrflow.program.cost import plan
from llrflow.program.estimate import program_of_share

LLR = {
    "perturbations": {"p": {"maximize": "local_linearity", "steps": 1}},
    "terms": {
        "gamma": {"type": "local_linearity", "at": "p"},
        "slope": {"type": "gradient_inner_product", "at": "p"},
    },
}
PGD = {"loss": {"type": "cross_entropy", "at": "p"}, "perturbations": {"p": {"steps": 2}}}
MODELS = {
    "resnet": {"type": "resnet", "widths": [8, 16]},
    "vit": {"type": "vit", "patch": 2, "width": 16, "depth": 1, "heads": 2},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", [{}, LLR, PGD], ids=["cross-entropy", "llr", "pgd"])
def test_estimates_are_near_what_xla_says(objective, model, tiny):
    spec = llrflow.load_spec({**tiny(), "model": MODELS[model], "objective": objective})
    made = plan(llrflow.compile(spec), 1, timed=False, compiled=True)
    assert made["estimated_flops_per_step_and_device"] == pytest.approx(made["xla_flops_per_step_and_device"], rel=0.15)
    memory = sum(made["estimated_memory_bytes_per_device"].values())
    assert 0.6 < memory / made["xla_memory_bytes_per_device"] < 1.5


def test_parts_of_the_memory(tiny):
    spec = llrflow.load_spec({**tiny(), "train": {**tiny()["train"], "ema": 0.9}})
    made = plan(llrflow.compile(spec), 1, timed=False, compiled=False)
    memory, weights = made["estimated_memory_bytes_per_device"], 4 * made["parameters"]
    assert memory["parameters"] == 3 * weights and memory["images"] == 64 * 64 * 4  # with gradient and average
    assert 2 * weights <= memory["optimizer"] < 2 * weights + 64  # Adam's two moments
    assert "xla_flops_per_step_and_device" not in made
    share = plan(program_of_share(spec, 8)[0], 8, timed=False, compiled=False)
    assert share["estimated_memory_bytes_per_device"]["activations"] * 8 == pytest.approx(
        memory["activations"], rel=0.05
    )


def test_auto_takes_the_fewest_parts_that_fit(tiny, load):
    def planned(parts, memory=None):
        changes = {"train.accumulate": parts, "devices.memory": memory, "model": MODELS["resnet"]}
        return plan(llrflow.compile(load(changes)), 1, timed=False, compiled=False)

    needed = {parts: sum(planned(parts)["estimated_memory_bytes_per_device"].values()) for parts in (1, 2, 4)}
    assert needed[1] > needed[2] > needed[4]
    for parts, limit in ((1, needed[1]), (2, needed[1] - 1), (2, needed[2]), (4, needed[2] - 1)):
        found = planned("auto", limit)
        assert found["accumulate"] == parts and not found["warnings"]
        assert f"devices.memory = {amount(limit)}" in found["accumulate_why"]
        assert ("part(s) would take" in found["accumulate_why"]) == (parts > 1)
    (warning,) = planned(1, needed[1] - 1)["warnings"]
    assert "more than devices.memory" in warning
    with pytest.raises(
        llrflow.SpecError, match=r"devices\.memory = 1000 bytes is less than .* for one image at a time"
    ):
        planned("auto", 1000)


def test_more_devices_than_there_are_share_the_batch(tiny):
    spec = llrflow.load_spec({**tiny(), "train": {"epochs": 3, "batch_size": 64}})
    here, there = (program_of_share(spec, count) for count in (4, 16))
    assert (len(here[0].devices), len(there[0].devices)) == (4, 1) and there[1] == 16
    few, many = (plan(program, count, timed=False, compiled=False) for program, count in (here, there))
    assert (few["steps"], few["batch_size"], few["per_device_batch"]) == (66, 64, 16)
    assert (many["steps"], many["batch_size"], many["per_device_batch"], many["devices"]) == (66, 64, 4, 16)
    assert many["passes"] == few["passes"] and many["parameters"] == few["parameters"]
    assert many["estimated_flops_of_training"] == pytest.approx(few["estimated_flops_of_training"], rel=0.02)


@pytest.mark.slow
def test_resnet_152_on_128_devices_is_planned_without_data(command, repository, tmp_path):
    began = time.process_time()
    llr, imagenet = repository / "specs/methods/llr.yaml", repository / "specs/datasets/imagenet2012.yaml"
    llr_on_imagenet = (llr, "--on", imagenet)
    arguments = ("--devices", 128, "--set", f"data.dir={tmp_path}")
    code, out, err = command("plan", *llr_on_imagenet, *arguments, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["parameters"] == 60_192_808 and made["facts"] == "table" and made["image_shape"] == [224, 224, 3]
    assert (made["steps"], made["batch_size"], made["per_device_batch"]) == (125_100, 1024, 8)
    assert made["forward_equivalents_per_step"] == 14 and "xla_flops_per_step_and_device" not in made
    assert made["forward_flops_per_image"] == pytest.approx(2 * 11.5e9, rel=0.1)  # twice the published multiply-adds
    assert time.process_time() - began < 60
    code, out, err = command("plan", *llr_on_imagenet, *arguments)
    assert "imagenet2012 is not prepared: its facts come from llrflow's table" in out and "estimated" in out
    code, out, err = command("validate", *llr_on_imagenet, "--set", f"data.dir={tmp_path}", "--set", "devices.count=1")
    assert code == 0 and "its facts come from llrflow's table" in out, err
    code, _, err = command("run", *llr_on_imagenet, "--set", f"data.dir={tmp_path}", "--set", "devices.count=1")
    assert code == 2 and "'imagenet2012' is not prepared" in err
