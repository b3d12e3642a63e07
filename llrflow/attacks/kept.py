"""Compiled attacks, kept: what differs in numbers alone compiles nothing."""

from __future__ import annotations

import functools
from typing import Any

from llrflow.attacks.base import Attack
from llrflow.attacks.network import Network, Placement
from llrflow.attacks.program import AttackProgram
from llrflow.components.traced import static_key
from llrflow.method.ascent import Plan
from llrflow.method.threat import Threat


def kept_program(
    attack: Attack,
    threat: Threat,
    network: Network,
    placement: Placement,
    surrogate: Network | None = None,
    plan: Plan | None = None,
) -> AttackProgram:
    """As AttackProgram; what was compiled for an attack and a threat that differ in traced numbers serves again."""
    static = static_key(attack), static_key(threat)
    return _kept(type(attack), static, network, placement, surrogate, plan, _Held((attack, threat))).like(
        attack, threat
    )


class _Held:
    """A value that a cache's key carries along without comparing it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=32)
def _kept(
    cls: type, static: tuple[str, str], network: Any, placement: Any, surrogate: Any, plan: Any, held: _Held
) -> Any:
    attack, threat = held.value
    return AttackProgram(attack, threat, network, placement, surrogate, plan)
