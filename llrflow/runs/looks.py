"""Looks at a run while it trains: what they evaluate and measure, and the best checkpoint by those of the run's own.

Robust accuracy on images that were not trained on falls again in long adversarial training (robust overfitting: Rice et
al. 2020, arXiv:2002.11569), so that the best checkpoint is not the last. Each look of `checkpoint.best` is a line of
metrics.jsonl, written before training goes on, and the choice is read from these lines: it is the same whenever a run
was killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from llrflow.runs.records import EvaluationRecord
    from llrflow.spec.schema import Best, Checks, Evaluate

PREFIX = "validation."
"""Begins the names of what a look measured, in metrics.jsonl."""

WORST = f"{PREFIX}worst_case.accuracy"


def look_block(evaluate: Evaluate, attacks: Mapping[str, Any], checks: Checks) -> Evaluate:
    """What a look evaluates: cheap attacks on every image within the spec's `threat`, and nothing else that a spec's
    evaluation has."""
    nothing = {"images": None, "threats": {}, "strength": None, "linearity": None, "surface": None, "cascade": False}
    return evaluate.model_copy(update={"attacks": attacks, "checks": checks, **nothing})


def measured(record: EvaluationRecord) -> dict[str, float]:
    """What a look measured, by the names of metrics."""
    return {
        "worst_case.accuracy": record.worst_case.accuracy,
        "nominal.accuracy": record.nominal.accuracy,
        **{f"attacks.{name}.accuracy": attack.accuracy for name, attack in record.attacks.items()},
        **{f"gamma.{name}.mean": values.mean for name, values in record.gamma.items()},
    }


def is_look(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is that of a look."""
    return WORST in line


class Chosen(NamedTuple):
    """The best of a run's looks, and its last one."""

    best: int
    """Step of the highest worst-case accuracy, the earliest of equals."""
    best_robust: float
    last: int
    last_robust: float
    since: int
    """Looks after the best one."""


def chosen(lines: Iterable[Mapping[str, Any]]) -> Chosen | None:
    """The choice that the lines of metrics.jsonl make; None where there is no look among them."""
    looks = [(int(line["step"]), float(line[WORST])) for line in lines if is_look(line)]
    if not looks:
        return None
    best = max(range(len(looks)), key=lambda i: (looks[i][1], -i))
    return Chosen(*looks[best], *looks[-1], since=len(looks) - 1 - best)


def look_steps(best: Best | None, steps: int) -> Sequence[int]:
    """Steps of a training that `checkpoint.best` looks at; the last one always is."""
    return () if best is None else (*range(best.every, steps, best.every), steps)


def ended_early(best: Best, found: Chosen | None) -> bool:
    """Whether so many looks in a row were no better that training is to stop."""
    return best.patience is not None and found is not None and found.since >= best.patience
