"""What the files of a run folder say of a trial: how far it is, and what each look at it measured."""

from __future__ import annotations

from collections.abc import Iterable

from llrflow.base.errors import CheckpointError
from llrflow.runs.folder import RunFolder
from llrflow.runs.looks import is_look, measured
from llrflow.runs.records import EvaluationRecord, Images, RunRecord
from llrflow.runs.sealed import read_record


def look_at(folder: RunFolder, step: int, label: str, images: Images) -> dict[str, float] | None:
    """What a look measured, by the names of metrics, from the run folder's files; None where none is on record."""
    return next(iter(looks_at(folder, [step], label, images)), None)


def looks_at(folder: RunFolder, steps: Iterable[int], label: str, images: Images) -> list[dict[str, float]]:
    """What the looks at these steps measured, those that are on record."""
    evaluations = [found for step in steps if (found := evaluation_of(folder, step, label, images)) is not None]
    lines, looks = list(folder.metric_lines()) if evaluations else [], []
    for found in evaluations:
        logged = [line["objective"] for line in lines if line["step"] <= found.checkpoint and not is_look(line)]
        objective = {"objective": logged[-1]} if logged else {}
        looks.append({"step": found.checkpoint, **measured(found), **objective})
    return looks


def record_of(folder: RunFolder) -> RunRecord | None:
    """A trial's run.json; None where there is none that can be read."""
    try:
        return folder.record()
    except CheckpointError:
        return None


def evaluation_of(folder: RunFolder, step: int, label: str = "", images: Images = "test") -> EvaluationRecord | None:
    """An evaluation of a trial, by default the one that finished it; None where there is none that can be read."""
    try:
        return read_record(EvaluationRecord, folder.evaluations_of(images) / f"{step}{label}.json", "")
    except (FileNotFoundError, CheckpointError):
        return None
