"""Not weaker than foolbox's attacks on the same function with the same budget."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llrflow

SCRIPT = Path(__file__).parent / "against_foolbox.py"


@pytest.fixture(scope="module")
def pairs(load, tmp_path_factory) -> list[dict]:
    run = llrflow.run(load({"train.steps": 60, "evaluate.attacks": {}}), tmp_path_factory.mktemp("foolbox") / "run")
    done = subprocess.run([sys.executable, SCRIPT, "strength", run.path, "64"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_projected_gradient_descent(pairs):
    found = {(made["attack"], made["maximize"]): made for made in pairs if "maximize" in made}
    assert len(found) == 4 and all(made["n"] == 64 for made in found.values())
    for made in found.values():
        assert made["ours"] <= made["foolbox"] + 1, made
    assert 0 < found["LinfPGD", "margin"]["ours"] < 64


def test_minimum_norm_attacks(pairs):
    found = {made["attack"]: made for made in pairs if "weaker by" in made}
    assert found.keys() == {"LinfDeepFool", "L2DeepFool", "L2CarliniWagner"}
    for made in found.values():
        assert made["weaker by"] <= 1 and made["ours"] <= 1.02 * made["foolbox"], made
        assert made["found"] >= made["found by foolbox"] - 1 > 32, made
