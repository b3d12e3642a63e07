"""A model as files that need neither llrflow's networks nor Haiku: StableHLO, weights, and what they are.

    logits.stablehlo   jax.export: (weights by name, images [b,H,W,C]) -> logits [b,K], with its gradient
    weights.npz        parameters and statistics by name
    model.json         ExportRecord

Weights stand beside the program, not in it: XLA would fold megabytes of constants at every compilation, NumPy alone can
read them, and all checkpoints of a run share one program.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxlib.mlir.dialects import stablehlo

from llrflow.base.arrays import NotArrays, read_npz
from llrflow.base.errors import CheckpointError, line_of
from llrflow.base.files import require_local, sha256_file
from llrflow.method.threat import Threat
from llrflow.runs.classifier import Classifier, parameter_count
from llrflow.runs.exports import RECORD, write_export
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.records import Record
from llrflow.runs.sealed import read_record

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS = "logits.stablehlo", "weights.npz"


class ExportRecord(Record):
    """model.json: what the files beside it hold."""

    format: Literal[1] = 1
    name: str
    spec_hash: str
    step: int
    parameters: Literal["raw", "ema"]
    network: dict[str, Any]
    """The model block of the spec."""
    network_sha256: str
    """As in the certificates of its run."""
    classes: int
    class_names: tuple[str, ...] | None = None
    """In their order; None where the checkpoint was not evaluated and the dataset is not prepared here."""
    certificate: dict[str, Any] | None = None
    """The evaluation of these very weights with the spec's attacks on its test images; None where there is none."""
    image_shape: tuple[int, int, int]
    preprocessing: str = "none: float32 pixels in [0, 1], NHWC; the network normalises them itself"
    threat: dict[str, Any]
    """The threat model that it was trained for."""
    epsilon: str
    """The threat's epsilon as a fraction of 255 where it is one."""
    platforms: tuple[str, ...]
    """What the program can run on."""
    versions: dict[str, str]
    """Those of the run."""
    exported_by: str | None = None
    """The version of jax that wrote the program; None in an export of an earlier llrflow."""
    files: dict[str, str]
    """SHA-256 of each file beside this one."""

    @property
    def described(self) -> str:
        """What was written, in words."""
        return f"step {self.step} of {self.name}, for {', '.join(self.platforms)}"


class Exported(Classifier):
    """The classifier of an exported model; asks nothing of Haiku or of the network's code."""

    def __init__(self, record: ExportRecord, program: Any, weights: dict[str, np.ndarray]) -> None:
        self.record, self.name, self.step, self.classes = record, record.name, record.step, record.classes
        self.image_shape, self.threat = record.image_shape, Threat.model_validate(record.threat)
        self.weights = weights
        logits = _differentiable(program, weights)
        self._logits = jax.jit(lambda x: logits(jnp.asarray(x, jnp.float32)))

    def _facts(self) -> dict[str, Any]:
        record = self.record
        size = f"{parameter_count(self.weights):,} with statistics ({record.parameters})"
        return {"network": record.network["type"], "weights": size, **super()._facts()}


