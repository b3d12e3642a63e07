"""How a step's parameter gradient is computed: plainly, or by a plugin that wraps the computation.

A component of the kind `gradient` is called as `component(gradient, params)` and returns a Gradient. It may call
`gradient` as often as it likes, at other parameters too: adversarial weight perturbation asks at params, moves
them uphill, and asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llrflow.components.registry import Component, register


class Gradient(NamedTuple):
    """The gradient of the objective at some parameters, over the whole batch, and what else came of computing it."""

    value: Any
    """d objective / d parameters, a tree like the parameters: the mean over the batch on all devices."""
    perturbations: Any
    """The perturbations that the searches found, to be passed on where they shall not be searched for again."""
    outcome: Any
    """Metrics, moving statistics and term states of this computation; the step keeps those of the Gradient returned."""


GradientFn = Callable[..., Gradient]
"""gradient(params, perturbations=None): at these parameters; searches unless given perturbations."""


@register("gradient", "plain")
class Plain(Component):
    """The gradient of the objective at the current parameters."""

    def __call__(self, gradient: GradientFn, params: Any) -> Gradient:
        """One computation."""
        return gradient(params)
