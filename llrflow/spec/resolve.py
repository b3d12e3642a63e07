"""Resolve a spec against its dataset: epochs and percentages become steps. Returns a new Spec."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
from collections.abc import Mapping
from typing import Any

from llrflow.base.errors import DataError
from llrflow.components.optimizers import Duration, has_duration_keys, resolve_duration
from llrflow.components.registry import Component
from llrflow.data.batches import steps_per_epoch
from llrflow.data.extra import divided
from llrflow.data.facts import DatasetFacts
from llrflow.spec.schema import Spec


def resolve(spec: Spec, facts: DatasetFacts) -> Spec:
    """A copy with `train.steps` and every Duration in steps, and an absolute path of `model.start`.

    Raises DataError as `steps_of_epoch`.
    """
    epoch = steps_of_epoch(spec, facts)
    steps = spec.train.steps or max(1, round(epoch * (spec.train.epochs or 0)))
    resolved = _durations(spec, epoch, steps)
    train = resolved.train.model_copy(
        update={"steps": steps, "epochs": None, "log_every": max(1, resolved.train.log_every)}
    )
    checkpoint = resolved.checkpoint.model_copy(update={"every": max(1, resolved.checkpoint.every)})
    if (best := checkpoint.best) is not None:
        checkpoint = checkpoint.model_copy(update={"best": best.model_copy(update={"every": max(1, best.every)})})
    update: dict[str, Any] = {"train": train, "checkpoint": checkpoint}
    if resolved.model.start is not None:
        update["model"] = resolved.model.model_copy(update={"start": resolved.model.start.absolute()})
    return resolved.model_copy(update=update)


def steps_of_epoch(spec: Spec, facts: DatasetFacts) -> int:
    """Steps of one pass over the training images; extra ones do not count.

    Raises DataError when a batch is larger than the training split, or its extra part than theirs.
    """
    size, extra = spec.train.batch_size, spec.data.extra
    if extra is not None:
        size, added = divided(size, extra.share)
        if facts.extra is not None and added > facts.extra.train:
            got = f"= {extra.share:g} of a batch is {added} images, and {extra.name} has {facts.extra.train}"
            raise DataError("data.extra.share", got, "lower it, or choose a larger dataset")
    return steps_per_epoch(facts.train, max(1, size))  # none in the share of a device, where a plan is for many


def make_runs_absolute(spec: Spec, data: dict[str, Any]) -> None:
    """Let the transfer attacks in `data`, which is of that spec, name their runs by paths that hold anywhere."""
    for under, name, attack in spec.evaluate.transfers(spec.threat):
        attacks = functools.reduce(operator.getitem, under.place.split("."), data)
        attacks[name]["run"] = os.path.abspath(attack.run)  # noqa: PTH100


def spec_hash(spec: Spec) -> str:
    """Identity of an experiment: sha256 of the resolved spec, 12 hex digits.

    Name, devices, sweep, trackers, the data's place and pipeline, the corrupt images allowed and what the labels of
    extra images are do not count: they change no number of a run that ends. Plugin files count by their content.
    """
    of_data: dict[str, Any] = dict.fromkeys(("dir", "pipeline", "memory", "corrupt"), True)
    if spec.data.extra is not None:
        of_data["extra"] = {"labels"}
    uncounted = {"data": of_data, "train": {"trackers"}}
    data = spec.model_dump(exclude={"name": True, "devices": True, "sweep": True, **uncounted})
    data["plugins"] = spec.plugin_identities()
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _durations(component: Any, epoch: int, total: int, path: tuple[str, ...] = ()) -> Any:
    """A copy in which every field annotated as a Duration is a number of steps; the same object where there is none.

    `path` is where it stands in the spec.
    """
    if isinstance(component, Mapping):
        items = {key: _durations(item, epoch, total, (*path, str(key))) for key, item in component.items()}
        return items if any(items[key] is not item for key, item in component.items()) else component
    if not isinstance(component, Component):
        return component
    update: dict[str, Any] = {}
    for name, field in type(component).model_fields.items():
        value = getattr(component, name)
        if any(isinstance(m, Duration) for m in field.metadata):
            update[name] = resolve_duration(value, epoch, total)
        elif isinstance(value, Mapping) and has_duration_keys(field.annotation):
            pieces = {resolve_duration(key, epoch, total): piece for key, piece in value.items()}
            if len(pieces) < len(value):
                place = ".".join((*path, name))
                raise DataError(place, f"= {dict(value)} has two entries for one step", "delete one of them")
            update[name] = _durations(pieces, epoch, total, (*path, name))
        elif (resolved := _durations(value, epoch, total, (*path, name))) is not value:
            update[name] = resolved
    return component.model_copy(update=update) if update else component
