"""The configurations of a sweep: which values its parameters take together, as overrides of the spec by path."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic_core import PydanticCustomError

from llrflow.base.errors import SpecError
from llrflow.components.registry import Component
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.space.domains import Domain
from llrflow.sweep.space.variants import VARIANT

MAX_TRIALS = 100_000


def all_configurations(spec: Spec, sweep: Sweep, variant: str | None = None) -> Iterator[dict[str, Any]]:
    """The overrides of each configuration, by path, in order; `spec` is that of the variant, where there are any.

    Raises SpecError where there are too many.
    """
    whole = {
        name: domain.listed()
        for name, domain in sweep.parameters.items()
        if (domain.crossed or (sweep.search.type == "grid" and domain.registered_as[1] != "derived"))
        and domain.when.get(VARIANT, variant) == variant
    }
    draws = sweep.trials or 1
    count = draws * int(np.prod([float(len(values)) for values in whole.values()]))
    if count * sweep.seeds * max(1, len(sweep.variants)) > MAX_TRIALS:
        got = f"has {count} configurations of {sweep.seeds} seed(s)"
        raise SpecError(spec.where(("sweep",)), got, f"make fewer than {MAX_TRIALS} trials")
    for draw in range(draws):
        for combination in itertools.product(*whole.values()):
            yield _drawn(spec, sweep, variant, draw, dict(zip(whole, combination, strict=True)))


def _drawn(spec: Spec, sweep: Sweep, variant: str | None, draw: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
    def value_for(name: str, domain: Domain, value_of: Callable[[str], Any]) -> Any:
        return fixed[name] if name in fixed else domain.draw(uniform(sweep, name, draw), value_of)

    return configuration_of(spec, sweep, value_for, variant)


def configuration_of(
    spec: Spec, sweep: Sweep, value_for: Callable[[str, Any, Callable[[str], Any]], Any], variant: str | None = None
) -> dict[str, Any]:
    """The overrides of a configuration, by path, with `value_for(name, domain, value_of)` for each that applies.

    `value_of(path)` is what the configuration has there so far. Raises SpecError at the parameter.
    """
    chosen: dict[str, Any] = {} if variant is None else {VARIANT: variant}

    def value_of(path: str) -> Any:
        above = [known for known in chosen if path == known or path.startswith(f"{known}.")]
        if not above:
            return _value(spec, path, path)
        return _value(chosen[above[-1]], path.removeprefix(above[-1]).removeprefix("."), path)

    for name, domain in sweep.parameters.items():
        try:
            if all(value_of(path) == value for path, value in domain.when.items()):
                chosen[domain.path or name] = value_for(name, domain, value_of)
        except (PydanticCustomError, SpecError) as error:
            got = error.message() if isinstance(error, PydanticCustomError) else error.got
            where = spec.where(("sweep", "parameters", name))
            raise SpecError(where, f"sweep.parameters.{name} {got}", "name a parameter above, or a value") from None
    return chosen


def uniform(sweep: Sweep, name: str, draw: int) -> float:
    """A number in [0,1) that depends on nothing but the seed of the search, the parameter's name and the draw."""
    # Raw bits, because NumPy promises them for ever, unlike what its generators make of them (NEP 19).
    bits = np.random.Philox(np.random.SeedSequence([sweep.search.seed, zlib.crc32(name.encode()), draw])).random_raw()
    return (int(bits) >> 11) / 2**53


def _value(value: Any, path: str, whole: str) -> Any:
    """The value of a component, or of plain data, at a dotted path, which is called `whole`. Raises SpecError."""
    for part in path.split(".") if path else ():
        inside = value if isinstance(value, Mapping) else dict(value) if isinstance(value, Component) else {}
        if part == "type" and isinstance(value, Component) and value.registered_as:
            inside = {**inside, "type": value.registered_as[1]}
        if part not in inside:
            raise SpecError(whole, f"follows {whole}, which is no value of this spec", "")
        value = inside[part]
    return value