def export_model(
    run_dir: str | Path,
    out: str | Path | None = None,
    step: Step | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> tuple[Path, ExportRecord]:
    """Write the model of a run's checkpoint, chosen as by `load_model`, into a folder: `out` or RUN/export.

    Gives the folder and its record. Raises as `load_model`, and SpecError when the folder holds other files.
    """
    from llrflow.runs.export_facts import certificate_of, digests, facts_of
    from llrflow.runs.model import load_model, stored_run

    model = load_model(run_dir, step, parameters, trust_plugins)
    folder, of = Path(run_dir) / "export" if out is None else Path(out), RunFolder(Path(run_dir))
    require_local(folder)
    run, _ = stored_run(of, trust_plugins=trust_plugins)
    weights, whole = named_weights(model.variables)

    def logits(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        variables = whole(weights)
        # One image at a time, so that no network, a plugin's neither, meets a batch of unknown size.
        return jax.vmap(lambda image: model.network.predict(variables, image[None])[0])(images)

    program = _lowered(logits, weights, model.image_shape)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **weights)
    contents = {PROGRAM: program, WEIGHTS: buffer.getvalue()}
    facts = facts_of(model, run, certificate_of(of, model))
    record = ExportRecord(**facts, platforms=PLATFORMS, exported_by=jax.__version__, files=digests(contents))
    write_export(folder, contents, record)
    return folder, record


def named_weights(variables: Any) -> tuple[dict[str, np.ndarray], Callable[[Mapping[str, Any]], Any]]:
    """A network's parameters and statistics as arrays `params|state/MODULE/NAME`, and the way back."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    names = [
        "/".join(["params" if path[0].idx == 0 else "state", *(entry.key for entry in path[1:])]) for path, _ in leaves
    ]
    weights = dict(zip(names, (np.asarray(leaf) for _, leaf in leaves), strict=True))
    return weights, lambda weights: tree.unflatten([weights[name] for name in names])


def _lowered(logits: Callable[..., jax.Array], weights: dict[str, np.ndarray], image_shape: tuple[int, ...]) -> bytes:
    """A function of weights and of a batch of any size, serialised with its gradient for every platform."""
    images = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("b"), *image_shape), jnp.float32)
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
    exported = jax_export.export(jax.jit(logits), platforms=PLATFORMS)(shapes, images)
    return bytes(exported.serialize(vjp_order=1))


def load_exported(path: str | Path) -> Exported:
    """The model that `llrflow export` wrote into a folder. Raises CheckpointError for anything else."""
    folder = Path(path)
    record = _record(folder / RECORD)
    for name in (PROGRAM, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(str(folder / name), "is missing", "export the run again")
        if sha256_file(folder / name) != record.files.get(name):
            raise CheckpointError(str(folder / name), f"is not what {RECORD} describes", "export the run again")
    try:
        weights = read_npz(folder / WEIGHTS)
    except NotArrays as error:
        raise CheckpointError(str(folder / WEIGHTS), line_of(error), "export the run again") from None
    try:
        program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        if _later_than_ours(program.mlir_module_serialized):
            raise ValueError(f"{f'jax {record.exported_by}' if record.exported_by else 'a later one'} wrote it")
        program.mlir_module()  # parses it, which a call would do first
    except Exception as error:  # jax promises to read what was written in the last six months
        got = f"cannot be read by jax {jax.__version__}: {line_of(error)}"
        raise CheckpointError(str(folder / PROGRAM), got, "export the run again with this version") from None
    return Exported(record, program, weights)


def _later_than_ours(program: bytes) -> bool:
    """Whether a StableHLO artifact needs a later version than this jaxlib's, which would say so in lines of its own."""
    needed = re.search(rb"StableHLO_v(\d+)\.(\d+)", program)
    ours = tuple(map(int, stablehlo.get_current_version().split(".")[:2]))
    return needed is not None and tuple(map(int, needed.groups())) > ours


def _differentiable(program: Any, weights: dict[str, np.ndarray]) -> Callable[[jax.Array], jax.Array]:
    """Images -> logits of an exported program, with its gradient, also under `vmap`, for which JAX has no rule."""
    forward = _folded(lambda x: program.call(weights, x))
    backward = _folded(lambda x, cotangent: jax.vjp(lambda x: program.call(weights, x), x)[1](cotangent)[0])
    logits = jax.custom_vjp(forward)
    # `logits(x)`, not `forward(x)`: where derivatives nest, the outer one must meet the rule too.
    logits.defvjp(lambda x: (logits(x), x), lambda x, cotangent: (backward(x, cotangent),))
    return logits


def _folded(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of batches [B,...] that treats each example alone: what `vmap` adds becomes part of the batch."""
    folded = jax.custom_batching.custom_vmap(function)

    def rule(size: int, batched: list[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        whole = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(arrays, batched, strict=True)]
        made = folded(*(a.reshape(-1, *a.shape[2:]) for a in whole))
        return made.reshape(size, -1, *made.shape[1:]), True

    folded.def_vmap(rule)
    return folded


def _record(path: Path) -> ExportRecord:
    try:
        return read_record(ExportRecord, path, "it is damaged or of another version: export the run again")
    except FileNotFoundError:
        fix = "name a folder that `llrflow export` made"
        raise CheckpointError(str(path.parent), "is no exported model", fix) from None
