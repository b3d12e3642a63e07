"""What every spec of the repository means once it is loaded: a change of any default shows here."""

import json
from pathlib import Path

import pytest

import llrflow

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
DATASETS = ("fashion_mnist", "cifar10")
PLUGIN_SPECS = sorted((ROOT / "plugins").glob("*/*.yaml"))
METHODS = [*sorted((ROOT / "specs" / "methods").glob("*.yaml")), *PLUGIN_SPECS]
COMPOSED = [path for name in DATASETS for path in sorted((ROOT / "specs" / name).glob("*.yaml"))]
SPECS = [path for path in (*sorted((ROOT / "specs").rglob("*.yaml")), *PLUGIN_SPECS) if path not in COMPOSED]
COMMAND = "python -m pytest tests/cli/test_goldens.py --regenerate"


def name_of(path):
    return "-".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("specs-")


@pytest.mark.parametrize("path", SPECS, ids=name_of)
def test_a_spec_means_what_it_meant(path, request, monkeypatch):
    monkeypatch.chdir(ROOT)
    golden = GOLDENS / f"{name_of(path)}.json"
    loaded = json.dumps(llrflow.load_spec(path).model_dump(), indent=1) + "\n"
    if request.config.getoption("regenerate"):
        golden.write_text(loaded)
    advice = f"\nIf the change is meant, note it in CHANGELOG.md and run: {COMMAND}"
    assert golden.exists(), f"{path} has no golden file.{advice}"
    assert json.loads(golden.read_text()) == json.loads(loaded), f"{path} loads as something else.{advice}"


def test_every_golden_belongs_to_a_spec():
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(map(name_of, SPECS))


@pytest.mark.parametrize("path", COMPOSED, ids=name_of)
def test_a_method_on_a_dataset_is_the_methods_objective_and_the_datasets_rest(path):
    method = llrflow.load_spec(next(spec for spec in METHODS if spec.stem == path.stem))
    dataset = llrflow.load_spec(ROOT / "specs" / "datasets" / f"{path.parent.name}.yaml")
    composed = llrflow.load_spec(path)
    rest = {"name", "objective", "plugins", "train"}
    assert composed.model_dump(exclude=rest) == dataset.model_dump(exclude=rest)
    assert composed.train.model_dump(exclude={"batch_norm"}) == dataset.train.model_dump(exclude={"batch_norm"})
    for mine, theirs in (
        (composed.objective.entries(), method.objective.entries()),
        (composed.objective.perturbations, method.objective.perturbations),
    ):
        assert {name: (part.registered_as, getattr(part, "at", None)) for name, part in mine.items()} == {
            name: (part.registered_as, getattr(part, "at", None)) for name, part in theirs.items()
        }
    assert composed.objective.gradient.registered_as == method.objective.gradient.registered_as


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_stands_on_every_dataset(dataset):
    names = {path.stem for path in METHODS} - {"confidence"}  # the tutorial's
    names -= {"llr"} if dataset == "fashion_mnist" else set()  # that is specs/fashion_mnist_llr.yaml
    assert {path.stem for path in COMPOSED if path.parent.name == dataset} == names


def test_what_datasets_change_of_the_methods(request):
    golden = GOLDENS / "changes" / "of_methods.json"
    changes = {}
    for path in COMPOSED:
        method = leaves(llrflow.load_spec(next(spec for spec in METHODS if spec.stem == path.stem)))
        mine = leaves(llrflow.load_spec(path))
        changes[name_of(path)] = {key: value for key, value in mine.items() if method.get(key, ...) != value}
    loaded = json.dumps(changes, indent=1) + "\n"
    if request.config.getoption("regenerate"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(loaded)
    assert json.loads(golden.read_text()) == changes, f"If the change is meant, run: {COMMAND}"


def leaves(spec):
    """Objective and BatchNorm policy of a spec, value by dotted path."""

    def walk(value, path):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}")
        else:
            yield path, value

    policy = spec.train.batch_norm.model_dump()
    return dict([*walk(spec.objective.model_dump(), "objective"), *walk(policy, "train.batch_norm")])
