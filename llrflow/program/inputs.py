"""The numbers that a compiled step takes as inputs, at every step of the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from llrflow.components.optimizers import Piecewise
from llrflow.components.registry import Component
from llrflow.components.traced import numbers
from llrflow.spec.load import at
from llrflow.spec.schema import Spec

BLOCKS = ("objective", "optimizer", "threat", "train")


@contextmanager
def optax_errors(spec: Spec, path: str) -> Iterator[None]:
    """Turn what optax says of wrong arguments into a SpecError at a place of the spec."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise at(spec, path, f"is refused by optax: {error}", "correct its arguments") from error


class Inputs:
    """Names and values of a resolved spec's traced numbers; schedules are tabulated over all steps, on the host."""

    def __init__(self, spec: Spec) -> None:
        """Raises SpecError when a schedule leaves the bounds of its number."""
        found = {path: (value, bounds) for path, value, bounds in numbers(spec) if path.split(".")[0] in BLOCKS}
        self.names = tuple(sorted(found))
        steps = spec.train.steps
        assert steps is not None
        self._table = np.zeros((steps, len(self.names)), np.float32)
        for column, name in enumerate(self.names):
            value, bounds = found[name]
            if not isinstance(value, Component):
                self._table[:, column] = value
                continue
            with optax_errors(spec, name):
                schedule = value.build()  # type: ignore[attr-defined]
            self._table[:, column] = np.asarray(jax.vmap(schedule)(np.arange(steps)))
            if (end := _end(value)) > steps and name.startswith("objective."):
                raise at(
                    spec,
                    name,
                    f"follows a schedule of {end} steps, training has {steps}",
                    "shorten it, or train longer",
                )
            for extreme in (self._table[:, column].min(), self._table[:, column].max()):
                problem = bounds.check(float(extreme))
                if problem or not np.isfinite(extreme):
                    raise at(
                        spec,
                        name,
                        f"takes the value {extreme:g}, which {problem or 'is not finite'}",
                        "change the schedule",
                    )

        if "train.ema" in self.names and not isinstance(spec.train.ema, Component):
            column, step = self.names.index("train.ema"), np.arange(steps)
            self._table[:, column] = np.minimum(self._table[:, column], (1 + step) / (10 + step))

        if "optimizer.learning_rate" in self.names:
            self._table[:, self.names.index("optimizer.learning_rate")] *= rate_factor(spec)

        for term, place in spec.objective.places().items():
            entry, column = spec.objective.entries()[term], self.names.index(f"{place}.weight")
            if self._table[:, column].min() < 0 and not entry.allow_negative:
                got = f"takes the value {self._table[:, column].min():g}, which would reward the term"
                raise at(spec, f"{place}.weight", got, "make it positive, or set allow_negative: true beside it")

    def over_training(self, name: str) -> np.ndarray:
        """The values of one number, [steps]."""
        return self._table[:, self.names.index(name)]

    def at(self, step: int) -> np.ndarray:
        """Values at a step, float32 in the order of `names`; those of the last step afterwards."""
        return self._table[min(step, len(self._table) - 1)]


def rate_factor(spec: Spec) -> float:
    """What the learning rate is multiplied by for its batch size."""
    ratio = spec.train.batch_size / spec.optimizer.base_batch
    return {"no": 1.0, "linear": ratio, "sqrt": ratio**0.5}[spec.optimizer.scale_for_batch]


def _end(schedule: Component) -> int:
    """The step at which a resolved schedule of optax reaches its last value; an exponential decay never does."""
    if isinstance(schedule, Piecewise):
        inside = [_end(piece) for piece in schedule.pieces.values() if isinstance(piece, Component)]
        return max([*schedule.pieces, *inside])
    fields: dict[str, Any] = {name: value or 0 for name, value in schedule.model_dump().items()}
    transition = 0 if "decay_rate" in fields else fields.get("transition_steps", 0)
    ends = [fields.get("transition_begin", 0) + transition, fields.get("decay_steps", 0), fields.get("warmup_steps", 0)]
    return max(map(int, (*ends, *(fields.get("boundaries_and_scales") or ()))))
