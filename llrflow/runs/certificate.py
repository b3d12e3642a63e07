"""What an evaluation's certificate says, from the verdicts of its attacks: the same of a run and of any function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.search import Findings
from llrflow.method.threat import Threat
from llrflow.runs.classes import classes_record, taken_for
from llrflow.runs.records import written
from llrflow.runs.summaries import attack_record, distances_of, distribution, last_word, proportion
from llrflow.spec.schema import Evaluate

RANDOM = "random"
"""Name of the control: uniform noise, whose linearity stands beside that of the attacks."""


class Turn(NamedTuple):
    """One attack of an evaluation."""

    name: str
    attack: Attack
    attacked: np.ndarray
    """The images that it was run on, [N]."""
    found: list[tuple[Attack, Any]]
    """Its stages with their findings, each on what the earlier ones left correct."""
    left: np.ndarray
    """The images that are correct after it; in a cascade also after all before it, [N]."""
    standing: np.ndarray
    """Those that are correct after it and all before it, [N]."""


def attacked_in_turn(
    block: Evaluate,
    threat: Threat,
    classes: int,
    correct: np.ndarray,
    attack: Callable[[str, Attack, np.ndarray, bool], Findings],
) -> Iterator[Turn]:
    """Every attack of the block on the images that are `correct` [N], in the order of their cost.

    `attack(name, attack, attacked, within)` makes one on images [N]; a stage `within` another need only find errors.
    """
    standing = correct
    for name, whole in _in_order(block.attacks, threat, classes):
        attacked = standing if block.cascade and not whole.minimum_norm else correct
        found, left = [], attacked
        for stage, part in whole.stages(threat, classes).items():
            findings = attack(f"{name}.{stage}" if stage else name, part, left, bool(stage))
            found.append((part, findings))
            left = left & ~findings.arrays["wrong"]
        wrong = np.any([attacked & stage.arrays["wrong"] for _, stage in found], axis=0)
        standing = standing & ~wrong
        yield Turn(name, whole, attacked, found, standing if block.cascade else correct & ~wrong, standing)


def _in_order(attacks: Mapping[str, Attack], threat: Threat, classes: int) -> list[tuple[str, Attack]]:
    """Those that see the model's gradients first, and the cheaper before the dearer."""

    def place(item: tuple[str, Attack]) -> tuple[bool, int]:
        stages = item[1].stages(threat, classes).values()
        return not any(part.white_box for part in stages), item[1].forwards(threat, classes)

    return sorted(attacks.items(), key=place)


def certified(
    block: Evaluate,
    threat: Threat,
    class_names: Sequence[str],
    label: np.ndarray,
    clean: np.ndarray,
    control: Findings,
    turns: Sequence[Turn],
) -> dict[str, Any]:
    """The fields of a Certificate that verdicts decide.

    `label` and `clean` predicted class are [N], `control` what noise does to the images that are correct.
    """
    correct = clean == label
    linearity, attacks = {RANDOM: control.arrays["linearity"][correct]}, {}
    taken, worst = {"nominal": clean}, clean
    for name, attack, attacked, found, left, _ in turns:
        minimum = None
        if attack.minimum_norm:
            minimum = distances_of(found[0][1].arrays["distance"], correct, float(threat.epsilon))
        worst = taken_for(label, worst, found)
        taken[name] = worst if block.cascade else taken_for(label, clean, found)
        attacks[name] = attack_record(attack, found, attacked, left, minimum)
        if attacked.any():
            linearity[name] = last_word(found, "linearity")[attacked]
    return {
        "threat": threat.model_dump(),
        "epsilon": written(threat.epsilon),
        "n": len(label),
        "nominal": proportion(correct),
        "cascade": block.cascade,
        "attacks": attacks,
        "worst_case": proportion(turns[-1].standing if turns else correct),
        "classes": classes_record(class_names, label, {**taken, "worst case": worst}),
        "gamma": {name: distribution(values) for name, values in linearity.items() if len(values)},
        "checked": min(block.checks.examples, int(correct.sum())),
    }
