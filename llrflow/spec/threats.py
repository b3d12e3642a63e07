"""Several threats in one evaluation: each with its attacks, and an image is robust if it stands under all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from llrflow.components.fields import Chosen
from llrflow.components.registry import ResultName
from llrflow.method.threat import Threat


class NamedThreat(Threat):
    """One of several threats of an evaluation."""

    attacks: dict[ResultName, Annotated[Any, Chosen("attack")]] | None = None
    """Attacks within this threat, in the place of `evaluate.attacks`."""

    @property
    def ball(self) -> Threat:
        """The threat alone."""
        return Threat(norm=self.norm, epsilon=self.epsilon)


class UnderThreat(NamedTuple):
    """What an evaluation does within one threat."""

    name: str
    """Of the threat; empty where it is the only one."""
    threat: Threat
    attacks: Mapping[str, Any]
    place: str
    """Dotted path of the attacks in a spec."""

    def named(self, attack: str) -> str:
        """An attack's name in the whole evaluation: `l2.pgd`, or `pgd` where there is one threat."""
        return f"{self.name}.{attack}" if self.name else attack

    def forwards(self, classes: int) -> int:
        """Forward-equivalents that the attacks spend on an image that stays correct."""
        return sum(attack.forwards(self.threat, classes) for attack in self.attacks.values())
