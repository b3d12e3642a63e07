"""Adversarial images crafted on another model: what an adversary does who cannot see this one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
from pydantic import Field, model_validator

from llrflow.attacks.base import Attack, StepCost
from llrflow.base.validation import raise_at
from llrflow.components.fields import Chosen
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory
from llrflow.method.threat import Threat


@register("attack", "transfer")
class Transfer(Attack):
    """Runs another attack on the model of another run, and judges what it finds on this one (Papernot et al. 2016).

    No image is left at the first error of the other model: what hardly misleads it seldom misleads this one.

    More errors than attacks that see this model's gradients find are a sign that its gradients are masked. In
    `llrflow.attack` the other model is the argument `surrogate`.
    """

    needs_surrogate: ClassVar[bool] = True

    run: str = ""
    """Folder of the run whose model is searched on."""

    checkpoint: Annotated[int | None, Field(ge=0)] = None
    """Step of that run; default its newest intact checkpoint."""

    attack: Annotated[Any, Chosen("attack", default="pgd")] = Field(default="pgd", validate_default=True)
    """The attack on that model: one with a fixed budget. It goes on to larger values where that model already errs."""

    @model_validator(mode="after")
    def _single_and_bounded(self) -> Transfer:
        inner = self.attack
        if inner.minimum_norm or inner.needs_surrogate or type(inner).length is Attack.length:
            raise_at(("attack", "type"), inner.registered_as[1], "attack", "does not transfer; choose pgd, apgd_ce ...")
        if inner.eot != 1:
            raise_at(("attack", "eot"), inner.eot, "eot", "has no effect here; set `eot` of the transfer attack")
        return self

    @property
    def step_cost(self) -> StepCost:  # type: ignore[override]
        """That of the attack, on the other model."""
        return self.attack.step_cost

    @property
    def norms(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the attack."""
        return self.attack.norms

    @property
    def length(self) -> int:
        """Steps of the attack."""
        return self.attack.length

    def runs(self, classes: int) -> int:
        """Those of the attack; each is judged on the model that is attacked."""
        return self.attack.runs(classes)

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> Any:
        """As the attack."""
        return self.attack.begin(probes, threat, keys, run)

    def advance(self, probes: ProbeFactory, threat: Threat, state: Any, index: jax.Array) -> Any:
        """As the attack."""
        return self.attack.advance(probes, threat, state, index)

    def finish(self, probes: ProbeFactory, threat: Threat, state: Any) -> jax.Array:
        """As the attack: what misleads the other model best."""
        return self.attack.finish(probes, threat, state)
