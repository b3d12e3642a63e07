"""Draws by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.searchers import Observation, arguments_of, seed_of
from llrflow.sweep.space.configurations import configuration_of, uniform
from llrflow.sweep.space.trials import sweep_of

STARTUP = 10
"""Draws at random before the search learns, unless the spec says otherwise."""


def asked(spec: Spec, observed: Iterable[Observation], drawn: int, count: int) -> list[dict[str, Any]]:
    """So many configurations after the first `drawn`."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = sweep_of(spec)
    startup, seed = sweep.search.startup or STARTUP, seed_of(sweep, drawn)
    chosen = {"constant_liar": True, **arguments_of(spec)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an argument is experimental
        sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed, **chosen)
    study = optuna.create_study(direction="maximize" if sweep.best_is == "max" else "minimize", sampler=sampler)
    study.add_trials(list(_told(sweep, observed)))
    found = []
    for draw in range(drawn, drawn + count):
        trial = study.ask()

        def value_for(
            name: str, domain: Any, value_of: Callable[[str], Any], trial: Any = trial, draw: int = draw
        ) -> Any:
            if not domain.learnt:
                return domain.draw(uniform(sweep, name, draw), value_of)
            return domain.suggest(trial, name)

        found.append(configuration_of(spec, sweep, value_for))
    return found


def _told(sweep: Sweep, observed: Iterable[Observation]) -> Iterator[Any]:
    """What came of each configuration, as Optuna's trials.

    One that was stopped is a pruned trial. One that failed or shows signs of gradient masking is pruned without a
    value, which Optuna takes for worse than all others.
    """
    from optuna.trial import TrialState, create_trial  # pyright: ignore[reportMissingImports]

    for one in observed:
        params, distributions = {}, {}
        for name, domain in sweep.parameters.items():
            if not domain.learnt or (domain.path or name) not in one.values:
                continue
            with suppress(ValueError):  # the space has changed since, and has this value no longer
                suggestion = domain.suggestion(one.values[domain.path or name])
                distribution = _distribution(domain, name, suggestion)
                create_trial(params={name: suggestion}, distributions={name: distribution}, value=0.0)
                params[name], distributions[name] = suggestion, distribution
        came: dict[str, Any] = {"state": TrialState.PRUNED}
        if one.stopped is not None:
            came["intermediate_values"] = {one.stopped: one.value}
        elif one.value is not None:
            came = {"state": TrialState.COMPLETE, "value": one.value}
        yield create_trial(params=params, distributions=distributions, **came)


def _distribution(domain: Any, name: str, suggestion: Any) -> Any:
    """Optuna's distribution of a parameter."""
    from optuna.trial import FixedTrial  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the suggestion lies outside
        trial = FixedTrial({name: suggestion})
        domain.suggest(trial, name)
    return trial.distributions[name]
