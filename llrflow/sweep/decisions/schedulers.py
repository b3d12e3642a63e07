"""Who may stop a trial early: Tune's schedulers, with the names of Tune's own arguments. Time is counted in rungs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from llrflow.components.registry import Component, register

if TYPE_CHECKING:
    from llrflow.sweep.decisions.population_schedulers import Takeovers

TIME = "training_iteration"
"""Tune's count of the reports of a trial: one a rung."""


class Scheduler(Component):
    """Base of schedulers."""

    waits: ClassVar[bool] = False
    """Whether trials wait for each other, so that others must get their workers meanwhile."""

    is_population: ClassVar[bool] = False
    """Whether trials take over each other's weights: Tune's object is made of `Takeovers` then."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Its fields, which are called as Tune's arguments."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def build(self, rungs: int) -> Any:
        """Tune's scheduler for trials of at most so many rungs."""
        raise NotImplementedError


@register("scheduler", "fifo")
class Fifo(Scheduler):
    """Every trial runs to its end."""

    def build(self, rungs: int) -> Any:
        """tune.schedulers.FIFOScheduler."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()


@register("scheduler", "asha")
class Asha(Scheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934).

    After grace_period * reduction_factor^k rungs, k = 0, 1, ..., a trial goes on only if it is among the best
    1 / reduction_factor of all that got there before.
    """

    grace_period: int = Field(default=1, ge=1)
    """Rungs before a trial may be stopped."""
    reduction_factor: float = Field(default=4, gt=1)
    """The share that goes on is 1 / reduction_factor."""
    brackets: int = Field(default=1, ge=1)
    """Brackets that trials are dealt to, each with a longer grace period than the one before."""

    def build(self, rungs: int) -> Any:
        """tune.schedulers.AsyncHyperBandScheduler."""
        from ray.tune.schedulers import AsyncHyperBandScheduler

        return AsyncHyperBandScheduler(time_attr=TIME, max_t=max(rungs, self.grace_period), **self.arguments)


@register("scheduler", "hyperband")
class HyperBand(Scheduler):
    """HyperBand (Li et al. 2018, arXiv:1603.06560): waits for all trials of a round before it halves them.

    Trials that wait give their worker to others and go on from their checkpoint.
    """

    waits: ClassVar[bool] = True

    reduction_factor: float = Field(default=3, gt=1)
    """The share that goes on is 1 / reduction_factor."""

    def build(self, rungs: int) -> Any:
        """tune.schedulers.HyperBandScheduler."""
        from ray.tune.schedulers import HyperBandScheduler

        return HyperBandScheduler(time_attr=TIME, max_t=rungs, **self.arguments)


@register("scheduler", "median")
class Median(Scheduler):
    """Stops a trial whose best result is below the median of the others' running means (Golovin et al. 2017)."""

    grace_period: int = Field(default=1, ge=1)
    """Rungs before a trial may be stopped."""
    min_samples_required: int = Field(default=3, ge=1)
    """Other trials that must have got there before one may be stopped."""

    def build(self, rungs: int) -> Any:
        """tune.schedulers.MedianStoppingRule."""
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(time_attr=TIME, **self.arguments)


class PopulationScheduler(Scheduler):
    """Base of the schedulers of a population."""

    waits: ClassVar[bool] = True
    is_population: ClassVar[bool] = True

    perturbation_interval: int = Field(default=1, ge=1)
    """Rungs between two decisions; at each of them all members wait for the last."""
    quantile_fraction: float = Field(default=0.25, gt=0, le=0.5)
    """The share of the members that take over others, and of those that are taken over."""

    def population_scheduler(self, takeovers: Takeovers) -> Any:
        """Tune's scheduler for a population."""
        raise NotImplementedError


@register("scheduler", "pbt")
class PopulationBased(PopulationScheduler):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846), its members in step.

    At a decision each of the worst members takes over the weights of one of the best, drawn at random, and goes on with
    that one's values, each multiplied by one of `perturbation_factors` (a `choice`: its neighbour in the list) or drawn
    anew.
    """

    resample_probability: float = Field(default=0.25, ge=0, le=1)
    """How likely a value is drawn anew."""
    perturbation_factors: tuple[float, float] = Field(default=(1.2, 0.8), strict=False)
    """What it is multiplied by otherwise, one or the other."""

    def population_scheduler(self, takeovers: Takeovers) -> Any:
        """tune.schedulers.PopulationBasedTraining."""
        from llrflow.sweep.decisions.population_schedulers import Pbt

        space = {name: takeovers.sampler(name) for name in takeovers.names}
        return Pbt(takeovers, hyperparam_mutations=takeovers.nested(space), time_attr=TIME, **self.arguments)


@register("scheduler", "pb2")
class PopulationBandits(PopulationScheduler):
    """Population based bandits (Parker-Holder et al. 2020, arXiv:2002.02518), its members in step.

    Like `pbt`, but the new values are those that a Gaussian process, told of all members' gains so far, finds most
    promising. It takes `uniform` and `loguniform` parameters; it sees their logarithm no more than Tune's does.
    """

    def population_scheduler(self, takeovers: Takeovers) -> Any:
        """tune.schedulers.pb2.PB2."""
        from llrflow.sweep.decisions.population_schedulers import Pb2

        bounds = {name: takeovers.bounds(name) for name in takeovers.names}
        return Pb2(takeovers, hyperparam_bounds=takeovers.nested(bounds), time_attr=TIME, **self.arguments)
