"""The run folder: where its files are, reading them, and whose it is.

    spec.yaml        the resolved spec
    run.json         RunRecord
    metrics.jsonl    one JSON object per logged step: `step`, `objective`, `accuracy`, `loss`, terms, `gradient_norm`;
                     and one per look of checkpoint.best: `step`, `validation.worst_case.accuracy` and others
    checkpoints/     Orbax steps, and manifests/<step>.json with the sha256 of every file of a step; in a step's folder
                     statistics.npz, BatchNorm statistics of averaged parameters
    evaluation/      <step>.json (EvaluationRecord), <step>.<attack>.npz (verdicts), <step>.npz (images to look at);
                     <step>-<hash> with other attacks than the spec's, <step>@<data> on other data than its test split;
                     <step>.<attack>.seconds, what verdicts took; shares/, verdicts of workers while they attack
    validation/      evaluations likewise, of images held back from training: looks by which something was chosen
    events/          TensorBoard

metrics.jsonl holds no times: an interrupted and resumed run writes the same bytes as an unbroken one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import TEMPORARY, read_regular, require_local, sha256_file, sole_owner
from llrflow.runs.looks import chosen, is_look
from llrflow.runs.records import EvaluationRecord, Images, MetricsRecord, RunRecord
from llrflow.runs.sealed import read_record

LARGEST_METRICS = 2**31
"""Bytes of the largest metrics.jsonl that is read."""

Step = int | Literal["best", "last"]
"""A checkpoint by its step; the best by looks at validation images; the newest intact one."""


class RunFolder:
    """Paths and small files of one run, and its lock."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.spec, self.run, self.metrics = (self.path / n for n in ("spec.yaml", "run.json", "metrics.jsonl"))
        self.checkpoints, self.evaluation, self.validation, self.events = (
            self.path / n for n in ("checkpoints", "evaluation", "validation", "events")
        )

    def evaluations_of(self, images: Images) -> Path:
        """Where evaluations of test or of validation images are kept."""
        return self.evaluation if images == "test" else self.validation

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder's lock, which a killed process lets go. Makes the folder where it is missing.

        Raises SpecError when another process has it, when the folder holds files that are not a run's, or is a URI.
        """
        require_local(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = next(
                (p.name for p in self.path.iterdir() if p.name != ".lock" and not p.name.startswith(".run.json.")), None
            )
        except OSError as error:
            got = f"cannot be a run folder: {error.strerror}"
            raise SpecError(str(self.path), got, "choose another --out") from None
        if foreign is not None and not self.run.exists():
            got = f"holds {foreign} but no run.json: it is not a run folder"
            raise SpecError(str(self.path), got, "choose an empty or a new folder as --out")
        with sole_owner(self.path, "llrflow process"):
            yield

    def unwritable(self) -> str | None:
        """What the system says of writing where the folder, or one in it, is there and cannot be written; else None."""
        lock, inside = self.path / ".lock", (self.checkpoints, self.evaluation)
        try:
            if lock.exists():
                lock.open("ab").close()  # also where the system is mounted to be read only
        except OSError as error:
            return error.strerror
        sealed = any(place.exists() and not os.access(place, os.W_OK) for place in (self.path, *inside))
        return os.strerror(errno.EACCES) if sealed else None

    def clean(self) -> None:
        """Remove files that a killed process had begun to write; the caller owns the folder."""
        for place in (self.path, self.evaluation, self.validation):
            for left in place.glob(f".*.{TEMPORARY}"):
                left.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete a run's files, and nothing that a run does not write."""
        for path in (self.checkpoints, self.evaluation, self.validation, self.events):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.spec, self.metrics, self.run):  # last what marks the folder as a run's
            path.unlink(missing_ok=True)

    def record(self) -> RunRecord | None:
        """run.json, or None where no run has begun. Raises CheckpointError when it cannot be read."""
        fix = "it was written by another version of llrflow, or damaged: use that version or another folder"
        try:
            return read_record(RunRecord, self.run, fix)
        except FileNotFoundError:
            return None

    def existing(self) -> RunRecord:
        """run.json of a run that has begun. Raises CheckpointError where there is none, or it cannot be read."""
        record = self.record()
        if record is None or not self.spec.exists():
            raise CheckpointError(str(self.path), "is not a run folder", "name one that `llrflow run` made")
        return record

    def metric_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; half-written ones are left out."""
        return (line for line in self.metrics_as_written() if line is not None)

    def metrics_as_written(self) -> Iterator[dict[str, Any] | None]:
        """The lines of metrics.jsonl, None for one that is only half there (a write that was cut short), or no run's.

        Raises CheckpointError where it cannot be read.
        """
        return map(metric_line, self._metrics_content().splitlines(keepends=True))

    def metrics_up_to(self, step: int) -> bytes:
        """The intact lines up to `step`: those after it a resumed run writes again."""
        kept = [json.dumps(line) + "\n" for line in self.metric_lines() if line["step"] <= step]
        return "".join(kept).encode()

    def metrics_known(self, content: bytes | None = None) -> MetricsRecord:
        """What run.json keeps of metrics.jsonl, or of a content that it is to have."""
        return _summary(self._metrics_content() if content is None else content)

    def metrics_problem(self, record: RunRecord) -> str | None:
        """What is not as run.json knows it of metrics.jsonl, or None."""
        known = record.metrics
        if known is None:
            return None
        content = self._metrics_content()
        if hashlib.sha256(content[: known.bytes]).hexdigest() == known.sha256 and len(content) >= known.bytes:
            return None
        there = _summary(content).lines
        what = f"holds {there} of {known.lines} lines" if there < known.lines else "has changed since it was written"
        return f"{self.metrics} {what}"

    def _metrics_content(self) -> bytes:
        try:
            return read_regular(self.metrics, LARGEST_METRICS)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            got, fix = f"cannot be read: {error.strerror}", "make it readable, or remove it"
            raise CheckpointError(str(self.metrics), got, fix) from None

    def spec_problem(self, record: RunRecord) -> str | None:
        """What to tell of a spec.yaml that is not as the run wrote it, or None."""
        try:
            if record.spec_sha256 is None or sha256_file(self.spec) == record.spec_sha256:
                return None
        except OSError as error:
            return f"{self.spec} cannot be read: {error.strerror}"
        return f"{self.spec} was edited after the run: what it says need not be what was trained"

    def _evaluation_at(self, path: Path, step: int) -> EvaluationRecord:
        fix = "it was written by another version of llrflow, or damaged: delete it, and evaluate again"
        found, run = read_record(EvaluationRecord, path, fix), self.record()
        if found.checkpoint != step:
            raise CheckpointError(str(path), f"is an evaluation of step {found.checkpoint}", fix)
        if run is not None and step > run.taken_over and found.spec_hash != run.spec_hash:
            raise CheckpointError(str(path), f"is an evaluation of another spec's run (hash {found.spec_hash})", fix)
        return found

    def evaluations(self) -> dict[int, EvaluationRecord]:
        """Finished evaluations as the spec says, by checkpoint step. Raises CheckpointError."""
        return {step: self._evaluation_at(p, step) for (step, label), p in self._evaluations().items() if not label}

    def last_evaluations(self) -> dict[str, EvaluationRecord]:
        """Finished evaluations of the last step that has any, by label: empty where the spec named the attacks.

        Those of the best checkpoint if looks have chosen one and it was evaluated. Those on other data than the spec's
        are not among them. Raises CheckpointError.
        """
        return self._of_last_step(self._evaluations())

    def evaluations_elsewhere(self) -> dict[str, EvaluationRecord]:
        """Finished evaluations on other data than the spec's, of the last step that has any, by label.

        Raises CheckpointError.
        """
        return self._of_last_step(self._evaluations(r"@[^.]+"))

    def _of_last_step(self, paths: dict[tuple[int, str], Path]) -> dict[str, EvaluationRecord]:
        found, steps = chosen(self.metric_lines()), {step for step, _ in paths}
        last = found.best if found is not None and found.best in steps else max(steps, default=0)
        return {label: self._evaluation_at(path, step) for (step, label), path in paths.items() if step == last}

    def _evaluations(self, data: str = "") -> dict[tuple[int, str], Path]:
        """Files of evaluations by checkpoint step and label, in order; `data` is a pattern of their data's label."""
        pattern = re.compile(rf"(\d+)((?:-[0-9a-f]{{8}})?{data})")
        named = ((path, pattern.fullmatch(path.stem)) for path in self.evaluation.glob("*.json"))
        keys = {(int(match[1]), match[2]): path for path, match in named if match}
        return {key: keys[key] for key in sorted(keys)}


def label_of(block: Any) -> str:
    """Sets an evaluation with other attacks than the spec's apart: `-` and 8 digits of a hash of its block."""
    return "-" + hashlib.sha256(json.dumps(block, sort_keys=True).encode()).hexdigest()[:8]


def _summary(content: bytes) -> MetricsRecord:
    lines = [line for line in map(metric_line, content.splitlines(keepends=True)) if line is not None]
    looks = sum(map(is_look, lines))
    return MetricsRecord(lines=len(lines), looks=looks, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def metric_line(text: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for one that no run wrote, or only half."""
    try:
        found = json.loads(text) if text.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    return found if all(type(value) in (int, float) for value in found.values()) else None
