"""What stands in run.json and evaluation/<step>.json of a run folder; each class names its file and its place in it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, model_validator

from llrflow.base.files import write_atomic
from llrflow.base.sealed import sealed

FORMAT = 1
"""Of run.json."""

EVALUATION_FORMAT = 2
"""Of evaluation/<step>.json."""

PACKAGES = ("llrflow", "jax", "jaxlib", "dm-haiku", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


Images = Literal["test", "validation"]
"""What is evaluated: the images of `data.test`, or those that `data.validation` holds back from training."""


class Record(BaseModel):
    """Base of everything stored as JSON, in a run folder, an export or a sweep's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def write(self, path: Path) -> None:
        """Replace the file atomically, sealed."""
        write_atomic(path, sealed(json.loads(self.model_dump_json()), path.name))


class DataRecord(Record):
    """run.json, `data`: the data a run was trained on; a resumed run must see the same."""

    image_shape: tuple[int, int, int]
    classes: int
    fingerprint: str
    train: int
    test: int
    validation: int = 0
    """Images held back from training; they do not count in `train`."""
    extra: int = 0
    """Images of `data.extra`."""


class ForkRecord(Record):
    """run.json, `forked`: the run whose first steps a run took over, because they are its own as well."""

    run: str
    """Name of the other folder."""
    step: int


class StartRecord(Record):
    """run.json, `start`: what the network began with in place of fresh arrays (`model.start`)."""

    path: str
    """Of the other run, or of the file."""
    step: int | None
    """Of the other run."""
    head: str | None
    """Module that was initialised freshly all the same."""
    sha256: str
    """Over names, types, shapes and values of all arrays of the source."""


class ImportRecord(Record):
    """run.json, `imported`: the file that the network was read from, in place of a training."""

    path: str
    sha256: str
    """Of the file."""
    layout: str
    """What its arrays are called by."""
    arrays: int
    set: dict[str, Any]
    """Fields of the spec that the file or its layout gave, by path."""


class LossRecord(Record):
    """run.json, one of `losses`: a process of a group under Ray was lost, and the group started again or given up."""

    time: str
    """UTC."""
    step: int
    """Of the newest checkpoint."""
    process: int
    node: str
    """Address."""
    reason: str


class StretchRecord(Record):
    """run.json, one of `stretches`: what trained the run from a step on."""

    step: int
    devices: list[str]
    versions: dict[str, str]


class MetricsRecord(Record):
    """run.json, `metrics`: the beginning of metrics.jsonl, as it was when run.json was written last."""

    lines: int
    looks: int
    """Those of `lines` that are looks of `checkpoint.best`."""
    bytes: int
    sha256: str
    """Over the first `bytes` bytes."""


class RunRecord(Record):
    """run.json: how far the run is, and what it was made with."""

    format: Literal[1] = FORMAT
    name: str
    spec_hash: str
    stored_hash: str | None = None
    """The same of what spec.yaml holds, where paths are absolute and `train.accumulate: auto` is a number."""
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
    trained_on_test: int | None = None
    """Test images that were trained on as well; None in older runs."""
    error: str | None = None
    corrupt: list[str] = []
    """Training images that could not be decoded, with what is wrong with each; others took their place."""
    forked: ForkRecord | None = None
    """Where it begins, unless at step 0."""
    start: StartRecord | None = None
    """What its network began with; None for fresh arrays."""
    imported: ImportRecord | None = None
    """Where its network comes from if it was not trained: `step` and `steps` are 0."""
    stretches: list[StretchRecord] = []
    """Where the run was resumed with other versions or on other devices than those before; `devices` and `versions` are
    those that it began with."""
    spec_sha256: str | None = None
    """Of spec.yaml as the run wrote it; None in older runs."""
    metrics: MetricsRecord | None = None
    """What of metrics.jsonl is known; None in older runs, and before there is any."""
    found_changed: list[str] = []
    """What the run met when it went on that was not as it had left it."""
    losses: list[LossRecord] = []
    """What `llrflow run --address` started again from."""

    @property
    def taken_over(self) -> int:
        """The step up to which everything is that of another run; -1 where nothing is."""
        return -1 if self.forked is None else self.forked.step


class Proportion(Record):
    """evaluation/<step>.json, `nominal` and `worst_case`: a share of n examples with its 95 % Wilson interval."""

    accuracy: float
    correct: int
    n: int
    interval: tuple[float, float]

    @model_validator(mode="after")
    def _holds_together(self) -> Proportion:
        if not 0 <= self.correct <= self.n or abs(self.accuracy * self.n - self.correct) > 1e-6 * self.n:
            raise ValueError(f"an accuracy of {self.accuracy} is not {self.correct} of {self.n}")
        return self


