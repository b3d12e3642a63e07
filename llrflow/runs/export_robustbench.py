"""What RobustBench's model_info says of a model, as far as a certificate knows it (arXiv:2010.09670).

model_info.json    for their model_info/DATASET/NORM/ID.json
model.json         RobustBenchRecord
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import require_local
from llrflow.components.registry import entries
from llrflow.runs.export_facts import digests
from llrflow.runs.exports import write_export
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.model import checkpoints_of, chosen_step, stored_run
from llrflow.runs.records import EvaluationRecord, Record, written
from llrflow.spec.schema import Spec

FILE = "model_info.json"

KEYS = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc",
)  # fmt: skip
"""Of a complete model_info, in its order."""

_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet2012": "imagenet"}
_SPLITS = {"cifar10": "test", "cifar100": "test", "imagenet2012": "validation"}
"""Whose accuracies its tables have."""

_NORMS = {"linf": "Linf", "l2": "L2"}


class RobustBenchRecord(Record):
    """model.json of an export for RobustBench."""

    format: Literal[1] = 1
    name: str
    spec_hash: str
    step: int
    network_sha256: str
    evaluation: str
    """Identity of the certificate that it was made from."""
    left_out: list[str]
    """Keys of a model_info that neither the certificate nor the spec knows."""
    files: dict[str, str]
    """SHA-256 of each file beside this one."""

    @property
    def described(self) -> str:
        """What was written, in words."""
        return f"step {self.step} of {self.name}; not known, so add them yourself: {', '.join(self.left_out)}"


def export_robustbench(
    run_dir: str | Path,
    out: str | Path,
    step: Step | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> tuple[Path, RobustBenchRecord]:
    """Write the model_info of a run's checkpoint into a folder; gives the folder and its record.

    Raises as `load_model`; CheckpointError where the checkpoint, with these parameters, was not evaluated on all test
    images; SpecError where it was evaluated within a threat, or on a dataset or split, that RobustBench does not have.
    """
    require_local(Path(out))
    folder = RunFolder(Path(run_dir))
    run, spec = stored_run(folder, trust_plugins=trust_plugins)
    at = chosen_step(folder, checkpoints_of(folder, run), step).step
    evaluation = folder.evaluations().get(at)
    if evaluation is None or evaluation.parameters != (parameters or evaluation.parameters):
        got = f"has no evaluation of checkpoint {at}" + (f" with {parameters} parameters" if parameters else "")
        raise CheckpointError(str(folder.path), got, f"make it: llrflow evaluate RUN --checkpoint {at}")
    if evaluation.subset is not None:
        got = f"was evaluated on {evaluation.described}, and RobustBench's accuracies are of all"
        raise CheckpointError(str(folder.path), got, "evaluate without `evaluate.images`")
    info = model_info(spec, evaluation, run.imported is not None)
    content = json.dumps(info, indent=2).encode() + b"\n"
    record = RobustBenchRecord(
        name=spec.name,
        spec_hash=run.spec_hash,
        step=at,
        network_sha256=evaluation.network_sha256,
        evaluation=evaluation.identity,
        left_out=[key for key in KEYS if key not in info],
        files=digests({FILE: content}),
    )
    write_export(Path(out), {FILE: content}, record)
    return Path(out), record


def model_info(spec: Spec, evaluation: EvaluationRecord, imported: bool = False) -> dict[str, Any]:
    """What is known of a model, by RobustBench's keys and as they write it: accuracies are texts, in per cent.

    `reported` is the worst case of all attacks, `autoattack_acc` that under AutoAttack's `standard` profile where
    nothing was attacked before it. What an `imported` model was trained on is not known. Raises SpecError.
    """
    if evaluation.threats or spec.threat.norm not in _NORMS:
        within = "several threats" if evaluation.threats else spec.threat.norm
        raise SpecError("--to robustbench", f"has no place for {within}", f"evaluate within {' or '.join(_NORMS)}")
    if spec.data.name not in _DATASETS:
        got = f"has no place for {spec.data.name}"
        raise SpecError("--to robustbench", got, f"its datasets are {', '.join(_DATASETS)}")
    if spec.data.test != (split := _SPLITS[spec.data.name]):
        got = f"was evaluated on {spec.data.test!r}, and RobustBench's accuracies are of {split!r}"
        raise SpecError("--to robustbench", got, f"evaluate with `data.test: {split}`")
    known: dict[str, Any] = {
        "dataset": _DATASETS[spec.data.name],
        "eps": written(spec.threat.epsilon),
        "clean_acc": _percent(evaluation.nominal.accuracy),
        "reported": _percent(evaluation.worst_case.accuracy),
    }
    if spec.data.extra is None and spec.model.start is None and not imported:
        known["additional_data"] = False
    kind = spec.model.registered_as[1]
    if entries("model")[kind].origin == "llrflow" and kind != "python":
        known["number_forward_passes"] = 1
    if architecture := _architecture(kind, spec):
        known["architecture"] = architecture
    for position, attack in enumerate(evaluation.attacks.values()):
        standard = attack.attack["type"] == "auto_attack" and attack.attack.get("profile", "standard") == "standard"
        if standard and (position == 0 or not evaluation.cascade):
            known["autoattack_acc"] = _percent(attack.accuracy)
    return {key: known[key] for key in KEYS if key in known}


def _architecture(kind: str, spec: Spec) -> str | None:
    """As RobustBench calls the published networks, where it is one of them: with BatchNorm and their first layers."""
    model: Any = spec.model
    stem = "imagenet" if kind == "resnet_v1" and spec.data.name == "imagenet2012" else "cifar"
    if getattr(model, "norm", None) != "batch" or getattr(model, "stem", None) != stem:
        return None
    if kind == "wide_resnet":
        return f"WideResNet-{model.depth}-{model.width}"
    if kind in ("preact_resnet", "resnet_v1") and model.width == 64:
        return f"{'PreActResNet' if kind == 'preact_resnet' else 'ResNet'}-{model.depth}"
    return None


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"
