"""Attack the quickstart model (or another RUN) with batches of 1, 64 and 250 and on one and two devices.

python tests/figures/verdict_parity.py RUN prints a line of JSON for each: the number of images whose verdict is not
that of the first. Batches of one image take minutes.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import llrflow
from llrflow.data.resident import load_split
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import StopRequest


def verdicts(run: str, size: int, devices: int, folder: Path) -> dict[str, np.ndarray]:
    changes = {"evaluate.batch_size": size, "devices.count": devices, "evaluate.checks.examples": 0}
    spec = llrflow.load_spec(f"{run}/spec.yaml", changes)
    program = llrflow.compile(spec)
    checkpoints = Checkpoints(Path(run) / "checkpoints")
    state = checkpoints.restore(program.abstract_state(), llrflow.load_model(run).step)
    folder.mkdir()
    split = load_split(spec.data, spec.data.test)
    Evaluator(program, state, split, RunFolder(folder), "0" * 12, StopRequest(), True).evaluate()
    found = {}
    for path in sorted((folder / "evaluation").glob("*.*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.name.split(".")[1]] = arrays["wrong"]
    return found


def main(run: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    first: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as parent:
        for size, devices in ((250, 1), (250, 2), (64, 1), (64, 2), (1, 1)):
            found = verdicts(run, size, devices, Path(parent) / f"{size}-{devices}")
            first = first or found
            differ = {name: int((wrong != first[name]).sum()) for name, wrong in found.items()}
            counts = {name: int(wrong.sum()) for name, wrong in found.items()}
            print(json.dumps({"batch": size, "devices": devices, "differ": differ, "changed": counts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
