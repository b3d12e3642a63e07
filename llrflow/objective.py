"""The training objective: a loss plus weighted terms at shared perturbations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.ascent import Search, maximise
from llrflow.probe import ApplyFn, Probe, SearchProbe, asks_reference
from llrflow.registry import Chosen, Component, Name, Traced
from llrflow.threat import Threat

CLEAN = "clean"


class TermEntry(Component):
    """A term's place in the objective: where it is evaluated and how much it weighs."""

    at: str = CLEAN
    """`clean`, or the name of a perturbation."""

    weight: Annotated[float, Traced()] = 1.0
    """Factor of the term in the objective; a number or a schedule over training steps."""


class Perturbation(Search):
    """A named perturbation that terms share: the result of one search per batch."""

    epsilon: Annotated[float | None, Traced(ge=0)] = None
    """Radius of this search, a number or a schedule (warm-up); default the threat's."""


class Objective(Component):
    """mean over the batch of  loss + sum_t weight_t * term_t(delta_at_t)."""

    loss: Annotated[Any, Chosen("term", TermEntry, "cross_entropy")] = Field(
        default="cross_entropy", validate_default=True
    )
    """The classification loss, and where it is evaluated (`at`): clean, or an adversarial perturbation."""

    perturbations: dict[Name, Perturbation] = {}
    """Named inner maximisations."""

    terms: dict[Name, Annotated[Any, Chosen("term", TermEntry)]] = {}
    """Named penalties."""

    def entries(self) -> dict[str, Any]:
        """The loss (as `loss`) and all terms."""
        return {"loss": self.loss, **self.terms}


def evaluate(
    objective: Objective,
    probe: Probe,
    threat: Threat,
    keys: Callable[[str], jax.Array],
    search_apply: ApplyFn,
    share_clean_pass: bool,
    by: Literal["unroll", "scan"],
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """(objective [B], parts [B] by name: `loss`, then each term unweighted, logits [B,K] where the loss stands).

    keys(name) are per-example keys [B] for one perturbation; `search_apply` is the network as searches see
    it, which take l(x) and grad l(x) from the probe's own clean pass when `share_clean_pass`.
    """
    deltas: dict[str, jax.Array | None] = {CLEAN: None}
    for name, perturbation in objective.perturbations.items():
        searching = partial(SearchProbe, search_apply, probe.x, probe.y, probe.keys)
        reference = (jnp.zeros_like(probe.x[:, 0, 0, 0]), jnp.zeros_like(probe.x))
        if asks_reference(perturbation.maximize, searching(*reference)):
            source = probe if share_clean_pass else Probe.stateful(search_apply, probe.x, probe.y)
            if source is not probe:
                probe.passes.append("reference")
            reference = jax.lax.stop_gradient((source.loss(), source.input_gradient()))
        radius = threat.epsilon if perturbation.epsilon is None else perturbation.epsilon
        ball = threat.model_copy(update={"epsilon": radius})
        deltas[name] = maximise(perturbation, lambda p=searching, r=reference: p(*r), ball, keys(name), by)
    parts = {name: term(probe, deltas[term.at]) for name, term in objective.entries().items()}
    total = sum(term.weight * parts[name] for name, term in objective.entries().items())
    return jnp.asarray(total), parts, probe.logits(deltas[objective.loss.at])
