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

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import require_local, sole_owner, write_atomic
from llrflow.runs.looks import chosen
from llrflow.runs.records import EVALUATION_FORMAT, FORMAT, EvaluationRecord, Images, RunRecord

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

    def clear(self) -> None:
        """Delete a run's files, and nothing that a run does not write."""
        for path in (self.checkpoints, self.evaluation, self.validation, self.events):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.spec, self.metrics, self.run):  # last what marks the folder as a run's
            path.unlink(missing_ok=True)

    def record(self) -> RunRecord | None:
        """run.json, or None where no run has begun. Raises CheckpointError when it cannot be read."""
        try:
            content = self.run.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            fix = "make it readable, or name another folder"
            raise CheckpointError(str(self.run), f"cannot be read: {error.strerror}", fix) from None
        try:
            return RunRecord.model_validate_json(content)
        except ValidationError as error:
            refuse_newer(self.run, content, FORMAT)
            fix = "it was written by another version of llrflow, or damaged: use that version or another folder"
            raise CheckpointError(str(self.run), first_problem(error), fix) from None

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
        """The lines of metrics.jsonl, None for one that is only half there: a write that was cut short."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                found = None
            yield found if isinstance(found, dict) and "step" in found else None

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run writes them again."""
        kept = [json.dumps(line) + "\n" for line in self.metric_lines() if line["step"] <= step]
        write_atomic(self.metrics, "".join(kept).encode())

    def evaluations(self) -> dict[int, EvaluationRecord]:
        """Finished evaluations as the spec says, by checkpoint step. Raises CheckpointError."""
        return {step: _read_evaluation(path) for (step, label), path in self._evaluations().items() if not label}

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
        return {label: _read_evaluation(path) for (step, label), path in paths.items() if step == last}

    def _evaluations(self, data: str = "") -> dict[tuple[int, str], Path]:
        """Files of evaluations by checkpoint step and label, in order; `data` is a pattern of their data's label."""
        pattern = re.compile(rf"(\d+)((?:-[0-9a-f]{{8}})?{data})")
        named = ((path, pattern.fullmatch(path.stem)) for path in self.evaluation.glob("*.json"))
        keys = {(int(match[1]), match[2]): path for path, match in named if match}
        return {key: keys[key] for key in sorted(keys)}


def label_of(block: Any) -> str:
    """Sets an evaluation with other attacks than the spec's apart: `-` and 8 digits of a hash of its block."""
    return "-" + hashlib.sha256(json.dumps(block, sort_keys=True).encode()).hexdigest()[:8]


def _read_evaluation(path: Path) -> EvaluationRecord:
    content = path.read_bytes()
    try:
        return EvaluationRecord.model_validate_json(content)
    except ValidationError:
        refuse_newer(path, content, EVALUATION_FORMAT)
        fix = "it was written by another version of llrflow, or damaged: delete it, and evaluate again"
        raise CheckpointError(str(path), "is no evaluation that this version can read", fix) from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a JSON file, and in which field unless it is no JSON at all."""
    problem = error.errors()[0]
    return ": ".join([".".join(map(str, problem["loc"])), problem["msg"]] if problem["loc"] else [problem["msg"]])


def refuse_newer(path: Path, content: bytes, known: int) -> None:
    """Raise CheckpointError when a JSON file says that its format is newer than the `known` one."""
    try:
        number = json.loads(content)["format"]
    except (ValueError, TypeError, KeyError):
        return
    if isinstance(number, int) and number > known:
        got = f"has format {number}, and this version of llrflow reads formats up to {known}"
        raise CheckpointError(str(path), got, "install a newer llrflow")
