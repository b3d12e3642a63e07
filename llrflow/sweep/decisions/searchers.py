"""Draws by the searchers that Ray Tune wraps, and which arguments a search that learns takes.

A searcher is made anew for each round. It is told of all earlier configurations by `points_to_evaluate`: it suggests
them first, in order, and hears what came of each. What it keeps besides such points is lost between rounds.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from llrflow.base.errors import SpecError, line_of
from llrflow.base.validation import listing, suggest
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.space.configurations import configuration_of, uniform
from llrflow.sweep.space.domains import Choice
from llrflow.sweep.space.trials import sweep_of


class Observation(NamedTuple):
    """What came of a configuration."""

    draw: int
    """Its number."""
    values: dict[str, Any]
    """Its overrides, by path."""
    value: float | None
    """Mean of the metric over the seeds; None where one failed or shows signs of gradient masking."""
    stopped: int | None
    """The step at which a scheduler or the guard stopped the first of its trials."""


class Library(NamedTuple):
    """What a search that learns needs."""

    modules: tuple[str, ...]
    hidden: frozenset[str]
    """Arguments that are llrflow's to give, or that plain data cannot express."""
    seed: str | None = None
    """The argument for a seed, beside NumPy's own generator."""


TUNE = frozenset({"space", "metric", "mode", "points_to_evaluate"})
"""Arguments of every searcher of Tune that are llrflow's to give."""

LIBRARIES = {
    "optuna": Library(
        ("optuna",),
        frozenset({"seed", "n_startup_trials", "gamma", "weights", "constraints_func", "categorical_distance_func"}),
    ),
    "hyperopt": Library(("hyperopt",), TUNE | {"random_state_seed"}, "random_state_seed"),
    "bayesopt": Library(("bayes_opt",), TUNE | {"random_state", "analysis", "verbose"}, "random_state"),
    "nevergrad": Library(("nevergrad",), TUNE),
    "bohb": Library(("hpbandster", "ConfigSpace"), TUNE | {"seed", "max_concurrent"}, "seed"),
}


def check(spec: Spec) -> None:
    """Find out whether a search that learns can draw, by letting it. Raises SpecError."""
    sweep = sweep_of(spec)
    kind = sweep.search.type
    if any(importlib.util.find_spec(module) is None for module in LIBRARIES[kind].modules):
        got = f"sweep.search: needs {' and '.join(LIBRARIES[kind].modules)}"
        raise SpecError(spec.where(("sweep", "search")), got, f"pip install 'llrflow[{kind}]'")
    arguments_of(spec)
    if kind != "optuna":
        if not _learnt(sweep):
            raise SpecError(spec.where(("sweep", "parameters")), "sweep.parameters: nothing to learn", "use random")
        asked(spec, [Observation(0, configuration_of(spec, sweep, _drawing(sweep, 0)), 0.0, None)], 1, 1)


def arguments_of(spec: Spec) -> dict[str, Any]:
    """The search's `arguments`. Raises SpecError at one that the library does not have."""
    search = sweep_of(spec).search
    if search.type == "optuna":
        from optuna.samplers import TPESampler as target  # pyright: ignore[reportMissingImports]
    else:
        target = _tune(search.type)
    known = sorted(inspect.signature(target).parameters.keys() - LIBRARIES[search.type].hidden)
    for name in search.arguments:
        if name not in known:
            place, got = ("sweep", "search", "arguments", name), f"is not an argument of {search.type}"
            raise SpecError(spec.where(place), f"{'.'.join(place)} {got}", f"it has {listing(known)}")
    return search.arguments


def seed_of(sweep: Sweep, drawn: int) -> int:
    """The seed of the round after so many draws, below 2^32."""
    return int(np.random.SeedSequence([sweep.search.seed, drawn]).generate_state(1)[0])


def asked(spec: Spec, observed: Iterable[Observation], drawn: int, count: int) -> list[dict[str, Any]]:
    """So many configurations after the first `drawn`, by a searcher of Tune.

    Every number is suggested as u in [0,1], by which its domain draws it. Each suggestion is at once told to be as
    bad as the worst so far, so that those of a round differ (the constant liar; Ginsbourger et al. 2010). Where the
    searcher has nothing to suggest, the draw is that of a random search. Raises SpecError with what the library says.
    """
    sweep = sweep_of(spec)
    try:
        with seeded(seed_of(sweep, drawn)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_asked(spec, sweep, list(observed), drawn, count))
    except SpecError:
        raise
    except Exception as error:
        kind = sweep.search.type
        got = f"sweep.search: {kind} cannot draw with these arguments: {type(error).__name__}: {line_of(error)}"
        fix = f"correct `arguments`, or pip install 'llrflow[{kind}]' for a version that fits"
        raise SpecError(spec.where(("sweep", "search")), got, fix) from None


def _asked(spec: Spec, sweep: Sweep, observed: list[Observation], drawn: int, count: int) -> Iterator[dict[str, Any]]:
    points, values = _told(spec, sweep, observed)
    searcher, learnt = _made(spec, sweep, points, drawn), _learnt(sweep)
    for number, value in enumerate(values):
        searcher.suggest(f"told {number}")
        _complete(sweep, searcher, f"told {number}", value)
    lie = functools.reduce(_worse(sweep), values) if values else 0.0
    for draw in range(drawn, drawn + count):
        found = searcher.suggest(f"draw {draw}")
        if not isinstance(found, dict):
            yield configuration_of(spec, sweep, _drawing(sweep, draw))
            continue
        _complete(sweep, searcher, f"draw {draw}", lie)
        drawing = _drawing(sweep, draw)

        def value_for(
            name: str, domain: Any, value_of: Callable[[str], Any], found: Any = found, drawing: Any = drawing
        ) -> Any:
            if name not in learnt:
                return drawing(name, domain, value_of)
            suggested = found[learnt[name]]
            return domain.values[int(suggested)] if isinstance(domain, Choice) else domain.draw(suggested, value_of)

        yield configuration_of(spec, sweep, value_for)


