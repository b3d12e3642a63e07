"""What every export says of a model, and the comparison of its logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llrflow.base.errors import LlrflowError
from llrflow.runs.classifier import hash_of
from llrflow.runs.elsewhere import class_names
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import EvaluationRecord, RunRecord, written

IMAGES = 64
"""Images that exports are compared on, of uniform noise."""


def certificate_of(folder: RunFolder, model: Any) -> EvaluationRecord | None:
    """The evaluation of a model's checkpoint with the spec's attacks; None without one of the model's own weights."""
    found = folder.evaluations().get(model.step)
    return None if found is None or found.network_sha256 != hash_of(model.variables) else found


def facts_of(model: Any, run: RunRecord, certificate: EvaluationRecord | None) -> dict[str, Any]:
    """What the record of every export says of a model of a run."""
    if certificate is not None and certificate.classes is not None:
        names = tuple(certificate.classes.names)
    else:
        names = class_names(model.spec.data)
    return {
        "name": model.name,
        "spec_hash": run.spec_hash,
        "step": model.step,
        "parameters": model.parameters,
        "network": {"type": model.spec.model.registered_as[1], **model.spec.model.model_dump()},
        "network_sha256": hash_of(model.variables),
        "classes": model.classes,
        "class_names": names,
        "certificate": None if certificate is None else certificate.model_dump(mode="json"),
        "image_shape": model.image_shape,
        "threat": model.threat.model_dump(),
        "epsilon": written(model.threat.epsilon),
        "versions": run.versions,
    }


def digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of the content of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def largest_difference(
    model: Any, theirs: Callable[[np.ndarray], np.ndarray], tolerance: float, who: str, at: Sequence[int] = ()
) -> float:
    """The largest difference of any of `theirs` logits, a function of images [B,H,W,C], to a model's.

    On 64 images of uniform noise, in batches that begin `at` these. Raises LlrflowError, naming `who`, where it is more
    than `tolerance`, in parts of the largest logit.
    """
    images = np.random.default_rng(0).random((IMAGES, *model.image_shape), np.float32)
    largest, top = 0.0, 1.0
    for some in np.split(images, at):
        ours = np.asarray(model.logits(some))
        largest, top = max(largest, float(np.abs(ours - theirs(some)).max())), max(top, float(np.abs(ours).max()))
    if not largest <= tolerance * top:
        raise LlrflowError(f"{who} logits differ by {largest:g} from llrflow's; nothing was written")
    return largest
