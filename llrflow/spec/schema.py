"""The blocks of a spec. Each block and each component is its own schema; this file only puts them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, PrivateAttr, model_validator

from llrflow.attacks.studies import Linearity, Strength, Surface
from llrflow.base.memory_size import Bytes, parse_bytes
from llrflow.base.validation import invalid, raise_at
from llrflow.components.fields import Chosen, Traced
from llrflow.components.optimizers import Duration
from llrflow.components.plugins import plugin_identity
from llrflow.components.registry import Component, ResultName, make
from llrflow.data.schema import Data
from llrflow.data.subset import SubsetOrCount
from llrflow.method.objective import Objective
from llrflow.method.threat import Threat
from llrflow.models.precision import Precision
from llrflow.models.repeated import Remat
from llrflow.spec.plugins import plugin_path
from llrflow.spec.source import Source
from llrflow.spec.start import ModelEntry
from llrflow.spec.sweep_schema import RunTrackers, Sweep
from llrflow.spec.threats import NamedThreat, UnderThreat


def _check_memory(raw: Any) -> Any:
    return raw if raw == "auto" else parse_bytes(raw)


def _check_parts(raw: Any) -> Any:
    if raw == "auto" or (type(raw) is int and raw >= 1):
        return raw
    raise invalid("parts", "is no number of parts; write 1, 2, 4 ..., or auto")


class OptimizerEntry(Component):
    """What every optimizer has besides optax's own arguments."""

    clip_norm: Annotated[float | None, Traced(gt=0)] = None
    """Scale the gradient down to this global l2 norm before the optimizer sees it."""

    decayed: Literal["all", "weights"] = "all"
    """What weight decay acts on: all parameters, or the weights of layers only, which leaves out biases, the scales and
    offsets of norm layers, and tokens and positions of a transformer."""

    scale_for_batch: Literal["no", "linear", "sqrt"] = "no"
    """Multiply the learning rate by batch_size / base_batch (Goyal et al. 2017), or by its square root (You et al.
    2020)."""

    base_batch: int = Field(default=256, ge=1)
    """The batch size that the learning rate is written for."""


