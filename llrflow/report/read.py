"""Run folders and sweeps as a report needs them: what is there, and what is missing with the command that makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.arrays import NotArrays, read_npz
from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import has_owner
from llrflow.runs.folder import RunFolder
from llrflow.runs.looks import Chosen, chosen
from llrflow.runs.records import EvaluationRecord, FlagRecord, RunRecord
from llrflow.runs.sealed import read_record, read_sealed
from llrflow.spec.source import read_source
from llrflow.sweep.tracking.records import SweepRecord

KEYS = {
    "strength": {"steps", "restarts", "epsilon"},
    "linearity": {"perturbations"},
    "surface": {"axis", "images", "threat"},
}
"""What each study's file must hold."""

STUDIES = tuple(KEYS)

SHOWN = {"ids", "labels", "images", "delta", "attacks", "changed", "clean", "attacked"}
"""What the file of images to look at must hold, a row of each for an image."""

NEEDED = {"data": {"name": str}, "model": {"type": str}, "threat": {"norm": str, "epsilon": int | float}}
"""What of spec.yaml a report cannot do without."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation with what lies beside it."""

    label: str
    """Empty where the run's spec named the attacks."""
    record: EvaluationRecord
    studies: dict[str, dict[str, Any]]
    examples: dict[str, np.ndarray]
    """ids, labels, images and delta [M,H,W,C], attacks, changed, clean and attacked [M,K]; empty where not kept."""


@dataclass(frozen=True)
class ReadRun:
    """A run folder."""

    path: Path
    name: str
    """Of no other of the report: the trial, the spec's name, the folder's, or its path."""
    record: RunRecord
    spec: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    half_written: int
    """Lines of metrics.jsonl that were left out."""
    evaluations: list[Evaluated]
    """Of the last checkpoint that was evaluated, that of the spec's own attacks first."""
    elsewhere: list[EvaluationRecord]
    """On other data than the spec's test split."""

    @property
    def main(self) -> Evaluated | None:
        """The evaluation that a report's tables begin with."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def fired(self) -> list[FlagRecord]:
        """The signs of gradient masking that any evaluation found, each once."""
        found = {flag.name: flag for evaluated in self.evaluations for flag in evaluated.record.fired}
        return list(found.values())

    def study(self, title: str) -> dict[str, Any] | None:
        """A study of the checkpoint, from whichever evaluation it was made with."""
        return next((e.studies[title] for e in self.evaluations if title in e.studies), None)

    @property
    def chosen(self) -> Chosen | None:
        """What looks at validation images have chosen."""
        return chosen(self.metrics)

    def missing(self) -> Iterator[str]:
        """What a complete report needs and the folder lacks, each with the command that makes it."""
        step, steps = self.record.step, self.record.steps
        if has_owner(self.path):
            yield f"{self.name} is under way, at step {step} of {steps}"
        elif self.record.state != "finished" and step < steps:
            again = f"llrflow run {self.path / 'spec.yaml'} --out {self.path}"
            why = f" ({self.record.error})" if self.record.error else ""
            yield f"{self.name} is {self.record.state} at step {step} of {steps}{why}; to continue: {again}"
        if (imported := self.record.imported) is not None:
            yield f"{self.name} was not trained here: it was imported from {imported.path}, SHA-256 {imported.sha256}"
        yield from changed_files(self.path, self.record)
        if self.half_written:
            path = self.path / "metrics.jsonl"
            yield f"{self.name}: {self.half_written} half-written line(s) of {path} were left out"
        if self.main is None:
            if step or self.record.imported is not None:
                yield f"{self.name} has no evaluation; to make one: llrflow evaluate {self.path}"
            return
        found = self.main.record.checkpoint
        if self.main.record.classes is None:
            file = RunFolder(self.path).evaluation / f"{found}{self.main.label}.json"
            anew = f"delete {file}, and llrflow evaluate {self.path}"
            yield f"{self.name}: an earlier version evaluated it, without accuracies by class; to make them: {anew}"
        if found < step and (self.chosen is None or found != self.chosen.best):
            yield f"{self.name} was evaluated at step {found} of {step}; for the last: llrflow evaluate {self.path}"


@dataclass(frozen=True)
class ReadSweep:
    """A sweep's folder."""

    path: Path
    record: SweepRecord


