"""What every spec of the repository means once it is loaded: a change of any default shows here."""

import json
from pathlib import Path

import pytest

import llrflow

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "specs").rglob("*.yaml"))
COMMAND = "python -m pytest tests/cli/test_goldens.py --regenerate"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_means_what_it_meant(path, request, monkeypatch):
    monkeypatch.chdir(ROOT)
    golden = ROOT / "tests" / "goldens" / f"{'-'.join(path.relative_to(ROOT / 'specs').with_suffix('').parts)}.json"
    loaded = json.dumps(llrflow.load_spec(path).model_dump(), indent=1) + "\n"
    if request.config.getoption("regenerate"):
        golden.write_text(loaded)
    advice = f"\nIf the change is meant, note it in CHANGELOG.md and run: {COMMAND}"
    assert golden.exists(), f"{path} has no golden file.{advice}"
    assert json.loads(golden.read_text()) == json.loads(loaded), f"{path} loads as something else.{advice}"


def test_every_golden_belongs_to_a_spec():
    names = {"-".join(path.relative_to(ROOT / "specs").with_suffix("").parts) for path in SPECS}
    assert {path.stem for path in (ROOT / "tests" / "goldens").glob("*.json")} == names
