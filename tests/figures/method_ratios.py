"""Time the steps of methods against the cross-entropy step, all in this process; prints a line of JSON each.

Run by test_speed.py in a process of its own: python method_ratios.py DATA_DIR METHOD...
The network, images and batch are those of specs/small_resnet_llr.yaml; of a method's spec only the objective counts.
"""

import json
import sys
from pathlib import Path
from typing import Any

import llrflow
from llrflow.program.cost import CROSS_ENTROPY, measure, parts, plain_program

ROOT = Path(__file__).parents[2]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd-10": ("specs/methods/pgd_training.yaml", {"objective.perturbations.pgd.steps": 10}),
    "trades-10": ("specs/methods/trades.yaml", {}),
    "cure": ("specs/methods/cure.yaml", {}),
    "grad-align": ("plugins/grad_align/grad_align.yaml", {}),
    "elle": ("plugins/elle/elle.yaml", {}),
    "mart": ("plugins/mart/mart.yaml", {}),
}


def main(data_dir: str, *methods: str) -> None:
    changes = {"devices.count": 2, "data.dir": data_dir}
    base = llrflow.load_spec(ROOT / "specs" / "small_resnet_llr.yaml", changes)
    plain = plain_program(base)
    for method in methods:
        path, changes = METHODS[method]
        objective = llrflow.load_spec(ROOT / path, changes).objective
        program = llrflow.compile(base.model_copy(update={"objective": objective}))
        counted = sum(count.total for count in parts(program).values())
        result = {"counted": counted / CROSS_ENTROPY, **measure(program, plain)}
        print(json.dumps({"method": method, **{name: round(value, 4) for name, value in result.items()}}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
