"""The promised speed ratios, each measured in one process with the programs taking turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SPEC = HERE.parents[1] / "specs" / "small_resnet_llr.yaml"
PGD_10 = (
    "objective.terms=null",
    "objective.perturbations.llr=null",
    "objective.perturbations.pgd={maximize: cross_entropy, steps: 10}",
    "objective.loss={type: cross_entropy, at: pgd}",
)
pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(("changes", "bound"), [((), 4.4), (PGD_10, 7.0)], ids=["llr-2", "pgd-10"])
def test_step_against_cross_entropy(
    changes: tuple[str, ...], bound: float, data_dir: Path, plain_environment: dict[str, str]
) -> None:
    settings = [part for change in (f"data.dir={data_dir}", *changes) for part in ("--set", change)]
    command = ("-m", "llrflow", "plan", str(SPEC), "--devices", "2", "--measure", "--json", *settings)

    def ratio() -> float:
        return json.loads(output(plain_environment, *command))["measured"]["ratio"]

    assert best_of(3, ratio, bound) <= bound


def test_step_against_double_backpropagation(data_dir: Path, plain_environment: dict[str, str]) -> None:
    command = (str(HERE / "double_backpropagation.py"), str(SPEC), str(data_dir))
    assert best_of(3, lambda: json.loads(output(plain_environment, *command))["usual"], 0.85) <= 0.85
