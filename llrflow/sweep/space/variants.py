"""The variants of a sweep: methods put on one experiment; dataset, threat and evaluation are the same for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llrflow.base.errors import SpecError
from llrflow.spec.load import load_spec
from llrflow.spec.plugins import plugin_path
from llrflow.spec.schema import Spec
from llrflow.spec.source import Source, read_source

VARIANT = "variant"
"""What stands for the variant's name among the overrides of a trial, and in `when`."""

OF_TRAINING = {"augment", "mix"}
"""Blocks of `data` that change no image which is evaluated."""


def variant_base(spec: Spec, base: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The spec's sweep begins with `base`, and this variant of it with what is returned, as plain data.

    Raises SpecError, at the variant or in its file, where that cannot be read, its values make no spec, or it would be
    evaluated otherwise than the spec itself.
    """
    assert spec.sweep is not None
    changes = _changes(spec.sweep.variants[name])
    method = _method(spec, name, changes.pop("extends", None))
    try:
        source = read_source(base, changes) if method is None else read_source(method, changes, on=base)
        data = {**source.data, "name": f"{spec.name}-{name}"}
        loaded = load_spec(data)
    except SpecError as error:
        raise _at(spec, name, error.got, error.fix) from None
    for path, other, own in _differences(_evaluated(loaded), _evaluated(spec)):
        got = f"has {path} = {other!r}, which is {own!r} in this spec, and variants share one evaluation"
        raise _at(spec, name, got, "leave it out, or change it for all")
    return data


def inlined(spec: Spec) -> dict[str, Any]:
    """The sweep's block as it was written, with the methods of its variants in place of the files that have them."""
    assert spec.sweep is not None and spec._source is not None
    block = dict(spec._source.data["sweep"])
    for name, variant in spec.sweep.variants.items():
        changes = _changes(variant)
        if (method := _method(spec, name, changes.get("extends"))) is not None:
            block["variants"] = {**block["variants"], name: {**changes, "extends": method}}
    return block


def _changes(variant: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"extends": variant} if isinstance(variant, str) else dict(variant)


def _method(spec: Spec, name: str, method: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Objective, BatchNorm policy and plugins of the spec that a variant names. Raises SpecError."""
    if method is None or isinstance(method, Mapping):
        return method if method is None else dict(method)
    assert spec._source is not None
    origins, place = spec._source.origins, ("sweep", "variants", name)
    path = str(origins.get((*place, "extends"), origins[place]).folder / method)
    try:
        source = read_source(path)
    except SpecError as error:
        if error.where == path:
            raise _at(spec, name, f"= {method!r} {error.got}", error.fix) from None
        raise
    return _of_method(source)


def _of_method(source: Source) -> dict[str, Any]:
    found = {key: source.data[key] for key in ("objective", "plugins") if key in source.data}
    if found.get("plugins"):
        found["plugins"] = [plugin_path(source, index, plugin) for index, plugin in enumerate(found["plugins"])]
    train = source.data.get("train")
    if isinstance(train, Mapping) and "batch_norm" in train:
        found["train"] = {"batch_norm": train["batch_norm"]}
    return found


def _evaluated(spec: Spec) -> dict[str, Any]:
    """What decides on which images and how a trial is evaluated."""
    return spec.model_dump(include={"data": True, "threat": True, "evaluate": True}, exclude={"data": OF_TRAINING})


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, value of a, value of b) of what is not the same; None stands for what one lacks."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, a, b


def _at(spec: Spec, name: str, got: str, fix: str) -> SpecError:
    place = ("sweep", "variants", name)
    return SpecError(spec.where(place), f"{'.'.join(place)} {got}", fix)
