"""Per-example verdicts, summed up: the parts of an evaluation's certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.search import Findings
from llrflow.attacks.studies import statistics
from llrflow.runs.records import AttackRecord, CurvePoint, Distances, Distribution, Proportion, StageRecord

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Multiples of epsilon at which the accuracy under a minimum-norm attack is written down."""


def last_word(found: Sequence[tuple[Attack, Findings]], field: str) -> np.ndarray:
    """What the last stage that attacked each example says of it, [N]; of a minimum-norm stage only its successes."""
    values = found[0][1].arrays[field].copy()
    for part, stage in found[1:]:
        take = stage.candidates & (stage.arrays["wrong"] | (not part.minimum_norm))
        values[take] = stage.arrays[field][take]
    return values


def stage_record(stage: Findings) -> StageRecord:
    """The work of one attack that is not composed, and what came of it."""
    there = stage.candidates
    return StageRecord(
        attacked=int(there.sum()),
        kills=int((there & stage.arrays["wrong"]).sum()),
        queries=int(stage.arrays["queries"][there].sum(dtype=np.int64)),
        gradients=int(stage.arrays["gradients"][there].sum(dtype=np.int64)),
        seconds=round(stage.seconds, 3),
    )


def cost_and_yield(part: StageRecord) -> str:
    """A stage in words: `12.3 s, 51,000 gradients, 312 of 848 broken`; its queries where it takes no gradients."""
    asked = f"{part.gradients:,} gradients" if part.gradients else f"{part.queries:,} queries"
    return f"{part.seconds:.1f} s, {asked}, {part.kills} of {part.attacked} broken"


def attack_record(
    attack: Attack,
    found: Sequence[tuple[Attack, Findings]],
    attacked: np.ndarray,
    standing: np.ndarray,
    minimum: Distances | None,
) -> AttackRecord:
    """An attack's part of the certificate, from the verdicts of its stages; [N] who was attacked, who still stands."""
    stages, share = {}, proportion(standing)
    for part, stage in found:
        stages[part.label().removeprefix("attack ")] = stage_record(stage)
    parts = stages.values()
    return AttackRecord(
        accuracy=share.accuracy,
        correct=share.correct,
        n=share.n,
        interval=share.interval,
        attack=json.loads(json.dumps(attack.model_dump())),
        attacked=int(attacked.sum()),
        kills=sum(part.kills for part in parts),
        queries=sum(part.queries for part in parts),
        gradients=sum(part.gradients for part in parts),
        seconds=round(sum(part.seconds for part in parts), 3),
        stages=stages if len(stages) > 1 else {},
        minimum=minimum,
    )


def proportion(hits: np.ndarray) -> Proportion:
    """Share of True values with its Wilson 95 % interval (Wilson 1927)."""
    from scipy.stats import binomtest

    correct, n = int(hits.sum()), len(hits)
    low, high = binomtest(correct, n).proportion_ci(0.95, "wilson")
    return Proportion(accuracy=correct / n, correct=correct, n=n, interval=(float(low), float(high)))


def distribution(values: np.ndarray) -> Distribution:
    """Mean and quantiles."""
    return Distribution(n=len(values), **statistics(values))


def distances_of(distances: np.ndarray, correct: np.ndarray, epsilon: float) -> Distances:
    """What a minimum-norm attack says beyond epsilon; an image that is misclassified anyway has distance 0."""
    known = np.where(correct, distances, 0.0)
    curve = [CurvePoint(epsilon=c * epsilon, **dict(proportion(known > c * epsilon))) for c in CURVE]
    found, median = distances[correct & np.isfinite(distances)], float(np.median(known))
    return Distances(
        found=len(found),
        median=median if np.isfinite(median) else None,
        beyond_epsilon=float(np.mean(known > epsilon)),
        curve=curve,
        distances=distribution(found) if len(found) else None,
    )
