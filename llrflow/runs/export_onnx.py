"""A model as one ONNX file, checked in onnxruntime.

model.onnx    images [batch,H,W,C] in [0,1] -> logits [batch,K]; what it is stands in its metadata too
model.json    OnnxRecord
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from llrflow.base.errors import LlrflowError, SpecError
from llrflow.base.files import require_local
from llrflow.program.onnx_graph import OPSET, NoRule, onnx_model
from llrflow.program.step import network_of, predict
from llrflow.runs.export import ExportRecord, facts_of, named_weights
from llrflow.runs.exports import write_export
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.model import Model, load_model, stored_run
from llrflow.runs.records import EvaluationRecord

FILE = "model.onnx"

IMAGES, TOLERANCE = 64, 1e-4
"""Images that every export is compared on, of uniform noise, and the largest difference allowed, in parts of the
largest logit."""

PREPROCESSING = "none: float32 pixels in [0, 1], NHWC; the network normalises them itself"


class OnnxRecord(ExportRecord):
    """model.json of an export to ONNX."""

    platforms: tuple[str, ...] = ("onnxruntime",)
    opset: int = OPSET
    preprocessing: str = PREPROCESSING
    class_names: list[str] | None
    """As the certificate has them; None where the checkpoint was not evaluated."""
    certificate: dict[str, Any] | None
    """Of the checkpoint, with the spec's attacks on its test images; None where it was not evaluated."""
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
    evaluation = folder.evaluations().get(model.step)
    if evaluation is not None and evaluation.parameters != model.parameters:
        evaluation = None  # of other weights
    names = None if evaluation is None or evaluation.classes is None else evaluation.classes.names
    facts = facts_of(model, run, {})
    told = {**facts, "preprocessing": PREPROCESSING, "class_names": names, "certificate": _summary(evaluation)}
    onnx.helper.set_model_props(made, {f"llrflow.{key}": _text(value) for key, value in told.items() if key in _TOLD})
    content = made.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    record = OnnxRecord(
        **facts_of(model, run, {FILE: content}),
        exported_by=f"onnx {onnx.__version__}",
        class_names=names,
        certificate=None if evaluation is None else evaluation.model_dump(mode="json"),
        difference=_difference(model, session),
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


def _difference(model: Model, session: Any) -> float:
    """The largest difference of onnxruntime's logits to ours. Raises LlrflowError where they are not the same."""
    images = np.random.default_rng(0).random((IMAGES, *model.image_shape), np.float32)
    largest, top = 0.0, 1.0
    for some in (images[:1], images[1:20], images[20:]):  # of several sizes, as the batch is free
        ours, theirs = np.asarray(model.logits(some)), session.run(None, {"images": some})[0]
        largest, top = max(largest, float(np.abs(ours - theirs).max())), max(top, float(np.abs(ours).max()))
    if not largest <= TOLERANCE * top:
        raise LlrflowError(f"--to onnx: onnxruntime's logits differ by {largest:g} from JAX's; nothing was written")
    return largest
