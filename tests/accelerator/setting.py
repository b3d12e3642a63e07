"""What the parts of the kit share: their arguments, networks, methods and made-up data, and how they report.

A part is a script. It prints a line of JSON for each finding as soon as it has it, and stops by itself before its time
is over; what it has printed counts, however it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LACKING = {"array_record", "cv2", "matplotlib", "ray", "simplejpeg", "sklearn", "tensorflow_datasets"}
"""What a bare machine does not have: a part must do without, wherever it is run."""


class _Bare:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"{name} is nothing that the kit may import", name=name)


sys.meta_path.insert(0, _Bare())


class Setting(NamedTuple):
    """A network with its images."""

    model: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    classes: int
    batches: tuple[int, ...]
    """Sizes of a batch, the likeliest to be the fastest first."""


PREACT = {"type": "preact_resnet", "depth": 18, "stem": "cifar", "activation": "relu"}
NETWORKS = {
    "WRN-28-10": Setting({"type": "wide_resnet", "depth": 28, "width": 10}, (32, 32, 3), 10, (512, 1024, 256)),
    "ResNet-50": Setting({"type": "resnet_v1", "depth": 50}, (224, 224, 3), 1000, (128, 256, 64)),
    "PreActResNet-18": Setting(PREACT, (32, 32, 3), 10, (1024, 2048, 512)),
}
DRY = {"CNN": Setting({"type": "cnn", "channels": [4, 4], "dense": 8}, (8, 8, 3), 10, (4, 8))}


def methods(steps: int) -> dict[str, dict[str, Any]]:
    """Objectives by name; the searches of PGD and TRADES have so many steps."""
    pgd = {"maximize": "cross_entropy", "steps": steps}
    trades = {"maximize": "kl_divergence", "steps": steps, "start": "gaussian"}
    llr = {
        "perturbations": {"llr": {"maximize": "local_linearity", "steps": 2}},
        "terms": {
            "gamma": {"type": "local_linearity", "at": "llr", "weight": 4.0},
            "slope": {"type": "gradient_inner_product", "at": "llr", "weight": 3.0},
        },
    }
    return {
        "standard": {},
        "LLR-2": llr,
        f"PGD-{steps}": {"loss": {"type": "cross_entropy", "at": "pgd"}, "perturbations": {"pgd": pgd}},
        f"TRADES-{steps}": {
            "perturbations": {"kl": trades},
            "terms": {"kl": {"type": "kl_divergence", "at": "kl", "weight": 6.0}},
        },
    }


def spec(setting: Setting, objective: Mapping[str, Any], batch: int, **changes: Any) -> dict[str, Any]:
    """The mapping of a spec; `changes` are whole blocks."""
    return {
        "llrflow": 1,
        "name": "kit",
        "data": {"name": "kit"},
        "model": dict(setting.model),
        "threat": {"norm": "linf", "epsilon": "8/255"},
        "objective": dict(objective),
        "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "train": {"steps": 1000, "batch_size": batch},
        "devices": {"count": 1},
        **changes,
    }


def facts_of(setting: Setting, train: int = 2**20, test: int = 2**14):
    """What llrflow asks to know of a dataset."""
    from llrflow.data.facts import DatasetFacts

    splits = {"train": train, "test": test}
    return DatasetFacts(
        "kit", "1.0.0", Path("kit"), setting.image_shape, setting.classes, splits, train, test, source="table"
    )


def compiled(setting: Setting, objective: Mapping[str, Any], batch: int, precision: str = "float32", count: int = 1):
    """The program of a spec on so many devices, compiled when it is first run."""
    import llrflow

    train = {"steps": 1000, "batch_size": batch, "precision": precision}
    mapping = spec(setting, objective, batch, train=train, devices={"count": count})
    return llrflow.compile(llrflow.load_spec(mapping), facts_of=lambda data: facts_of(setting))


def batch_of(setting: Setting, size: int):
    """Made-up examples."""
    from llrflow.program.state import Batch

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *setting.image_shape), np.uint8)
    return Batch(images, rng.integers(0, setting.classes, size, np.int32), np.arange(size, dtype=np.int32))


def emit(**row: Any) -> None:
    """Report a finding."""
    print(json.dumps(row), flush=True)


class Box:
    """The time that a part has."""

    def __init__(self, seconds: float) -> None:
        self._end, self._longest = time.monotonic() + seconds, 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def room(self, what: str) -> bool:
        """Whether there is time for another piece like the longest so far; where not, that is reported."""
        if self.left > 0.8 * self._longest:
            return True
        emit(cut=f"{what}: {self.left:.0f} s were left, the longest piece before took {self._longest:.0f} s")
        return False

    def took(self, seconds: float) -> None:
        """Note the time of a piece."""
        self._longest = max(self._longest, seconds)


def arguments() -> argparse.Namespace:
    """Those of a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1e6)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--child", type=Path)
    return parser.parse_args()
