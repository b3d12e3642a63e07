"""A run that begins in the middle: it is the same as another one up to a step, and takes that over."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import get_args

from llrflow.base.files import write_atomic
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import ForkRecord, Images
from llrflow.spec.schema import Spec


def fork(source: RunFolder, pinned: Checkpoints, step: int, spec: Spec, digest: str, out: Path) -> None:
    """Make the run folder `out` of a spec, with hash `digest`, that continues at `step` of the run in `source`.

    `pinned` holds the checkpoint; the lines and evaluations up to it come along. The folder appears whole or not at
    all. Raises CheckpointError when `source` is no run, FileNotFoundError when it has no such checkpoint.
    """
    begun = out.with_name(f".{out.name}.fork")
    shutil.rmtree(begun, ignore_errors=True)
    folder = RunFolder(begun)
    pinned.copy_to(Checkpoints(folder.checkpoints, spec_hash=digest), step)
    shutil.copyfile(source.metrics, folder.metrics)
    write_atomic(folder.metrics, folder.metrics_up_to(step))
    shutil.copytree(source.events, folder.events)
    for images in get_args(Images):
        theirs, ours = source.evaluations_of(images), folder.evaluations_of(images)
        for path in theirs.iterdir() if theirs.exists() else ():
            number = re.match(r"(\d+)[-.]", path.name)
            if number and int(number[1]) <= step:
                ours.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, ours / path.name)
    record = source.existing()
    record.model_copy(
        update={
            "name": spec.name,
            "spec_hash": digest,
            "state": "interrupted",
            "step": step,
            "seconds": {},
            "origins": spec.origins(),
            "error": None,
            "losses": [],
            "metrics": folder.metrics_known(),
            "spec_sha256": None,
            "stored_hash": None,
            "forked": ForkRecord(run=source.path.name, step=step),
        }
    ).write(folder.run)
    shutil.rmtree(out, ignore_errors=True)  # nothing but a lock, if that: no run began there
    begun.rename(out)
