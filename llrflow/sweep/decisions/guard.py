"""When a trial's robustness breaks down: catastrophic overfitting, told from its looks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llrflow.spec.sweep_schema import Rung


def broken_down(rung: Rung, looks: Sequence[Mapping[str, float]]) -> str | None:
    """Why a trial is to be stopped at the last of its looks; None if it is not, or nobody watches.

    With R the worst-case accuracy, A that under one step of FGSM (the nominal one where no FGSM looks), gamma the mean
    linearity error, and maxima over the earlier looks: R < share * max R while A >= share * max A; or
    gamma > factor * max gamma; both only once max R >= floor.
    """
    guard = rung.guard
    if guard is None or len(looks) < 2:
        return None
    *earlier, now = looks
    worst = "worst_case.accuracy"

    def highest(key: str) -> float:
        return max(look[key] for look in earlier)

    if highest(worst) < guard.floor:
        return None
    one_step = [name for name, attack in rung.attacks.items() if attack.registered_as[1] == "fgsm"]
    easy = f"attacks.{one_step[0]}.accuracy" if one_step else "nominal.accuracy"
    if guard.share is not None:
        fallen, also = (now[key] < guard.share * highest(key) for key in (worst, easy))
        if fallen and not also:
            best = f"worst-case accuracy {now[worst]:.2%} after {highest(worst):.2%}"
            return f"catastrophic overfitting: {best}, {easy} {now[easy]:.2%}"
    before = highest(rung.gamma)
    if guard.gamma is not None and now[rung.gamma] > guard.gamma * before:
        return f"catastrophic overfitting: {rung.gamma} {now[rung.gamma]:.4g} after at most {before:.4g}"
    return None
