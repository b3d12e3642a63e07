"""A place to try attacks on a few examples of one model, as masking checks and studies do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.kept import kept_program
from llrflow.attacks.network import Examples, Network, Placement, looked_at
from llrflow.attacks.program import AttackProgram
from llrflow.attacks.search import InMemory, search
from llrflow.components.registry import make
from llrflow.method.ascent import Plan
from llrflow.method.probe import Reference
from llrflow.method.threat import Threat


class Subject(NamedTuple):
    """A model and examples that it classifies correctly."""

    network: Network
    placement: Placement
    variables: Any
    """As `placement` replicates them."""
    threat: Threat
    images: np.ndarray
    """[S,H,W,C]."""
    labels: np.ndarray
    key: np.ndarray
    """Raw key data."""
    classes: int
    size: int
    """Batch size."""
    ids: np.ndarray
    """What the examples are called in their dataset."""


class TrialAttacks:
    """Runs trial attacks on a subject. Attacks of one name share a program: they may differ in numbers and length."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._programs: dict[str, AttackProgram] = {}

    def attack(
        self, name: str, config: Mapping[str, Any] | Attack, threat: Threat | None = None, into: Any = None
    ) -> InMemory:
        """What an attack finds on all examples; `name` says which program it runs on, `into` continues restarts."""
        subject, ball = self.subject, threat or self.subject.threat
        attack = make("attack", config)
        if name not in self._programs:
            plan = Plan("host", 1)  # so that it serves any length
            self._programs[name] = kept_program(attack, ball, subject.network, subject.placement, plan=plan)
        findings = into or InMemory(np.ones(len(subject.labels), bool), False, np.zeros_like(subject.images))
        key = subject.placement.replicate(subject.key)
        program = self._programs[name].like(attack, ball)
        search(program, findings, self._load, subject.variables, key, subject.classes, subject.size)
        return findings

    def reference(self, key: np.ndarray) -> Reference:
        """Loss, logits and input gradient of the clean images, with the random draws that `key` gives."""
        return self._looked_at(self.subject.images, key)

    def losses(self, delta: np.ndarray) -> np.ndarray:
        """l(x + delta) in nats [S], with x + delta cut to [0,1]."""
        images = np.clip(self.subject.images + delta, 0, 1).astype(np.float32)
        return self._looked_at(images, self.subject.key).loss

    def _looked_at(self, images: np.ndarray, key: np.ndarray) -> Reference:
        subject, n = self.subject, len(images)
        examples = Examples(images, subject.labels, np.arange(n, dtype=np.int32), np.zeros(n, np.uint32))
        key = subject.placement.replicate(key)
        return looked_at(subject.network, subject.placement, subject.variables, examples, key, subject.size)

    def _load(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.subject.images[ids], self.subject.labels[ids]