class Distribution(Record):
    """evaluation/<step>.json, one of `gamma`, and `distances` of Distances: statistics of a per-example quantity."""

    n: int
    mean: float
    quantiles: dict[str, float]


class CurvePoint(Proportion):
    """evaluation/<step>.json, one of the `curve` of Distances: accuracy at one radius."""

    epsilon: float


class Distances(Record):
    """evaluation/<step>.json, `minimum` of an AttackRecord: how near a minimum-norm attack found adversarial images.

    A misclassified image counts as 0, one for which none was found as far.
    """

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
    """evaluation/<step>.json, one of the `stages` of an AttackRecord: the work of one attack inside a composed one."""

    attacked: int
    """Images it was run on."""
    kills: int
    """Of these, how many it changed."""
    queries: int
    """Forward passes, summed over images, those of gradients included."""
    gradients: int
    """Backward passes, summed over images."""
    seconds: float
    """Of all workers together."""


class AttackRecord(Proportion):
    """evaluation/<step>.json, one of `attacks`: robust accuracy.

    In a cascade: images that are still correct after this attack and all before it.
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


class OtherData(Record):
    """evaluation/<step>@<data>.json, `data`: prepared data that is not the test split of the run's spec."""

    name: str
    config: str | None
    version: str
    split: str

    @property
    def title(self) -> str:
        """As `--on-data` names it: `cifar10_c/fog:severity_3`."""
        return f"{self.name}{f'/{self.config}' if self.config else ''}:{self.split}"

    @property
    def label(self) -> str:
        """What its files have in their names, and no other data's: `@cifar10_c+fog+severity_3`."""
        parts = (self.name, self.config or "", self.split)
        return "@" + "+".join(quote(part, safe="").replace(".", "%2E") for part in parts)


class ClassesRecord(Record):
    """evaluation/<step>.json, `classes`: accuracy by class, and who is taken for whom.

    Without an attack (`nominal`) an image is taken for the class that is predicted. Under an attack, in a cascade under
    it and those before it, and in the `worst case` under all, it is taken for the class at the image that the first of
    them to change it returned, in the order in which they were run; where none did, it is taken as without.
    """

    names: list[str]
    """Of the classes, in their order."""
    n: list[int]
    """Test images of each class; a corrupt one is of none."""
    accuracy: dict[str, list[float | None]]
    """By class: `nominal`, under each attack, `worst case`; None where a class has no images."""
    taken: dict[str, dict[int, dict[int, int]]]
    """Confusion matrices of the same, {true class: {class it is taken for: images}}, without zeros; -1: logits that are
    not finite."""

    def name_of(self, at: int) -> str:
        """A class by its name, also where none was predicted."""
        return self.names[at] if at >= 0 else "not finite"

    def mistaken(self, situation: str) -> dict[tuple[int, int], int]:
        """Images by (class, other class that they are taken for)."""
        rows = self.taken[situation].items()
        return {(true, other): n for true, row in rows for other, n in row.items() if other != true}


class SubsetRecord(Record):
    """evaluation/<step>.json, `subset`: how the images were drawn, where they are not all (`evaluate.images`)."""

    of: int
    """Images there are."""
    seed: int
    stratified: bool
    """Whether each class has its share of them."""


class FlagRecord(Record):
    """evaluation/<step>.json, one of `flags`: a sign of gradient masking."""

    name: str
    fired: bool
    measured: dict[str, float]
    """The numbers that were compared."""
    meaning: str
    """What the sign is, and what to do about it."""


class ThreatRecord(Record):
    """evaluation/<step>.json, one of `threats`: an image is robust within it if it stands under all its attacks."""

    threat: dict[str, Any]
    epsilon: str
    """As that of a Certificate."""
    worst_case: Proportion
    """Images that are correct and that no attack within this threat changed."""


