"""specs/fashion_mnist_llr.yaml from spec to certificate, out of the four idx files; made-up images in a dry run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from in_memory import InMemory, made_up, reading
from setting import ROOT, Setting, arguments, emit

import llrflow
from llrflow.data.idx import read_idx

SPEC = ROOT / "specs" / "fashion_mnist_llr.yaml"
SETTING = Setting({}, (28, 28, 1), 10, (64,))
DRY: dict[str, Any] = {
    "model": {"type": "cnn", "channels": [4, 4], "kernel": 4, "strides": [2, 2], "dense": 8},
    "train": {"epochs": None, "steps": 4, "batch_size": 16, "log_every": 2},
    "evaluate.batch_size": 16,
    "evaluate.attacks.pgd.steps": 2,
    "evaluate.checks.examples": 0,
}


def main(out: Path, dry: bool, data: Path | None) -> None:
    if data is None and not dry:
        emit(cut="Fashion-MNIST: its files were not given; name their directory with --data")
        return
    if dry:
        splits = made_up(SETTING, 64, 32)
    else:
        arrays = read_idx(data)
        splits = {role: InMemory(role, *pair, SETTING.classes) for role, pair in arrays.items()}
    spec = llrflow.load_spec(SPEC, {"devices.count": 1, **(DRY if dry else {})})
    began = time.perf_counter()
    with reading(splits, SETTING):
        done = llrflow.run(spec, out / "fashion_mnist")
    found = done.evaluation
    emit(
        images=found.nominal.n,
        nominal=found.nominal.accuracy,
        worst_case=found.worst_case.accuracy,
        seconds=time.perf_counter() - began,
        parts=done.record.seconds,
        precision=spec.train.precision,
    )


if __name__ == "__main__":
    given = arguments()
    main(given.out, given.dry, given.data)
