"""What an evaluation's certificate says, from the verdicts of its attacks: the same of a run and of any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.search import Findings
from llrflow.components.registry import make
from llrflow.method.threat import Threat
from llrflow.runs.classes import classes_record, taken_for
from llrflow.runs.records import ThreatRecord, worst_within, written
from llrflow.runs.summaries import attack_record, distances_of, distribution, last_word, proportion
from llrflow.spec.schema import Evaluate
from llrflow.spec.threats import UnderThreat

RANDOM = "random"
"""Name of the control: uniform noise, whose linearity stands beside that of the attacks."""


class Turn(NamedTuple):
    """One attack of an evaluation within one threat."""

    name: str
    """In the whole evaluation."""
    attack: Attack
    attacked: np.ndarray
    """The images that it was run on, [N]."""
    found: list[tuple[Attack, Any]]
    """Its stages with their findings, each on what the earlier ones left correct."""
    left: np.ndarray
    """The images that are correct after it; in a cascade also after all before it, [N]."""


class Attacked(NamedTuple):
    """What became of the images within one threat."""

    under: UnderThreat
    control: Findings
    """What noise does to the images that are correct."""
    turns: list[Turn]
    standing: np.ndarray
    """The images that are correct after every attack, [N]."""


def attacked(
    under: UnderThreat,
    cascade: bool,
    classes: int,
    correct: np.ndarray,
    attack: Callable[[str, Attack, np.ndarray, bool], Findings],
) -> Attacked:
    """The control and every attack within one threat on the images that are `correct` [N], in the order of their cost.

    `attack(name, attack, attacked, within)` makes one on images [N], by its name within the threat; a stage `within`
    another need only find errors.
    """
    control, turns, standing = attack(RANDOM, make("attack", "noise"), correct, False), [], correct
    for name, whole in _in_order(under, classes):
        on = standing if cascade and not whole.minimum_norm else correct
        found, left = [], on
        for stage, part in whole.stages(under.threat, classes).items():
            findings = attack(f"{name}.{stage}" if stage else name, part, left, bool(stage))
            found.append((part, findings))
            left = left & ~findings.arrays["wrong"]
        wrong = np.any([on & stage.arrays["wrong"] for _, stage in found], axis=0)
        standing = standing & ~wrong
        turns.append(Turn(under.named(name), whole, on, found, standing if cascade else correct & ~wrong))
    return Attacked(under, control, turns, standing)


def _in_order(under: UnderThreat, classes: int) -> list[tuple[str, Attack]]:
    """Those that see the model's gradients first, and the cheaper before the dearer."""

    def place(item: tuple[str, Attack]) -> tuple[bool, int]:
        stages = item[1].stages(under.threat, classes).values()
        return not any(part.white_box for part in stages), item[1].forwards(under.threat, classes)

    return sorted(under.attacks.items(), key=place)


def certified(
    block: Evaluate,
    threat: Threat,
    class_names: Sequence[str],
    label: np.ndarray,
    clean: np.ndarray,
    made: Sequence[Attacked],
) -> dict[str, Any]:
    """The fields of a Certificate that verdicts decide, from what was `made` within each threat.

    `label` and `clean` predicted class are [N]. The worst case is that of all threats together: of their union.
    """
    correct = clean == label
    linearity, attacks, threats = {}, {}, {}
    taken, worst = {"nominal": clean}, clean
    for under, control, turns, standing in made:
        linearity[under.named(RANDOM)] = control.arrays["linearity"][correct]
        within = clean
        for name, attack, on, found, left in turns:
            minimum = None
            if attack.minimum_norm:
                minimum = distances_of(found[0][1].arrays["distance"], correct, float(under.threat.epsilon))
            within, worst = taken_for(label, within, found), taken_for(label, worst, found)
            taken[name] = within if block.cascade else taken_for(label, clean, found)
            attacks[name] = attack_record(attack, found, on, left, minimum)
            if on.any():
                linearity[name] = last_word(found, "linearity")[on]
        if under.name:
            taken[worst_within(under.name)] = within
            own = {"threat": under.threat.model_dump(), "epsilon": written(under.threat.epsilon)}
            threats[under.name] = ThreatRecord(**own, worst_case=proportion(standing))
    return {
        "threat": threat.model_dump(),
        "epsilon": written(threat.epsilon),
        "threats": threats,
        "n": len(label),
        "nominal": proportion(correct),
        "cascade": block.cascade,
        "attacks": attacks,
        "worst_case": proportion(np.all([of.standing for of in made], axis=0)),
        "classes": classes_record(class_names, label, {**taken, "worst case": worst}),
        "gamma": {name: distribution(values) for name, values in linearity.items() if len(values)},
        "checked": min(block.checks.examples, int(correct.sum())),
    }
