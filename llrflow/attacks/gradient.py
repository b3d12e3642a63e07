"""First-order attacks: projected ascent with its field-standard settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llrflow.ascent import Search
from llrflow.registry import Chosen, Traced, register


@register("attack", "pgd")
class PGD(Search):
    """Projected gradient ascent (Madry et al. 2018), keeping per example the best iterate of all restarts.

    Misclassified iterates come before correct ones, then the larger objective. The default objective is the
    margin, which the LLR author response found stronger than cross-entropy.
    """

    maximize: Annotated[Any, Chosen("term", default="margin")] = Field(default="margin", validate_default=True)
    """The term to maximise."""

    steps: int = Field(default=50, ge=1)
    """Number of ascent steps."""

    keep: Literal["last", "best"] = "best"
    """Keep the last iterate, or the best one visited."""


@register("attack", "fgsm")
class FGSM(Search):
    """One steepest step of length epsilon from `start` (Goodfellow et al. 2015)."""

    steps: Literal[1] = 1
    """Always one."""

    reach: Annotated[float, Traced(gt=0)] = 1.0
    """Length of the step, in epsilons."""

    start: Annotated[Any, Chosen("start", default="zero")] = Field(default="zero", validate_default=True)
    """Where the step is taken from."""

    restarts: Literal[1] = 1
    """Always one."""


@register("attack", "noise")
class Noise(Search):
    """Uniform noise in the ball, no gradient: a control that any real attack must beat."""

    steps: Literal[0] = 0
    """Always none."""