def _drawing(sweep: Sweep, draw: int) -> Callable[[str, Any, Callable[[str], Any]], Any]:
    """Values of a random search."""
    return lambda name, domain, value_of: domain.draw(uniform(sweep, name, draw), value_of)


def _learnt(sweep: Sweep) -> dict[str, str]:
    """What the searcher calls each parameter that it learns; the user's names would mean paths to some."""
    names = [n for n, d in sweep.parameters.items() if d.learnt and not (isinstance(d, Choice) and len(d.values) == 1)]
    return {name: f"p{number}" for number, name in enumerate(names)}


def _told(spec: Spec, sweep: Sweep, observed: list[Observation]) -> tuple[list[dict[str, Any]], list[float]]:
    """The points that a searcher hears of, and their values.

    A trial that was stopped is no better than the worst that finished, and one without a value as bad as the worst.
    """
    known = [(point, one) for one in observed if (point := _point(spec, sweep, one)) is not None]
    worse = _worse(sweep)
    finished = [one.value for _, one in known if one.value is not None and one.stopped is None]
    values = [
        one.value if one.value is None or one.stopped is None else functools.reduce(worse, finished, one.value)
        for _, one in known
    ]
    measured = [value for value in values if value is not None]
    worst = functools.reduce(worse, measured) if measured else 0.0
    return [point for point, _ in known], [worst if value is None else value for value in values]


def _worse(sweep: Sweep) -> Callable[[float, float], float]:
    return min if sweep.best_is == "max" else max


def _point(spec: Spec, sweep: Sweep, one: Observation) -> dict[str, Any] | None:
    """A configuration as the searcher would have suggested it; None where the space has it no longer.

    A parameter whose `when` does not hold had no effect, so that any value will do: it is drawn at random.
    """
    learnt = _learnt(sweep)
    places = {name: uniform(sweep, name, one.draw) for name in learnt}

    def value_for(name: str, domain: Any, value_of: Callable[[str], Any]) -> Any:
        if not domain.learnt:
            return domain.draw(uniform(sweep, name, one.draw), value_of)
        value = one.values[domain.path or name]
        places[name] = domain.place(value)
        return value

    with suppress(KeyError, ValueError, SpecError):
        configuration_of(spec, sweep, value_for)
        of = sweep.parameters
        return {
            key: str(math.floor(places[name] * len(of[name].values))) if isinstance(of[name], Choice) else places[name]
            for name, key in learnt.items()
        }
    return None


def _made(spec: Spec, sweep: Sweep, points: Sequence[dict[str, Any]], drawn: int) -> Any:
    """Tune's searcher, which is to suggest these points first."""
    from ray import tune

    kind, arguments, seed = sweep.search.type, {**arguments_of(spec)}, LIBRARIES[sweep.search.type].seed
    if seed is not None:
        arguments[seed] = seed_of(sweep, drawn)
    if kind == "nevergrad":
        arguments["optimizer"] = _optimizer(spec, arguments.get("optimizer", "OnePlusOne"))
    searcher = _tune(kind)(metric=sweep.metric, mode=sweep.best_is, points_to_evaluate=[*points] or None, **arguments)
    space = {}
    for name, key in _learnt(sweep).items():
        domain = sweep.parameters[name]
        listed = [str(index) for index in range(len(domain.values))] if isinstance(domain, Choice) else None
        space[key] = tune.uniform(0.0, 1.0) if listed is None else tune.choice(listed)
    searcher.set_search_properties(sweep.metric, sweep.best_is, space)
    return searcher


def _optimizer(spec: Spec, name: Any) -> Any:
    """Nevergrad's optimizer of a name. Raises SpecError."""
    from nevergrad.optimization import registry  # pyright: ignore[reportMissingImports]

    if not isinstance(name, str) or name not in registry:
        place = ("sweep", "search", "arguments", "optimizer")
        raise SpecError(
            spec.where(place), f"{'.'.join(place)} = {name!r} is none of nevergrad's", _near(name, registry)
        )
    return registry[name]


def _near(name: Any, registry: Any) -> str:
    """A suggestion without all of the hundreds of names."""
    found = suggest(name, registry)
    return found if found.startswith("did") else "use OnePlusOne, or another name of nevergrad.optimizers.registry"


def _tune(kind: str) -> Any:
    """Tune's class for a search; its module is imported without what it wraps as well."""
    from ray.tune.search import SEARCH_ALG_IMPORT

    return SEARCH_ALG_IMPORT[kind]()


def _complete(sweep: Sweep, searcher: Any, trial: str, value: float) -> None:
    """Tell a searcher what came of a suggestion; bohb hears of nothing but looks with a budget."""
    result = {sweep.metric: value, "training_iteration": 1, "hyperband_info": {"budget": 1}}
    searcher.on_trial_result(trial, result)
    searcher.on_trial_complete(trial, result)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have NumPy's and Python's own generators, which Tune and its libraries draw from, begin anew in the block."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
