"""From YAML (or a mapping) to a checked Spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from llrflow.base.errors import SpecError
from llrflow.base.validation import first_problem
from llrflow.spec.check import contradictions
from llrflow.spec.plugins import load_plugins
from llrflow.spec.schema import Spec
from llrflow.spec.source import read_source


def load_spec(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] = {},
    on: str | os.PathLike[str] | None = None,
    trust_plugins: bool = True,
) -> Spec:
    """Read, merge, validate and cross-check a spec; imports exactly the plugins that it names.

    `overrides` maps dotted paths to values, as `--set` does; `on` is another spec, on whose dataset, model, threat and
    evaluation the method of this one is put, as `--on` does. `trust_plugins=False` is for a spec that you did not
    write: plugins that are neither installed nor such as you have trained with are not imported. Raises SpecError
    (`file:line:col: path = value ...; fix`) or PluginError. Touches neither data nor devices.
    """
    source = read_source(spec, overrides, on)
    load_plugins(source, trust_plugins)
    try:
        loaded = Spec.model_validate(source.data)
    except (ValidationError, PydanticCustomError) as error:
        path, got, fix = first_problem(error)
        place = ".".join(map(str, path))
        where = f"--set {place}=null" if overrides.get(place, "") is None else source.where(path)
        raise SpecError(where, got, fix) from None
    loaded._source = source
    for problem in contradictions(loaded):
        raise at(loaded, *problem)
    return loaded


def at(spec: Spec, path: str, got: str, fix: str) -> SpecError:
    """The error for a value of a loaded spec, by dotted path."""
    return SpecError(spec.where(tuple(path.split("."))), f"{path} {got}", fix)
