"""`--on`: every method on every dataset is one command, and means what a spec written by hand would."""

import json
from pathlib import Path

import pytest

import llrflow
from llrflow.components.registry import make
from llrflow.runs.presets import evaluate_block

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "specs"
GOLDENS = ROOT / "tests" / "goldens" / "on"
METHODS = {
    path.stem: path
    for path in [*sorted((SPECS / "methods").glob("*.yaml")), *sorted((ROOT / "plugins").glob("*/*.yaml"))]
    if path.stem != "confidence"  # the tutorial's
}
RECIPES = {
    "cure": "cure.yaml",
    "mart": "mart.yaml",
    "trades": "trades_wrn34.yaml",
    "llr": "llr_wrn40.yaml",
    "gamma": "llr_wrn40.yaml",
    "gamma_gradient_norm": "llr_wrn40.yaml",
    "llr_cross_entropy": "llr_wrn40.yaml",
}
"""Where the settings stand that the authors of a method, or of LLR for its ablations, have for L-inf 8/255."""

GROWING = {"type": "linear_schedule", "init_value": 0, "end_value": "8/255", "transition_steps": 500}
SEARCH = {"steps": 10, "step": {"type": "sign", "size": "2/255"}, "epsilon": GROWING}
GAMMA, SLOPE = {"gamma": {"weight": 2.0}}, {"slope": {"weight": 0.6}}
PUBLISHED = {
    "trades": {"objective": {"perturbations": {"kl": {"step": {"type": "sign", "size": 0.007}}}}},
    "mart": {"objective": {"perturbations": {"pgd": {"step": {"type": "sign", "size": 0.007}}}}},
    "cure": {"objective": {"terms": {"curvature": {"h": 0.6, "squared": False, "weight": 0.8}}}},
    "elle": {"objective": {"terms": {"elle": {"weight": 1000.0}}}},
    "elle_a": {"objective": {"terms": {"elle": {"weight": 4000.0}}}},
    **{
        name: {"objective": {"perturbations": {"llr": SEARCH}, "terms": GAMMA}}
        for name in ("gamma", "gamma_gradient_norm")
    },
    **{
        name: {"objective": {"perturbations": {"llr": SEARCH}, "terms": GAMMA | SLOPE}}
        for name in ("llr", "llr_cross_entropy")
    },
}
"""What these settings are, by method."""

SETS = {
    "elle": {"objective.terms.elle.weight": 1000.0},
    "elle_a": {"objective.terms.elle.weight": 4000.0},
    "gamma": {"objective.terms.slope": None},
    "gamma_gradient_norm": {
        "objective.terms.slope": None,
        "objective.terms.penalty": {"type": "gradient_norm", "p": 2, "weight": 1.0},
    },
    "llr_cross_entropy": {"objective.perturbations.llr.maximize": {"type": "cross_entropy"}},
}
"""`--set` that leads from a recipe to a method's ablation, or from a plugin's spec to published settings."""

DEEP = {"model.depth": 40}
SHALLOW = {"model.depth": 50}
FEW, MANY = {"objective.perturbations.llr.steps": 15}, {"objective.perturbations.pgd.steps": 30}
WRN, IMAGENET, DENOISE = "cifar10_wrn", "imagenet2012", "imagenet2012_denoise"
DOCUMENT = {
    "cifar10_wrn-llr_2": ("methods/llr", WRN, {}),
    "cifar10_wrn-llr_15": ("methods/llr", WRN, FEW),
    "cifar10_wrn-adversarial": ("methods/pgd_training", WRN, MANY),
    "cifar10_wrn-trades": ("recipes/trades_wrn34", WRN, {}),
    "cifar10_wrn-cure": ("recipes/cure", WRN, {}),
    "cifar10_wrn-llr_2_wrn40": ("methods/llr", WRN, DEEP),
    "cifar10_wrn-llr_15_wrn40": ("methods/llr", WRN, FEW | DEEP),
    "cifar10_wrn-adversarial_wrn40": ("methods/pgd_training", WRN, MANY | DEEP),
    "cifar10_wrn-trades_wrn40": ("recipes/trades_wrn34", WRN, DEEP),
    "cifar10_wrn-cure_wrn40": ("recipes/cure", WRN, DEEP),
    "imagenet_llr_resnet152": ("methods/llr", IMAGENET, {}),
    "imagenet-llr_resnet50": ("methods/llr", IMAGENET, SHALLOW),
    "imagenet-adversarial_resnet152": ("methods/pgd_training", IMAGENET, MANY),
    "imagenet-adversarial_resnet50": ("methods/pgd_training", IMAGENET, MANY | SHALLOW),
    "imagenet-denoise_resnet152": ("methods/pgd_training", DENOISE, MANY),
    "imagenet-denoise_resnet50": ("methods/pgd_training", DENOISE, MANY | SHALLOW),
}
"""The experiments of the LLR author response: SPEC, --on and --set of each."""


def dumped(spec):
    """Everything but the name, with plugins by their content."""
    return {**spec.model_dump(exclude={"name"}), "plugins": spec.plugin_identities()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_a_method_on_a_dataset_is_as_written_by_hand(method, dataset):
    base, here = SPECS / "datasets" / f"{dataset}.yaml", METHODS[method]
    published = dataset == "cifar10"
    by_hand = llrflow.load_spec(
        {"extends": [str(here), str(base)], "name": "by-hand", **(PUBLISHED.get(method, {}) if published else {})}
    )
    spec = SPECS / "recipes" / RECIPES[method] if published and method in RECIPES else here
    made = llrflow.load_spec(spec, SETS.get(method, {}) if published else {}, on=base)
    assert dumped(made) == dumped(by_hand)
    rest = {"name", "objective", "plugins", "train"}
    assert made.model_dump(exclude=rest) == llrflow.load_spec(base).model_dump(exclude=rest)


@pytest.mark.parametrize("name", DOCUMENT)
def test_an_experiment_of_the_document_means_what_it_meant(name, request):
    method, base, sets = DOCUMENT[name]
    made = llrflow.load_spec(SPECS / f"{method}.yaml", sets, on=SPECS / "datasets" / f"{base}.yaml")
    golden, loaded = GOLDENS / f"{name}.json", json.dumps(made.model_dump(), indent=1) + "\n"
    if request.config.getoption("regenerate"):
        golden.write_text(loaded)
    assert {**json.loads(golden.read_text()), "name": made.name} == json.loads(loaded)
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(DOCUMENT)


@pytest.mark.parametrize("base", [WRN, IMAGENET])
def test_the_documents_methods_share_network_threat_and_evaluation(base):
    spec, preset = llrflow.load_spec(SPECS / "datasets" / f"{base}.yaml"), evaluate_block("document")
    attacks = {name.replace("pgd_margin", "pgd"): make("attack", attack) for name, attack in preset["attacks"].items()}
    assert spec.evaluate.attacks == attacks and spec.evaluate.cascade is preset["cascade"] is False
    assert spec.threat.epsilon == pytest.approx((8 if base == WRN else 4) / 255)
    for name, (method, on, sets) in DOCUMENT.items():
        if on == base:
            made = llrflow.load_spec(SPECS / f"{method}.yaml", sets, on=SPECS / "datasets" / f"{on}.yaml")
            rest = {"name", "objective", "model", "train"}
            assert made.model_dump(exclude=rest) == spec.model_dump(exclude=rest), name
            assert {**made.model.model_dump(), "depth": 0} == {**spec.model.model_dump(), "depth": 0}, name


def test_there_are_few_files():
    assert len([*SPECS.rglob("*.yaml")]) <= 45
