"""From YAML (or a mapping) to a checked Spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from llrflow.answer import is_stateful
from llrflow.errors import SpecError
from llrflow.objective import CLEAN
from llrflow.plugins import load_plugins
from llrflow.registry import Component, first_problem, suggest
from llrflow.spec.schema import Spec
from llrflow.spec.source import read_source
from llrflow.threat import Threat
from llrflow.traced import components, numbers


def load_spec(spec: str | os.PathLike[str] | Mapping[str, Any], overrides: Mapping[str, Any] = {}) -> Spec:
    """Read, merge, validate and cross-check a spec; imports exactly the plugins that it names.

    `overrides` maps dotted paths to values, as `--set` does. Raises SpecError (`file:line:col: path = value
    ...; fix`) or PluginError. Touches neither data nor devices.
    """
    source = read_source(spec, overrides)
    load_plugins(source)
    try:
        loaded = Spec.model_validate(source.data)
    except (ValidationError, PydanticCustomError) as error:
        path, got, fix = first_problem(error)
        raise SpecError(source.where(path), got, fix) from None
    loaded._source = source
    for path, got, fix in _contradictions(loaded):
        raise at(loaded, ".".join(path), got, fix)
    return loaded


def at(spec: Spec, path: str, got: str, fix: str) -> SpecError:
    """The error for a value of a loaded spec, by dotted path."""
    return SpecError(spec.where(tuple(path.split("."))), f"{path} {got}", fix)


def _contradictions(spec: Spec) -> list[tuple[tuple[str, ...], str, str]]:
    """(path, what is wrong, fix) of everything that single fields cannot know."""
    found: list[tuple[tuple[str, ...], str, str]] = []
    if (spec.train.epochs is None) == (spec.train.steps is None):
        both = "has both `epochs` and `steps`" if spec.train.epochs else "has neither `epochs` nor `steps`"
        found.append((("train",), both, "give exactly one of them"))
    objective, used = spec.objective, set()
    places = {"loss": ("objective", "loss"), **{name: ("objective", "terms", name) for name in objective.terms}}
    if "loss" in objective.terms:
        found.append((places["loss"], "is the name of the classification loss", "rename the term"))
    for name in objective.terms:
        if name in ("objective", "accuracy", "gradient_norm", "step"):
            found.append((places[name], "is the name of a metric that every run logs", "rename the term"))
    for name, term in objective.entries().items():
        used.add(term.at)
        if term.at != CLEAN and term.at not in objective.perturbations:
            known = [CLEAN, *objective.perturbations]
            found.append(
                (
                    (*places[name], "at"),
                    f"= {term.at!r} is not a perturbation of this objective",
                    suggest(term.at, known),
                )
            )
        elif term.at == CLEAN and getattr(term, "needs_perturbation", False):
            fix = "set `at:` to one of objective.perturbations" + (
                f" ({', '.join(objective.perturbations)})" if objective.perturbations else ", and define it there"
            )
            found.append((places[name], f"({term.registered_as[1]}) is evaluated at a perturbation and has none", fix))
    for name, search in objective.perturbations.items():
        if name == CLEAN:
            found.append((("objective", "perturbations", name), "is the name of the unperturbed image", "rename it"))
            continue
        if isinstance(search.epsilon, float) and search.epsilon > 0:
            try:
                Threat.model_validate({"norm": search.norm or spec.threat.norm, "epsilon": search.epsilon})
            except ValidationError as error:
                _, got, fix = first_problem(error)
                found.append((("objective", "perturbations", name, "epsilon"), got.removeprefix("epsilon "), fix))
        if name not in used:
            found.append(
                (
                    ("objective", "perturbations", name),
                    "is used by no term",
                    "set `at:` of a term or of the loss to it, or delete it",
                )
            )
    for name, attack in spec.evaluate.attacks.items():
        for path, value, _ in numbers(attack, ("evaluate", "attacks", name)):
            if isinstance(value, Component):
                got = "follows a schedule, but attacks have no training steps"
                found.append((tuple(path.split(".")), got, "give one number"))
    for path, part in components(spec):
        if "maximize" in type(part).model_fields and is_stateful(part.maximize):  # type: ignore[attr-defined]
            got = f"({part.maximize.registered_as[1]}) keeps a running state"  # type: ignore[attr-defined]
            found.append(((*path, "maximize"), f"{got}, which a search cannot maximise", "choose another term"))
    for path, value, _ in numbers(spec):
        if path.split(".")[0] in ("model", "data") and isinstance(value, Component):
            found.append((tuple(path.split(".")), "follows a schedule, but is compiled in", "give one number"))
    if "random" in spec.evaluate.attacks:
        found.append((("evaluate", "attacks", "random"), "is the name of the noise control", "rename the attack"))
    if spec.evaluate.parameters == "ema" and spec.train.ema is None:
        found.append((("evaluate", "parameters"), "= 'ema' but training keeps no moving average", "set train.ema"))
    return found
