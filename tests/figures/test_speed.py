"""The promised speed ratios, measured in one process with the programs taking turns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import double_backpropagation
import pytest
from method_ratios import BOUNDS, COUNTED

HERE = Path(__file__).parent
SPEC = HERE.parents[1] / "specs" / "small_resnet_llr.yaml"


@pytest.fixture(scope="module")
def measured(data_dir: Path, plain_environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(HERE / "method_ratios.py"), str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain_environment)
    assert done.returncode == 0, done.stderr
    return {made["method"]: made for made in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("name", "bound"), BOUNDS.items(), ids=BOUNDS)
def test_ratio_of_steps(measured: dict[str, dict[str, Any]], name: str, bound: float) -> None:
    assert measured[name]["ratio"] <= bound
    if name in COUNTED:
        assert 3 * measured[name]["counted"] == pytest.approx(COUNTED[name], abs=1e-3)


def test_double_backpropagation_computes_the_same(data_dir: Path) -> None:
    double_backpropagation.check_values(str(SPEC), str(data_dir))
