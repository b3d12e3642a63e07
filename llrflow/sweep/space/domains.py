"""What values a swept parameter takes: one uniform number gives one value, so that larger sweeps contain smaller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llrflow.base.validation import invalid, parse_number, raise_at
from llrflow.components.registry import Component, register

DIGITS = 6
"""Significant digits of a drawn number: what a table shows is what was run."""


class Domain(Component):
    """Base of the kinds of parameters."""

    crossed: ClassVar[bool] = False
    """Whether every search combines each of its values with all other parameters."""

    learnt: ClassVar[bool] = False
    """Whether a search that learns suggests its values; else they are drawn."""

    changes: ClassVar[bool] = True
    """Whether its value is chosen; else it follows from others."""

    def listed(self) -> list[Any] | None:
        """All values, for a grid search; None where there are infinitely many."""
        return None

    def draw(self, u: float, value_of: Callable[[str], Any]) -> Any:
        """The value at u, uniform in [0,1); `value_of(path)` is what the trial has there so far."""
        raise NotImplementedError

    def nearest(self, value: Any) -> Any:
        """The value of the domain that is next to a given one."""
        return value

    def place(self, value: Any) -> float:
        """A u of `draw` that gives the value. Raises ValueError where none does."""
        raise NotImplementedError

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that Optuna suggests for one of its trials."""
        raise NotImplementedError

    def suggestion(self, value: Any) -> Any:
        """What Optuna suggested for the value to come. Raises ValueError where nothing leads to it."""
        return value


class _Listed(Domain):
    learnt: ClassVar[bool] = True
    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
    """The values: numbers, text, or whole components such as `{type: mlp, widths: [16]}`."""

    def listed(self) -> list[Any]:
        return list(self.values)

    def draw(self, u: float, value_of: Callable[[str], Any]) -> Any:
        return self.values[int(u * len(self.values))]

    def place(self, value: Any) -> float:
        return (self.values.index(value) + 0.5) / len(self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        return self.values[trial.suggest_categorical(name, range(len(self.values)))]

    def suggestion(self, value: Any) -> int:
        return self.values.index(value)


@register("domain", "choice")
class Choice(_Listed):
    """One of a list; a grid search takes each, other searches draw one."""


@register("domain", "grid")
class Grid(_Listed):
    """Each of a list, in every search: a random search repeats its draws of the other parameters for each value."""

    crossed: ClassVar[bool] = True


class _Interval(Domain):
    learnt: ClassVar[bool] = True
    low: float
    """Smallest value."""

    high: float
    """Largest value."""

    quantum: Annotated[float | None, Field(gt=0)] = None
    """Round to multiples of this number."""

    @model_validator(mode="after")
    def _ordered(self) -> Any:
        if self.low >= self.high:
            raise_at(("high",), self.high, "order", f"is not above low = {self.low:g}")
        return self

    def nearest(self, value: Any) -> float:
        """Inside, rounded."""
        return self._rounded(value)

    def _inside(self, value: Any) -> float:
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is not from {self.low:g} to {self.high:g}")
        return value

    def _rounded(self, value: float) -> float:
        if self.quantum is not None:
            value = round(value / self.quantum) * self.quantum
        return float(f"{min(max(value, self.low), self.high):.{DIGITS}g}")


@register("domain", "uniform")
class Uniform(_Interval):
    """Uniform between `low` and `high`."""

    def draw(self, u: float, value_of: Callable[[str], Any]) -> float:
        """low + u (high - low)."""
        return self._rounded(self.low + u * (self.high - self.low))

    def place(self, value: Any) -> float:
        """(value - low) / (high - low)."""
        return (self._inside(value) - self.low) / (self.high - self.low)

    def suggest(self, trial: Any, name: str) -> float:
        """Rounded only now, since Optuna's multiples begin at `low`."""
        return self._rounded(trial.suggest_float(name, self.low, self.high))


@register("domain", "loguniform")
class LogUniform(_Interval):
    """Uniform in the logarithm between `low` and `high`, both positive."""

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.low <= 0:
            raise_at(("low",), self.low, "positive", "must be > 0 for a logarithm; use uniform, or a small number")
        return self

    def draw(self, u: float, value_of: Callable[[str], Any]) -> float:
        """low (high / low)^u."""
        return self._rounded(self.low * (self.high / self.low) ** u)

    def place(self, value: Any) -> float:
        """log(value / low) / log(high / low)."""
        return math.log(self._inside(value) / self.low) / math.log(self.high / self.low)

    def suggest(self, trial: Any, name: str) -> float:
        """Likewise, in the logarithm."""
        return self._rounded(trial.suggest_float(name, self.low, self.high, log=True))


@register("domain", "integer")
class Integer(Domain):
    """A whole number from `low` to `high`, both included."""

    learnt: ClassVar[bool] = True

    low: int
    """Smallest value."""

    high: int
    """Largest value."""

    log: bool = False
    """Uniform in the logarithm."""

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        if self.low > self.high:
            raise_at(("high",), self.high, "order", f"is below low = {self.low}")
        if self.log and self.low < 1:
            raise_at(("low",), self.low, "positive", "must be at least 1 for a logarithm")
        return self

    def listed(self) -> list[int]:
        """low, low + 1, ..., high."""
        return list(range(self.low, self.high + 1))

    def draw(self, u: float, value_of: Callable[[str], Any]) -> int:
        """low + floor(u n) of n numbers; with `log` the floor of low ((high + 1) / low)^u."""
        ends = self.low, self.high + 1
        found = self.low * (ends[1] / ends[0]) ** u if self.log else self.low + u * (ends[1] - ends[0])
        return min(math.floor(found), self.high)

    def nearest(self, value: Any) -> int:
        """Inside, rounded."""
        return min(max(round(value), self.low), self.high)

    def place(self, value: Any) -> float:
        """The middle of the numbers u that give it."""
        if value not in range(self.low, self.high + 1):
            raise ValueError(f"{value!r} is not from {self.low} to {self.high}")
        ends, middle = (self.low, self.high + 1), value + 0.5
        if self.log:
            return math.log(middle / ends[0]) / math.log(ends[1] / ends[0])
        return (middle - ends[0]) / (ends[1] - ends[0])

    def suggest(self, trial: Any, name: str) -> int:
        """Itself."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)


_FROM = "Path of the other number: of a parameter written above this one, or of the spec."


@register("domain", "derived")
class Derived(Domain):
    """A number that follows from another: `times` * that + `plus`."""

    # `from` is the natural word in YAML and a keyword in Python.
    __annotations__ = {"from": Annotated[str, Field(description=_FROM)]}
    changes: ClassVar[bool] = False

    times: float = 1.0
    """Factor of the other number."""

    plus: float = 0.0
    """Added to it."""

    def listed(self) -> list[Any]:
        """One value, whatever it is."""
        return [None]

    def draw(self, u: float, value_of: Callable[[str], Any]) -> float:
        """times * value + plus."""
        path = getattr(self, "from")
        try:
            value = parse_number(value_of(path))
        except PydanticCustomError:
            raise invalid("number", f"follows {path} = {value_of(path)!r}, which is not a number") from None
        return float(f"{self.times * value + self.plus:.{DIGITS}g}")