class BatchNormPolicy(Component):
    """Which statistics BatchNorm uses in training; evaluation always uses the moving ones."""

    terms: Literal["batch", "clean", "moving"] = "batch"
    """Statistics that all terms see: of the batch that is passed, clean or perturbed; of the clean batch at every
    perturbation too (LLR's code); or the moving ones at both (CURE's code). The loss sees those of its own batch."""

    search: Literal["terms", "batch", "clean", "moving"] = "terms"
    """Statistics during searches, which never update the moving ones: those of the terms, or others (`moving`: TRADES'
    and MART's code). With others a search maximises something else than what the term then penalises."""

    update: Literal["auto", "clean", "perturbed"] = "auto"
    """Pass with batch statistics that updates the moving ones; `auto` is the clean pass if the objective has one."""

    @model_validator(mode="before")
    @classmethod
    def _alike(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "perturbed" in raw:
            message = "is no longer a field; delete it, and see `terms`"
            if raw["perturbed"] == "moving":
                got = "would compare passes of unlike statistics, those at perturbed images with the clean one"
                message = f"{got}; write `terms: moving`, for both"
            raise_at(("perturbed",), raw["perturbed"], "unlike", message)
        return raw


class Train(Component):
    """How long and in which batches to train."""

    batch_size: int = Field(default=64, ge=1)
    """Examples per step, over all devices."""

    epochs: Annotated[float | None, Field(gt=0)] = None
    """Passes over the training images; give this or `steps`."""

    steps: Annotated[int | None, Field(ge=1)] = None
    """Optimizer steps; give this or `epochs`."""

    ema: Annotated[float | None, Traced(ge=0, lt=1)] = None
    """Decay of an exponential moving average of the parameters, which evaluation then uses. A number is warmed up: at
    step n it is min(ema, (1 + n) / (10 + n)), so that nothing of the initial parameters stays; a schedule is not."""

    log_every: Annotated[Any, Duration()] = 10
    """Distance of two lines of metrics.jsonl: steps, `1 epoch`, `5%`."""

    freeze: Annotated[tuple[str, ...], Field(strict=False, exclude_if=lambda patterns: not patterns)] = ()
    """Patterns of parameters to leave as they are, by `MODULE/NAME` (`stem/*`, `*/b`; `*` stands for any text): neither
    steps nor weight decay nor the moving average change them."""

    freeze_statistics: Annotated[bool, Field(exclude_if=lambda frozen: not frozen)] = False
    """Whether BatchNorm layers all of whose parameters are frozen keep their moving statistics as well, and normalise
    by them in every pass of training."""

    batch_norm: BatchNormPolicy = BatchNormPolicy()
    """BatchNorm statistics by pass."""

    precision: Precision = "float32"
    """What the network computes in while training. `float32` is that on every device; `tf32` multiplies float32 numbers
    in TF32 on NVIDIA's GPUs, where JAX does so unless told otherwise; `bfloat16` leaves parameters, norm layers, the
    last layer, losses and linear terms in float32. Evaluation is always in float32 in full."""

    remat: Remat = "none"
    """What derivatives compute anew instead of keeping it, to save memory: nothing, or the inside of every repeated
    block of a published network."""

    accumulate: Annotated[
        int | Literal["auto"], PlainValidator(_check_parts, json_schema_input_type=int | Literal["auto"])
    ] = 1
    """Parts that each device's share of a batch is cut into, one after the other, to save memory. Without BatchNorm the
    gradient is that of the whole batch; with it each part has its own statistics. `auto` is the smallest number with
    which a step is estimated to fit in `devices.memory`; a run keeps the number that it began with."""

    @property
    def parts(self) -> int:
        """`accumulate`, and 1 while its number is not known yet."""
        return 1 if self.accumulate == "auto" else self.accumulate

    trackers: RunTrackers = RunTrackers()
    """Where a run is shown besides its folder, which has TensorBoard's files anyway. Trials of a sweep are shown by its
    own."""


class Checks(Component):
    """Trials on a sample of the test images that show whether attacks are to be believed."""

    examples: int = Field(default=100, ge=0)
    """Correctly classified images to look for signs of gradient masking on; 0 leaves the checks out."""


class Evaluate(Component):
    """What is measured after training, on every test image unless `images` says otherwise."""

    images: SubsetOrCount = None
    """Evaluate a random part of the images: a number of them, or `{count: 1000, stratified: true, seed: 0}`. What is
    printed and recorded says so."""

    batch_size: int = Field(default=250, ge=1)
    """Examples per attacked batch, over all devices; results do not depend on it."""

    memory: Annotated[int | Literal["auto"], PlainValidator(_check_memory, json_schema_input_type=int | str)] = "auto"
    """Bytes that an attack may use on the devices together (`2 GiB`); batches that need more are halved. `auto` is
    half of what is free."""

    attacks: dict[ResultName, Annotated[Any, Chosen("attack")]] = {}
    """Named attacks, run in the order of their cost, those without gradients last."""

    threats: Annotated[dict[ResultName, NamedThreat], Field(exclude_if=lambda threats: not threats)] = {}
    """Named threats to evaluate in the place of the spec's, each with all attacks or with its own. The worst case is
    then that of their union: images that stand under every attack within every threat (Maini et al. 2020, Tramer &
    Boneh 2019)."""

    cascade: bool = True
    """Run each attack only on the images that the earlier ones left correct; minimum-norm attacks see all. Turn it off
    to compare attacks with each other: then each runs on every image that is classified correctly."""

    checks: Checks = Checks()
    """Signs of gradient masking."""

    strength: Strength | None = None
    """Study of accuracy against steps, restarts and epsilon."""

    linearity: Linearity | None = None
    """Study of the linearity of the loss."""

    surface: Surface | None = None
    """Slices of the loss around a few images, as numbers and as a picture."""

    parameters: Literal["auto", "raw", "ema"] = "auto"
    """Parameters to evaluate; `auto` takes the moving average if training kept one."""

    def by_threat(self, threat: Threat) -> list[UnderThreat]:
        """What is attacked within which threat: within the spec's `threat`, unless there are `threats`."""
        if not self.threats:
            return [UnderThreat("", threat, self.attacks, "evaluate.attacks")]
        found = []
        for name, own in self.threats.items():
            attacks, place = self.attacks, "evaluate.attacks"
            if own.attacks is not None:
                attacks, place = own.attacks, f"evaluate.threats.{name}.attacks"
            found.append(UnderThreat(name, own.ball, attacks, place))
        return found

    def transfers(self, threat: Threat) -> Iterator[tuple[UnderThreat, str, Any]]:
        """The attacks that search on the model of another run, by where they stand and their name there."""
        for under in self.by_threat(threat):
            yield from ((under, name, attack) for name, attack in under.attacks.items() if attack.needs_surrogate)

    def attacked_by(self, attacks: Mapping[str, Any]) -> Evaluate:
        """The same with other attacks, within every threat."""
        threats = {name: own.model_copy(update={"attacks": None}) for name, own in self.threats.items()}
        return self.model_copy(update={"attacks": attacks, "threats": threats})

    def forwards(self, threat: Threat, classes: int) -> int:
        """Forward-equivalents spent on an image that no attack changes, the clean one included."""
        return 1 + sum(under.forwards(classes) for under in self.by_threat(threat))

    def drawn_of(self, n: int) -> int:
        """How many of n images are evaluated."""
        return n if self.images is None else min(self.images.count, n)


class Best(Component):
    """Looks at images that `data.validation` holds back, to keep the best checkpoint (Rice et al. 2020)."""

    every: Annotated[Any, Duration()] = "1 epoch"
    """Distance of two looks; the last step always is one. A checkpoint is saved at each."""

    attacks: Annotated[dict[ResultName, Annotated[Any, Chosen("attack")]], Field(min_length=1)] = Field(
        default_factory=lambda: {"pgd": make("attack", {"type": "pgd", "steps": 10})}
    )
    """Named cheap attacks; the best has the highest worst-case accuracy, the earliest of equals."""

    images: Annotated[int | None, Field(ge=1)] = 1000
    """Validation images of a look, evenly spread over them; None, or fewer than these: all."""

    patience: Annotated[int | None, Field(ge=1)] = None
    """Stop training after so many looks in a row that are no better than the best; default never."""


class Checkpoint(Component):
    """When to save and how many checkpoints to keep."""

    every: Annotated[Any, Duration()] = "10%"
    """Distance of two checkpoints; the last step is always saved."""

    keep: int = Field(default=3, ge=1)
    """Newest checkpoints to keep."""

    best: Annotated[
        Best | None,
        Field(exclude_if=lambda best: best is None),  # so that specs without it stay the specs that they were
    ] = None
    """Look at validation images while training, and keep the best checkpoint beside the newest; `{}` has defaults."""


class HostResources(Component):
    """What one host takes of a Ray cluster."""

    cpu: Annotated[float | None, Field(ge=0)] = None
    """CPUs; default `devices.count`, or 1."""

    gpu: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves; with 0 JAX takes those that it sees."""

    custom: dict[str, float] = {}
    """Any other resource of the cluster by its name: `{TPU: 4}`."""


class DevicesBlock(Component):
    """The devices to use."""

    count: Annotated[int | None, Field(ge=1)] = None
    """Number of devices of a host; default all (on CPU one per core)."""

    hosts: int = Field(default=1, ge=1)
    """Hosts that train the model together; more than one are started by `llrflow run --address`."""

    memory: Annotated[Bytes | None, Field(exclude_if=lambda memory: memory is None)] = None
    """Memory of one device that training may take (`80 GiB`), for `train.accumulate: auto` and for `plan` to warn."""

    resources: HostResources = HostResources()
    """Of each host, with `--address`."""

    @property
    def wanted(self) -> dict[str, float]:
        """What a host asks of Ray, by Ray's names; nothing that it asks none of."""
        cpu = self.resources.cpu if self.resources.cpu is not None else float(self.count or 1)
        asked = {"CPU": cpu, "GPU": self.resources.gpu, **self.resources.custom}
        return {name: amount for name, amount in asked.items() if amount}


class Spec(Component):
    """One experiment: dataset, model, threat, objective, training, evaluation. Immutable."""

    llrflow: Literal[1]
    """Version of the format: 1."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the run folder: letters, digits, dot, underscore, dash."""

    plugins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Plugins to import: files (relative to the spec) or module names."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """All randomness follows from it."""

    data: Data
    model: Annotated[Any, Chosen("model", ModelEntry)]
    """The network, chosen by `type`."""
    threat: Threat
    objective: Objective = Objective()
    optimizer: Annotated[Any, Chosen("optimizer", OptimizerEntry)]
    """An optax optimizer, chosen by `type`."""
    train: Train
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    devices: DevicesBlock = DevicesBlock()
    sweep: Sweep | None = None
    """Many runs with other values; `llrflow run` takes no notice of it."""

    _source: Source | None = PrivateAttr(default=None)

    def where(self, path: tuple[str, ...]) -> str:
        """`file:line:col` of a value, to start a message with."""
        return "spec" if self._source is None else self._source.where(path)

    def origins(self) -> dict[str, str]:
        """Where each scalar came from, by dotted path; what is not listed is a default."""
        known = {} if self._source is None else self._source.origins
        return {".".join(map(str, path)): str(origin) for path, origin in known.items() if origin.text}

    def plugin_identities(self) -> list[str]:
        """`plugins` with a file's sha256 in place of its path, and an installed plugin's version after its name."""
        return [plugin_identity(plugin) for plugin in self.plugin_paths()]

    def plugin_paths(self) -> tuple[str, ...]:
        """`plugins` with files as absolute paths, relative ones taken from the spec file that names them."""
        if self._source is None:
            return self.plugins
        return tuple(plugin_path(self._source, index, plugin) for index, plugin in enumerate(self.plugins))
