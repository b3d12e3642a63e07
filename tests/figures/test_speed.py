"""The promised speed ratios, measured in one process with the programs taking turns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import double_backpropagation
import pytest
from method_ratios import BOUNDS, COUNTED, base_of, program_of

from llrflow.program.cost import parts

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


@pytest.mark.parametrize("name", COUNTED)
def test_count_behind_a_bound(data_dir: Path, name: str) -> None:
    program = program_of(base_of(str(data_dir), {"model.widths": [4]}), name)  # widths are not counted
    assert sum(count.total for count in parts(program).values()) == COUNTED[name]


@pytest.mark.long
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_double_backpropagation_computes_the_same(norm: str, data_dir: Path) -> None:
    double_backpropagation.check_values(str(SPEC), str(data_dir), norm)
