"""Who may stop a trial early: Tune's schedulers, with the names of Tune's own arguments. Time is counted in rungs."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from llrflow.registry import Component, register

TIME = "training_iteration"
"""Tune's count of the reports of a trial: one a rung."""


class Scheduler(Component):
    """Base of schedulers."""

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
