"""The specs of the document's own experiments: one network, one threat and one evaluation for all methods compared."""

from pathlib import Path

import pytest

import llrflow
from llrflow.components.registry import make
from llrflow.runs.presets import evaluate_block

SPECS = Path(__file__).parents[2] / "specs"
CIFAR10 = sorted((SPECS / "cifar10_wrn").glob("*.yaml"))
IMAGENET = [SPECS / "imagenet_llr_resnet152.yaml", *sorted((SPECS / "imagenet").glob("*.yaml"))]
METHODS = {"llr_2", "llr_15", "adversarial", "trades", "cure"}


def test_every_method_of_the_document_is_there():
    assert {path.stem for path in CIFAR10} == METHODS | {f"{name}_wrn40" for name in METHODS}
    names = {f"{name}_resnet{depth}" for name in ("adversarial", "denoise") for depth in (50, 152)}
    assert {path.stem for path in IMAGENET} == names | {"llr_resnet50", "imagenet_llr_resnet152"}


@pytest.mark.parametrize("path", CIFAR10 + IMAGENET, ids=lambda path: path.stem)
def test_a_spec_differs_from_its_base_in_objective_and_depth_alone(path):
    spec = llrflow.load_spec(path)
    base = llrflow.load_spec(SPECS / "datasets" / ("cifar10_wrn.yaml" if path in CIFAR10 else "imagenet2012.yaml"))
    rest = {"name", "objective", "model", "train"}
    assert spec.model_dump(exclude=rest) == base.model_dump(exclude=rest)
    assert spec.train.model_dump(exclude={"batch_norm"}) == base.train.model_dump(exclude={"batch_norm"})
    depth = next((int(end) for end in ("40", "50", "152") if path.stem.endswith(end)), 28)
    model = {**base.model.model_dump(), "depth": depth}
    if path.stem.startswith("denoise"):
        model |= {"type": "denoise_resnet", "denoise": "gaussian", "embed": True}
    assert spec.model.model_dump() == model
    assert spec.threat.epsilon == pytest.approx((8 if path in CIFAR10 else 4) / 255)
    steps = [search.steps for search in spec.objective.perturbations.values()]
    assert steps == {"llr_15": [15], "trades": [10], "cure": [], "adversarial": [30], "denoise": [30]}.get(
        path.stem.removesuffix("_wrn40").removesuffix("_resnet50").removesuffix("_resnet152"), [2]
    )


@pytest.mark.parametrize("base", ["cifar10_wrn", "imagenet2012"])
def test_attacks_are_those_of_the_preset(base):
    spec, preset = llrflow.load_spec(SPECS / "datasets" / f"{base}.yaml"), evaluate_block("document")
    attacks = {name.replace("pgd_margin", "pgd"): make("attack", attack) for name, attack in preset["attacks"].items()}
    assert spec.evaluate.attacks == attacks and spec.evaluate.cascade is preset["cascade"] is False