class Certificate(Record):
    """What an evaluation found, of a checkpoint of a run or of any function."""

    threat: dict[str, Any]
    """Of the run; what was attacked within, unless there are `threats`."""
    epsilon: str
    """The threat's epsilon as a fraction of 255 where it is one."""
    threats: dict[str, ThreatRecord] = {}
    """By name, where there are several; names of attacks, of `gamma` and of flags then begin with them: `l2.pgd`."""
    box: tuple[float, float] = (0.0, 1.0)
    n: int
    """Images."""
    nominal: Proportion
    cascade: bool
    """Whether each attack was run only on what the earlier ones left correct."""
    attacks: dict[str, AttackRecord]
    """In the order in which they were run."""
    worst_case: Proportion
    """Images that are correct and that no attack changed; of several threats within any, so that it is that of their
    union."""
    classes: ClassesRecord | None = None
    """The same by class; None where the evaluation was made before classes were kept."""
    gamma: dict[str, Distribution]
    """g(delta; x) in nats over the attacked images: where each attack ended (at its first success), and at noise."""
    checked: int
    """Images on which signs of masking were looked for; 0: not looked for."""
    flags: dict[str, FlagRecord]
    started: str
    """UTC."""
    versions: dict[str, str]

    def by_threat(self) -> dict[str, dict[str, AttackRecord]]:
        """The attacks within each threat, by its name; an empty one where there is one threat."""
        if not self.threats:
            return {"": self.attacks}
        return {
            name: {attack: made for attack, made in self.attacks.items() if attack.startswith(f"{name}.")}
            for name in self.threats
        }

    def threat_of(self, attack: str) -> dict[str, Any]:
        """What an attack was made within."""
        within = self.threats.get(attack.partition(".")[0])
        return self.threat if within is None else within.threat

    @property
    def shares(self) -> dict[str, Proportion]:
        """Every accuracy: `nominal`, under each attack, within each of several threats, in the `worst case`."""
        found: dict[str, Proportion] = {"nominal": self.nominal}
        for name, attacks in self.by_threat().items():
            found |= attacks
            if name:
                found[worst_within(name)] = self.threats[name].worst_case
        return {**found, "worst case": self.worst_case}

    @property
    def attacked_within(self) -> list[tuple[str, dict[str, Any]]]:
        """Every threat with its name: worst cases compare where these are equal."""
        several = [(name, within.threat) for name, within in self.threats.items()]
        return several or [("", self.threat)]

    @property
    def within(self) -> str:
        """The threat in words: `linf 8/255`, or `the union of linf 8/255, l2 0.5`."""
        if not self.threats:
            return f"{self.threat['norm']} {self.epsilon}"
        each = (f"{made.threat['norm']} {made.epsilon}" for made in self.threats.values())
        return f"the union of {', '.join(each)}"

    @property
    def fired(self) -> list[FlagRecord]:
        """The signs of masking that were found."""
        return [flag for flag in self.flags.values() if flag.fired]


class EvaluationRecord(Certificate):
    """evaluation/<step>.json: the certificate of one evaluation.

    One with other attacks than the spec's is evaluation/<step>-<hash>.json, one of validation images validation/ and
    the same.
    """

    format: Literal[2] = EVALUATION_FORMAT
    identity: str
    """Hash over everything that decides this record: made again, it is only read."""
    spec_hash: str
    checkpoint: int
    network_sha256: str
    """SHA-256 over the parameters and statistics that were evaluated: two checkpoints with the same are the same."""
    parameters: Literal["raw", "ema"]
    batch_norm: Literal["moving"] = "moving"
    products: Literal["float32"] | None = None
    """What products of float32 numbers were computed in; None in a record of an earlier version: what JAX takes."""
    statistics_images: int | None = None
    """Training images that the moving statistics were estimated from, for averaged parameters; None: in training."""
    images: Images = "test"
    """Those of `data.test`, or those held back by `data.validation`."""
    corrupt: list[str] = []
    """Images that cannot be decoded, with what is wrong with each; they count as misclassified."""
    subset: SubsetRecord | None = None
    """Of a random part of the images; None: all of them were evaluated."""
    ids_sha256: str
    """SHA-256 of the dataset's fingerprint and the ids that were evaluated: equal only for the same images."""
    data: OtherData | None = None
    """What the images are of, if not of the test split of the run's spec."""

    @property
    def counted(self) -> str:
        """How many images: `360`, or `100 of 360`."""
        return f"{self.n:,}" if self.subset is None else f"{self.n:,} of {self.subset.of:,}"

    @property
    def described(self) -> str:
        """Which images, in words: `360 test images`, or `100 of 360 test images, random, seed 0`."""
        what = f"{self.images} images" if self.data is None else f"images of {self.data.title}"
        if self.subset is None:
            return f"{self.counted} {what}"
        drawn = "random by class" if self.subset.stratified else "random"
        return f"{self.counted} {what}, {drawn}, seed {self.subset.seed}"


def worst_within(threat: str) -> str:
    """What the worst case within one of several threats is called in tables: no attack has a space in its name."""
    return f"{threat} worst case"


def written(epsilon: float) -> str:
    """A radius as specs have it: a number of few digits (0.1) as it is, else `8/255` where it is a multiple of 1/255 or
    of half of that, else the number to six digits."""
    if float(f"{epsilon:g}") == epsilon:
        return f"{epsilon:g}"
    for denominator in (255, 510):
        numerator = round(epsilon * denominator)
        if numerator and numerator / denominator == epsilon:
            return f"{numerator}/{denominator}"
    return f"{epsilon:g}"


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # llrflow out of its sources; images that come without TFDS
        return "not installed"


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
