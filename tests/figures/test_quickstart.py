"""The quickstart's promises, kept by the command a newcomer types."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "specs" / "quickstart.yaml"
STANDARD = ("objective.terms=null", "objective.perturbations=null")
pytestmark = pytest.mark.slow


def run(environment: dict[str, str], out: Path, data_dir: Path, *changes: str) -> tuple[dict[str, Any], float]:
    command = [sys.executable, "-m", "llrflow", "run", str(QUICKSTART), "--json"]
    for change in (f"data.dir={data_dir}", *changes):
        command += ["--set", change]
    began = time.monotonic()
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["evaluation"], time.monotonic() - began


@pytest.mark.alone
def test_quickstart_is_quick(tmp_path: Path, data_dir: Path, plain_environment: dict[str, str]) -> None:
    _, seconds = run(plain_environment, tmp_path / "llr", data_dir)
    assert seconds <= 75


def test_quickstart(tmp_path: Path, data_dir: Path, plain_environment: dict[str, str]) -> None:
    regularized, _ = run(plain_environment, tmp_path / "llr", data_dir)
    assert regularized["n"] == 360
    assert regularized["nominal"]["accuracy"] >= 0.97
    assert regularized["attacks"]["pgd"]["attack"]["steps"] == 50
    assert regularized["attacks"]["pgd"]["accuracy"] >= 0.76
    assert not any(flag["fired"] for flag in regularized["flags"].values())


@pytest.mark.long
def test_quickstart_without_terms(tmp_path: Path, data_dir: Path, plain_environment: dict[str, str]) -> None:
    standard, _ = run(plain_environment, tmp_path / "standard", data_dir, *STANDARD, "evaluate.checks.examples=0")
    assert standard["n"] == 360
    assert standard["attacks"]["pgd"]["attack"]["steps"] == 50
    assert standard["attacks"]["pgd"]["accuracy"] <= 0.25
