"""Every recipe is planned as it stands, and trained for three steps on made-up images with a smaller network."""

import json
from pathlib import Path

import pytest

import llrflow

RECIPES = sorted((Path(__file__).parents[2] / "specs" / "recipes").glob("*.yaml"))
SMALLER = {"wide_resnet": {"model.depth": 10, "model.width": 1}, "preact_resnet": {"model.width": 2}}
SMALLER["resnet_v1"] = {"model.depth": 18, "model.width": 2}
PUBLISHED = {  # parameters of the networks, as their classes document them, for the classes of the recipe's dataset
    "cure": 23_354_842,
    "gradient_norm_resnet50": 25_557_032,
    "llr_preact18": 11_172_170,
    "llr_wrn40": 35_748_314,
    "mart": 23_354_842,
    "rice2020_preact18": 11_172_170,
    "trades_awp_wrn34": 46_160_474,
    "trades_wrn34": 46_160_474,
    "wang2023_wrn28": 36_479_194,
}

SHORTER = {
    "gradient_norm_resnet50": {
        "objective.terms.penalty.weight.transition_steps": 2,
        "optimizer.learning_rate.warmup_steps": 1,
    },
    "trades_awp_wrn34": {"objective.gradient.gamma": 0.005},
    "rice2020_preact18": {"optimizer.learning_rate": 0.1},
    "llr_preact18": {"optimizer.learning_rate": 0.1, "objective.perturbations.llr.epsilon": "8/255"},
    "llr_wrn40": {"objective.perturbations.llr.epsilon": "8/255"},
}
"""In place of schedules that three steps are too few for."""

pytestmark = pytest.mark.long


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_planned_and_valid_as_it_stands(path, command, tmp_path):
    where = ("--set", f"data.dir={tmp_path}", "--set", "data.extra=null")  # images of no well-known dataset
    code, out, err = command("plan", path, "--devices", 8, "--json", *where)
    assert code == 0, err
    made = json.loads(out)
    assert made["parameters"] == PUBLISHED[path.stem] and made["devices"] == 8
    code, out, err = command("validate", path, *where, "--set", "devices.count=1")
    assert code == 0 and f"{path} is valid: {made['steps']} steps" in out, err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_three_steps_of_a_recipe(path, tmp_path):
    recipe = llrflow.load_spec(path)
    options = {"height": 32, "width": 32, "train": 64, "test": 16, "classes": 10}
    small = {
        "data.name": "synthetic",
        "data.options": options,
        "data.dir": str(tmp_path),
        "data.test": "test",
        "data.image_size": None,
        "train.epochs": None,
        "train.steps": 3,
        "train.batch_size": 10,
        "train.log_every": 1,
        "evaluate.attacks": None,
        "evaluate.checks.examples": 0,
        "devices.count": 1,
        **SMALLER[recipe.model.registered_as[1]],
    }
    small |= SHORTER.get(path.stem, {})
    if recipe.data.validation is not None:
        small["data.validation"] = 8
    if recipe.data.extra is not None:
        small |= {"data.extra.name": "synthetic", "data.extra.options": {**options, "train": 256}}
    result = llrflow.run(llrflow.load_spec(path, small), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "objective" in line] == [1, 2, 3]
    names = {"objective", "loss", "accuracy", "gradient_norm", *recipe.objective.terms}
    assert names <= lines[0].keys() and result.record.state == "finished"
