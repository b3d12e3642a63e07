"""What a whole sweep costs, before it runs: trials x steps x forward-equivalents."""

from __future__ import annotations

import functools
from typing import Any

from llrflow.data.well_known import describe_or_known
from llrflow.program.compile import compile_spec
from llrflow.program.cost import Count, parts
from llrflow.runs.presets import preset_attacks
from llrflow.spec.schema import Spec
from llrflow.sweep.space.trials import kinds_of, look_block, sweep_of, trials_of


def sweep_cost(spec: Spec, step_seconds: float | None = None) -> dict[str, Any]:
    """Counts over all trials, none of them stopped early; a forward pass is that of one image.

    Looks and evaluations count their attacks on every image, as if none were changed; masking checks are left out.
    Of finalists the dearest are counted.
    `step_seconds`, the measured time of a step of the spec itself, adds the hours of training.
    """
    sweep, trials = sweep_of(spec), trials_of(spec, describe_or_known)
    training = looks = evaluations = 0
    stronger: list[int] = []
    kinds = kinds_of(trials)
    for same in kinds:
        trial = same[0]
        program = compile_spec(trial.spec, training=False, facts_of=describe_or_known)
        step = functools.reduce(Count.plus, parts(program).values(), Count()).total
        training += sum(t.rungs[-1] for t in same) * trial.spec.train.batch_size * step
        block = look_block(trial.spec, sweep)
        escalated = {} if sweep.escalate is None else preset_attacks(sweep.escalate.attacks)
        deciding = program.facts.test if sweep.decide_on == "test" else program.facts.validation
        own = trial.spec.evaluate
        look, final, finalist = (
            images * evaluate.forwards(trial.spec.threat, program.classes)
            for images, evaluate in (
                (deciding, block),
                (own.drawn_of(program.facts.test), own),
                (own.drawn_of(deciding), own.attacked_by(escalated)),
            )
        )
        stronger += [finalist] * len(same)
        looks += sum(len(t.rungs) for t in same) * look
        evaluations += len(same) * final
    steps = sum(trial.rungs[-1] for trial in trials)
    result = {
        "trials": len(trials),
        "configurations": len({trial.configuration for trial in trials}),
        "seeds": sweep.seeds,
        "kinds": len(kinds),
        "steps": steps,
        "looks": sum(len(trial.rungs) for trial in trials),
        "training_forwards": training,
        "look_forwards": looks,
        "evaluation_forwards": evaluations,
        "scheduler": sweep.scheduler.registered_as[1],
    }
    if sweep.escalate is not None:
        finalists = sorted(stronger)[-sweep.escalate.top * sweep.seeds * max(1, len(sweep.variants)) :]
        result["escalation_forwards"] = sum(finalists)
    if step_seconds is not None:
        result["training_hours"] = steps * step_seconds / 3600
    return result
