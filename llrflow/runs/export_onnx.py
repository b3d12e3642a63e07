"""A model as one ONNX file, checked in onnxruntime.

model.onnx    images [batch,H,W,C] in [0,1] -> logits [batch,K]; what it is stands in its metadata too
model.json    OnnxRecord
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jax

from llrflow.base.errors import SpecError, line_of
from llrflow.base.files import require_local
from llrflow.program.onnx_graph import OPSET, NoRule, onnx_model
from llrflow.program.step import network_of, predict
from llrflow.runs.export import ExportRecord, named_weights
from llrflow.runs.export_facts import IMAGES, certificate_of, digests, facts_of, largest_difference
from llrflow.runs.exports import write_export
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.model import Model, load_model, stored_run
from llrflow.runs.records import EvaluationRecord

FILE = "model.onnx"

TOLERANCE = 1e-4
"""The largest difference of logits that is allowed, in parts of the largest logit."""


class OnnxRecord(ExportRecord):
    """model.json of an export to ONNX."""

    platforms: tuple[str, ...] = ("onnxruntime",)
    opset: int = OPSET
    difference: float
    """The largest of any of onnxruntime's logits to JAX's on 64 images of uniform noise."""

    @property
    def described(self) -> str:
        """What was written, in words."""
        found = f"logits within {self.difference:.1e} of JAX's on {IMAGES} images"
        return f"step {self.step} of {self.name}, opset {self.opset}, {found}"


def export_onnx(
    run_dir: str | Path,
    out: str | Path,
    step: Step | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> tuple[Path, OnnxRecord]:
    """Write a model as ONNX, chosen as by `load_model`, into a folder; gives the folder and its record.

    Raises as `load_model`; SpecError without the packages onnx and onnxruntime, for a network that computes what there
    is no rule for, or where the folder holds other files; LlrflowError where onnxruntime's logits are not JAX's.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise SpecError("--to onnx", "needs onnx and onnxruntime", "pip install 'llrflow[onnx]'") from None
    model = load_model(run_dir, step, parameters, trust_plugins)
    require_local(Path(out))
    folder = RunFolder(Path(run_dir))
    run, _ = stored_run(folder, trust_plugins=trust_plugins)
    made = _graph_of(model)
    evaluation = certificate_of(folder, model)
    facts = facts_of(model, run, evaluation)
    preprocessing = OnnxRecord.model_fields["preprocessing"].default
    told = {**facts, "preprocessing": preprocessing, "certificate": _summary(evaluation)}
    onnx.helper.set_model_props(made, {f"llrflow.{key}": _text(value) for key, value in told.items() if key in _TOLD})
    content = made.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes
        got = f"cannot be read by onnxruntime {onnxruntime.__version__}: {line_of(error)}"
        raise SpecError("--to onnx", got, "install a newer one, or leave --to out, for StableHLO") from None

    def theirs(images: Any) -> Any:
        return session.run(None, {"images": images})[0]

    record = OnnxRecord(
        **facts,
        exported_by=f"onnx {onnx.__version__}",
        # In batches of several sizes, as the batch is free.
        difference=largest_difference(model, theirs, TOLERANCE, "--to onnx: onnxruntime's", (1, 20)),
        files=digests({FILE: content}),
    )
    write_export(Path(out), {FILE: content}, record)
    return Path(out), record


_TOLD = (
    "name", "spec_hash", "step", "parameters", "network_sha256", "threat", "epsilon", "preprocessing", "class_names",
    "certificate",
)  # fmt: skip
"""What stands in the file's own metadata, each below `llrflow.`."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _summary(evaluation: EvaluationRecord | None) -> dict[str, Any] | None:
    """The accuracies of a certificate, which model.json has in whole."""
    if evaluation is None:
        return None
    shares = {name: share.accuracy for name, share in evaluation.shares.items()}
    return {"n": evaluation.n, "images": evaluation.described, "accuracy": shares, "identity": evaluation.identity}


def _graph_of(model: Model) -> Any:
    # Traced plainly: for a CPU of its own, JAX's program has convolutions in another form.
    network = network_of(model.spec.model, model.classes)
    weights, whole = named_weights(model.variables)

    def logits(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        params, state = whole(weights)
        return jax.vmap(lambda image: predict(network, params, state, image[None])[0])(images)

    try:
        return onnx_model(logits, weights, model.image_shape)
    except NoRule as error:
        got = f"cannot have this {model.spec.model.registered_as[1]}: it computes {error}"
        raise SpecError("--to onnx", got, "leave --to out, for StableHLO") from None