def read(paths: Sequence[Path]) -> tuple[list[ReadRun], list[ReadSweep], list[str]]:
    """The runs and sweeps of folders: of run folders, of sweeps (with their best runs), or of folders that hold runs.

    What cannot be read among others is left out, and told in the third list. Raises CheckpointError where there is
    nothing, or where what was named by itself cannot be read.
    """
    folders: dict[Path, str] = {}
    sweeps: list[ReadSweep] = []
    for path in paths:
        if (path / "run.json").exists():
            folders[path] = ""
        elif (path / "sweep.json").exists():
            sweeps.append(_sweep(path))
        else:
            held = sorted(p.parent for p in path.glob("*/run.json"))
            if not held:
                got = "holds no run and no sweep" if path.is_dir() else "is no folder"
                raise CheckpointError(str(path), got, "name a run folder, a sweep's, or a folder that holds runs")
            folders |= dict.fromkeys(held, "")
    for sweep in sweeps:
        folders |= _best_runs(sweep, "" if len(sweeps) == 1 else f"{sweep.path.name} ")
    folders = dict({path.resolve(): (path, name) for path, name in folders.items()}.values())
    runs, unread = [], []
    for path, name in folders.items():
        try:
            runs.append(_run(path, name))
        except CheckpointError as error:
            if path in paths or len(folders) == 1:
                raise
            unread.append(f"left out: {error}")
    for called in (lambda run: run.path.name, lambda run: str(run.path)):
        names = [run.name for run in runs]
        runs = [dataclasses.replace(run, name=called(run)) if names.count(run.name) > 1 else run for run in runs]
    return runs, sweeps, unread


def changed_files(path: Path, record: RunRecord) -> Iterator[str]:
    """What of a run folder's files is not as the run left it, or was not when the run went on."""
    folder = RunFolder(path)
    yield from record.found_changed
    yield from filter(None, (folder.metrics_problem(record), folder.spec_problem(record)))


MOST_OF_A_SWEEP = 4
"""Runs of a sweep that a report shows by themselves."""


def _best_runs(sweep: ReadSweep, prefix: str) -> dict[Path, str]:
    """Run folders of the best configurations, with what to call them."""
    record, found = sweep.record, {}
    able = [c for c in record.configurations if c.excluded is None]
    winners = [c for c in able if c.configuration in record.winners.values()]
    for configuration in (winners or able)[:MOST_OF_A_SWEEP]:
        trial, seeds = record.trials[configuration.trials[0]], len(configuration.trials)
        variant = f"{trial.variant}, " if trial.variant else ""
        one_of = f", seed {trial.seed}" if seeds > 1 else ""
        found[sweep.path / "runs" / trial.run] = f"{prefix}{variant}trial {trial.number}{one_of}"
    return found


def _sweep(path: Path) -> ReadSweep:
    fix = f"write it anew with `llrflow sweep {path / 'sweep.yaml'} --out {path} --resume`"
    return ReadSweep(path, read_record(SweepRecord, path / "sweep.json", fix))


def _run(path: Path, name: str) -> ReadRun:
    folder = RunFolder(path)
    record = folder.record()
    if record is None:
        raise CheckpointError(str(path), "holds no run.json", "name a run folder")
    lines = list(folder.metrics_as_written())
    try:
        spec = read_source(str(folder.spec)).data
    except SpecError as error:
        raise CheckpointError(error.where, error.got, "restore the file, or leave this run out") from None
    for block, fields in NEEDED.items():
        for field, kind in fields.items():
            if not isinstance(spec.get(block), dict) or not isinstance(spec[block].get(field), kind):
                got = f"has no {block}.{field}, or not as a run writes it"
                raise CheckpointError(str(folder.spec), got, "restore the file, or leave this run out")
    evaluations = [_evaluated(folder, label, record) for label, record in folder.last_evaluations().items()]
    kept = [line for line in lines if line is not None]
    others = list(folder.evaluations_elsewhere().values())
    return ReadRun(path, name or record.name, record, spec, kept, len(lines) - len(kept), evaluations, others)


def _evaluated(folder: RunFolder, label: str, record: EvaluationRecord) -> Evaluated:
    stem, studies, examples = f"{record.checkpoint}{label}", {}, {}
    for title in STUDIES:
        path = folder.evaluation / f"{stem}.{title}.json"
        fix = "delete it, and make the study again"
        with suppress(FileNotFoundError):
            studies[title] = read_sealed(path, fix)
            if not isinstance(studies[title], dict) or not studies[title].keys() >= KEYS[title]:
                raise CheckpointError(str(path), "is damaged", fix)
    path = folder.evaluation / f"{stem}.npz"
    if path.exists():
        try:
            examples = read_npz(path)
            if not examples.keys() >= SHOWN or len({array.shape[:1] for array in examples.values()}) > 1:
                raise NotArrays("holds other arrays")
        except NotArrays:
            raise CheckpointError(str(path), "is damaged", "delete it: the report does without it") from None
    return Evaluated(label, record, studies, examples)
