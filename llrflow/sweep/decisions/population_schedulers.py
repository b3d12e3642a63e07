"""Tune's schedulers of a population, with members that keep their number and put on record whom they take over."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from llrflow.base.errors import LlrflowError
from llrflow.base.shown import named
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.population import Population
from llrflow.sweep.decisions.searchers import seed_of, seeded
from llrflow.sweep.space.trials import Trial

ATTEMPTS = 20
"""Draws of new values before a member is left as it is, because all of them give a run that is there already."""


class Takeovers:
    """What a scheduler of a population needs to know of a sweep."""

    def __init__(
        self,
        sweep: Sweep,
        population: Population,
        task_of: Callable[[Trial], dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self._sweep, self._population, self._task_of, self.say = sweep, population, task_of, say
        self._problem: str | None = None
        self.names = list(sweep.changing)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune would store it, for a restore that is never made

    def nested(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of parameters at their place in the configuration of one of Tune's trials."""
        return {"trial": {"values": values}}

    def sampler(self, name: str) -> Any:
        """What Tune draws a parameter's values from: a list, or a function."""
        domain = self._sweep.parameters[name]
        listed = getattr(domain, "values", None)
        return list(listed) if listed is not None else lambda: domain.draw(random.random(), str)

    def bounds(self, name: str) -> list[float]:
        """Smallest and largest value of a parameter."""
        domain = self._sweep.parameters[name]
        return [domain.low, domain.high]

    def child(self, member: Any, other: Any, step: int, values: dict[str, Any]) -> dict[str, Any] | None:
        """The configuration with which a trial of Tune goes on from another; None where that is some member's run."""
        number, source = (trial.config["trial"]["number"] for trial in (member, other))
        near = {name: self._sweep.parameters[name].nearest(value) for name, value in values.items()}
        try:
            found = self._population.take_over(number, source, step, near)
        except LlrflowError as error:
            self._problem = f"trial {number} does not take over trial {source}: {error}"
            return None
        self._problem = None
        if found is None:
            return None
        self.say(f"trial {number} takes over trial {source} at step {step}, with {named(found.parameters)}")
        return {"trial": self._task_of(found)}

    def decided(self) -> None:
        """Put on record what was decided."""
        self._population.keep()

    def gave_up(self) -> None:
        """Say why no draw gave a spec, if that was it."""
        if self._problem is not None:
            self.say(self._problem)

    def seeded(self, decision: int) -> AbstractContextManager[None]:
        """Draw from a stream of the decision's own in the block: Tune draws from those of the whole process."""
        return seeded(seed_of(self._sweep, decision))


class _InStep:
    """For a scheduler of Tune: all members wait at a decision, and what is decided is the population's."""

    attempts = ATTEMPTS

    def __init__(self, takeovers: Takeovers, **arguments: Any) -> None:
        super().__init__(synch=True, log_config=False, **arguments)  # pyright: ignore[reportCallIssue]
        self._takeovers = takeovers

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        try:
            with self._takeovers.seeded(result["rung"]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what scikit-learn says of a fit
                return super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        finally:
            self._takeovers.decided()

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, trial: Any) -> None:
        """Decide, where all others wait for a member that has ended: Tune would let them wait for ever."""
        states, due = self._trial_state, self._next_perturbation_sync  # type: ignore[attr-defined]
        states[trial].last_score, states[trial].last_train_time = None, due
        waiting = [other for other in tune_controller.get_live_trials() if other is not trial]
        if waiting and all(states[other].last_train_time >= due for other in waiting):
            self.on_trial_result(tune_controller, waiting[0], states[waiting[0]].last_result)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        step = self._trial_state[trial_to_clone].last_result["step"]  # type: ignore[attr-defined]
        for _ in range(self.attempts):
            drawn, _ = super()._get_new_config(trial, trial_to_clone)  # type: ignore[misc]
            found = self._takeovers.child(trial, trial_to_clone, int(step), drawn["trial"]["values"])
            if found is not None:
                return found, {}
        self._takeovers.gave_up()
        return trial.config, {}  # it goes on by itself


class Pbt(_InStep, PopulationBasedTraining):
    """Population based training."""


class Pb2(_InStep, PB2):
    """Population based bandits."""

    attempts = 1  # each has the Gaussian process count the new values as data
