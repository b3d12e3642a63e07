"""How long it takes to plan a sweep of a thousand trials: every spec is loaded, checked and resolved."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SPEC = Path(__file__).parents[2] / "specs" / "digits_sweep.yaml"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("how", ["--compile", "--estimate"])
def test_a_thousand_trials_are_planned_in_ten_seconds(
    how: str, tmp_path: Path, data_dir: Path, plain_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "llrflow", "plan", str(SPEC), how, "--set", "sweep.trials=1000"]
    began = time.monotonic()
    done = subprocess.run([*command, "--set", f"data.dir={data_dir}"], capture_output=True, text=True,
                          env=plain_environment, cwd=tmp_path)  # fmt: skip
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "1,000 trials (1,000 configurations), 1 compiled program(s) a worker" in done.stdout
    print(f"{how}: {seconds:.1f} s")
    assert seconds <= 10
