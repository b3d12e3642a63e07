"""The promised speed ratios, each measured in one process with the programs taking turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SPEC = HERE.parents[1] / "specs" / "small_resnet_llr.yaml"
# Forward-equivalents by count; a step may take 10 % more time than they say.
COUNTED = {"trades-10": 26, "cure": 14, "grad-align": 14, "elle": 14, "mart": 26}
BOUNDS = {"pgd-10": 7.0, **{method: 1.1 * count / 3 for method, count in COUNTED.items()}}
pytestmark = [pytest.mark.slow, pytest.mark.alone]


def best_of(attempts: int, ratio: Callable[[], float], bound: float) -> float:
    """The smallest of a few medians: a busy machine may spoil one, a slower program spoils all."""
    found = []
    for _ in range(attempts):
        found.append(ratio())
        if found[-1] <= bound:
            break
    return min(found)


def output(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llr_step_against_cross_entropy(data_dir: Path, plain_environment: dict[str, str]) -> None:
    command = ("-m", "llrflow", "plan", str(SPEC), "--devices", "2", "--measure", "--json")

    def ratio() -> float:
        made = output(plain_environment, *command, "--set", f"data.dir={data_dir}")
        return json.loads(made)["measured"]["ratio"]

    assert best_of(3, ratio, 4.4) <= 4.4


def test_steps_of_methods_against_cross_entropy(data_dir: Path, plain_environment: dict[str, str]) -> None:
    slow = {method: float("inf") for method in BOUNDS}
    for _ in range(3):  # a busy machine may spoil one median, a slower program spoils all
        lines = output(plain_environment, str(HERE / "method_ratios.py"), str(data_dir), *slow).splitlines()
        found = {made["method"]: made for made in map(json.loads, lines)}
        assert found.keys() == slow.keys()
        for method in found.keys() & COUNTED.keys():
            assert 3 * found[method]["counted"] == pytest.approx(COUNTED[method], abs=1e-3)
        slow = {method: made["ratio"] for method, made in found.items() if made["ratio"] > BOUNDS[method]}
        if not slow:
            break
    assert not slow


def test_step_against_double_backpropagation(data_dir: Path, plain_environment: dict[str, str]) -> None:
    command = (str(HERE / "double_backpropagation.py"), str(SPEC), str(data_dir))
    assert best_of(3, lambda: json.loads(output(plain_environment, *command))["usual"], 0.85) <= 0.85
