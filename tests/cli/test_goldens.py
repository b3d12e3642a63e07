"""What every spec of the repository means once it is loaded: a change of any default shows here."""

import json
from pathlib import Path

import pytest

import llrflow

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
SPECS = [*sorted((ROOT / "specs").rglob("*.yaml")), *sorted((ROOT / "plugins").glob("*/*.yaml"))]
COMMAND = "python -m pytest tests/cli/test_goldens.py tests/cli/test_compositions.py --regenerate"


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
