"""AutoAttack: a parameter-free ensemble of attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from llrflow.attacks.base import Attack
from llrflow.base.errors import SpecError
from llrflow.components.registry import make, register
from llrflow.method.norms import NORMS
from llrflow.method.threat import Threat

TARGETS, RESTARTS, DRAWS = 9, 5, 20
"""Targets of the targeted attacks, restarts of the untargeted ones in `plus`, draws of a gradient in `rand`."""
L1_TARGETS = 5
"""Targets of apgd_t under l1."""


@register("attack", "auto_attack")
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020, arXiv:2003.01690): each attack runs on what the earlier ones left correct.

    The profiles are those of the authors' repository. `standard`: apgd_ce, apgd_t, fab_t and square, the protocol of
    RobustBench. `plus`: apgd_ce and apgd_dlr with 5 restarts, square, apgd_t, and fab_t with 5 restarts, which stand
    for the 5 of untargeted FAB as well. `rand`, for stochastic models: apgd_ce and apgd_dlr, each gradient averaged
    over 20 draws. Under l1 `standard` has 5 restarts of apgd_ce and 5 targets of apgd_t, both through larger balls
    (Croce & Hein 2021, arXiv:2103.01208).
    """

    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)

    profile: Literal["standard", "plus", "rand"] = "standard"
    """Which attacks it consists of."""

    eot: int = Field(default=1, ge=1)
    """Draws of a stochastic model over which every gradient of every attack is averaged; 20 by default with `profile:
    rand`."""

    @model_validator(mode="before")
    @classmethod
    def _draws_of_rand(cls, raw: Any) -> Any:
        return {"eot": DRAWS, **raw} if isinstance(raw, Mapping) and raw.get("profile") == "rand" else raw

    @property
    def needs_classes(self) -> int:
        """Least number of classes, for the difference of logits ratio of apgd_dlr or apgd_t."""
        return 3 if self.profile == "rand" else 4

    def stages(self, threat: Threat, classes: int) -> Mapping[str, Attack]:
        """The attacks by their type names, in order.

        Raises SpecError when the model has fewer classes than their losses need.
        """
        targets = {"targets": min(TARGETS, classes - 1)}
        fab_t = {**targets, "final_search": 0}  # the repository has none: it counts errors, not distances
        square = {"rescale": False}  # there `resc_schedule`, which its Square alone, outside the ensemble, has on
        apgd_ce, apgd_t = {}, targets
        if threat.norm == "l1":
            apgd_ce = {"restarts": RESTARTS, "larger_balls": True}
            apgd_t = {"targets": min(L1_TARGETS, classes - 1), "larger_balls": True}
        parts: dict[str, dict[str, Any]] = {
            "standard": {"apgd_ce": apgd_ce, "apgd_t": apgd_t, "fab_t": fab_t, "square": square},
            "plus": {
                "apgd_ce": {"restarts": RESTARTS},
                "apgd_dlr": {"restarts": RESTARTS},
                "square": square,
                "apgd_t": targets,
                # The repository runs untargeted FAB 5 times and its targeted form once. One step towards all K classes
                # costs as much as one towards each, so targeted restarts ask no more of the model and miss no class.
                "fab_t": {**fab_t, "restarts": RESTARTS},
            },
            "rand": {"apgd_ce": {}, "apgd_dlr": {}},
        }[self.profile]
        if classes < self.needs_classes:
            part = "apgd_dlr" if self.profile == "rand" else "apgd_t"
            got = f"profile {self.profile} contains {part}, which needs {self.needs_classes}, not {classes} classes"
            raise SpecError(self.label(), got, "list apgd_ce, fab_t and square as attacks of their own instead")
        return {name: make("attack", {"type": name, "eot": self.eot, **fields}) for name, fields in parts.items()}
