"""The run folder: where its files are and what stands in them.

    spec.yaml        the resolved spec
    run.json         RunRecord
    metrics.jsonl    one JSON object per logged step: `step`, `objective`, `accuracy`, `loss`, terms, `gradient_norm`
    checkpoints/     Orbax steps, and manifests/<step>.json with the sha256 of every file of a step
    evaluation/      <step>.json (EvaluationRecord), <step>.<attack>.npz (verdicts), <step>.npz (images to look at)
    events/          TensorBoard

metrics.jsonl holds no times: an interrupted and resumed run writes the same bytes as an unbroken one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llrflow.base.errors import CheckpointError
from llrflow.base.files import write_atomic

FORMAT = 1
"""Of run.json."""
EVALUATION_FORMAT = 2
PACKAGES = ("llrflow", "jax", "jaxlib", "dm-haiku", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class Record(BaseModel):
    """Base of everything stored as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def write(self, path: Path) -> None:
        """Replace the file atomically."""
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode())


class DataRecord(Record):
    """The data a run was trained on; a resumed run must see the same."""

    image_shape: tuple[int, int, int]
    classes: int
    fingerprint: str
    train: int
    test: int


class ForkRecord(Record):
    """The run whose first steps a run took over, because they are its own as well."""

    run: str
    """Name of the other folder."""
    step: int


class LossRecord(Record):
    """A process of a group under Ray that was lost, whereupon the group was started again, or given up."""

    time: str
    """UTC."""
    step: int
    """Of the newest checkpoint."""
    process: int
    node: str
    """Address."""
    reason: str


class RunRecord(Record):
    """run.json."""

    format: Literal[1] = FORMAT
    name: str
    spec_hash: str
    state: Literal["training", "interrupted", "trained", "finished", "failed"]
    step: int
    steps: int
    seed: int
    data: DataRecord
    devices: list[str]
    versions: dict[str, str]
    git: str | None
    seconds: dict[str, float]
    """Wall time by part (`compile`, `train`, `evaluate`), added up over interruptions."""
    origins: dict[str, str]
    """Where each value of the spec came from (`file:line:col`, `--set path`); what is not listed is a default."""
    forward_equivalents: int | None = None
    """Cost of a training step in forward passes of its batch, by `llrflow plan`'s count; None in older runs."""
    error: str | None = None
    corrupt: list[str] = []
    """Training images that could not be decoded, with what is wrong with each; others took their place."""
    forked: ForkRecord | None = None
    """Where it begins, unless at step 0."""
    losses: list[LossRecord] = []
    """What `llrflow run --address` started again from."""


class Proportion(Record):
    """A share of n examples with its 95 % Wilson interval."""

    accuracy: float
    correct: int
    n: int
    interval: tuple[float, float]


class Distribution(Record):
    """Statistics of a per-example quantity."""

    n: int
    mean: float
    quantiles: dict[str, float]


class CurvePoint(Proportion):
    """Accuracy at one radius."""

    epsilon: float


class Distances(Record):
    """How near a minimum-norm attack found adversarial images; a misclassified image counts as 0, none found as far."""

    found: int
    """Correctly classified images for which it found one at all."""
    median: float | None
    """Median distance over all n images; None where it found too few."""
    beyond_epsilon: float
    """Share of all n images whose distance exceeds epsilon."""
    curve: list[CurvePoint]
    """Accuracy at several radii: the share of all n images with a larger distance."""
    distances: Distribution | None
    """Of those that were found."""


class StageRecord(Record):
    """One attack's work, or that of one attack inside a composed one."""

    attacked: int
    """Images it was run on."""
    kills: int
    """Of these, how many it changed."""
    queries: int
    """Forward passes, summed over images, those of gradients included."""
    gradients: int
    """Backward passes, summed over images."""
    seconds: float


class AttackRecord(Proportion):
    """Robust accuracy. In a cascade: images that are still correct after this attack and all before it.

    Without a cascade: images that are classified correctly and stay so under this attack.
    """

    attack: dict[str, Any]
    """The attack's configuration."""
    attacked: int
    """Images it was run on: in a cascade those that earlier attacks left correct, but all for a minimum-norm attack."""
    kills: int
    """Of these, how many it changed."""
    queries: int
    gradients: int
    seconds: float
    stages: dict[str, StageRecord] = {}
    """Of a composed attack: its attacks in their order."""
    minimum: Distances | None = None
    """Of a minimum-norm attack: distances, also beyond epsilon."""


class FlagRecord(Record):
    """One sign of gradient masking."""

    name: str
    fired: bool
    measured: dict[str, float]
    """The numbers that were compared."""
    meaning: str
    """What the sign is, and what to do about it."""


class EvaluationRecord(Record):
    """evaluation/<step>.json: the certificate of one evaluation."""

    format: Literal[2] = EVALUATION_FORMAT
    identity: str
    """Hash over everything that decides this record: made again, it is only read."""
    spec_hash: str
    checkpoint: int
    network_sha256: str
    """SHA-256 over the parameters and statistics that were evaluated: two checkpoints with the same are the same."""
    parameters: Literal["raw", "ema"]
    batch_norm: Literal["moving"] = "moving"
    threat: dict[str, Any]
    epsilon: str
    """The threat's epsilon as a fraction of 255 where it is one."""
    box: tuple[float, float] = (0.0, 1.0)
    n: int
    corrupt: list[str] = []
    """Images that cannot be decoded, with what is wrong with each; they count as misclassified."""
    ids_sha256: str
    """SHA-256 of the dataset's fingerprint and the ids that were evaluated: all of the split."""
    nominal: Proportion
    cascade: bool
    """Whether each attack was run only on what the earlier ones left correct."""
    attacks: dict[str, AttackRecord]
    """In the order in which they were run."""
    worst_case: Proportion
    """Images that are correct and that no attack changed."""
    gamma: dict[str, Distribution]
    """g(delta; x) in nats over the attacked images: where each attack ended (at its first success), and at noise."""
    checked: int
    """Images on which signs of masking were looked for; 0: not looked for."""
    flags: dict[str, FlagRecord]
    started: str
    """UTC."""
    versions: dict[str, str]

    @property
    def fired(self) -> list[FlagRecord]:
        """The signs of masking that were found."""
        return [flag for flag in self.flags.values() if flag.fired]


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.spec, self.run, self.metrics = (self.path / n for n in ("spec.yaml", "run.json", "metrics.jsonl"))
        self.checkpoints, self.evaluation, self.events = (
            self.path / n for n in ("checkpoints", "evaluation", "events")
        )

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

        Raises CheckpointError.
        """
        paths = self._evaluations()
        last = max((step for step, _ in paths), default=0)
        return {label: _read_evaluation(path) for (step, label), path in paths.items() if step == last}

    def _evaluations(self) -> dict[tuple[int, str], Path]:
        """Files of evaluations by checkpoint step and label, in order."""
        named = ((path, re.fullmatch(r"(\d+)(-[0-9a-f]{8})?", path.stem)) for path in self.evaluation.glob("*.json"))
        keys = {(int(match[1]), match[2] or ""): path for path, match in named if match}
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


def written(epsilon: float) -> str:
    """A radius as people write it: `8/255` where it is a multiple of 1/255 (or half of one), else the number."""
    for denominator in (255, 510):
        numerator = round(epsilon * denominator)
        if numerator and numerator / denominator == epsilon:
            return f"{numerator}/{denominator}"
    return f"{epsilon:g}"


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def git_state() -> str | None:
    """Commit of the working directory with `+changes` where it has any; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
