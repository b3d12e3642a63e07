"""A function with the images that it is attacked on, all in memory: what `llrflow.attack` and `llrflow.examine` run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.kept import kept_program
from llrflow.attacks.network import Examples, Network, looked_at, one_device
from llrflow.attacks.search import InMemory, search
from llrflow.method.ascent import predicted_class
from llrflow.method.probe import Reference
from llrflow.method.threat import TOLERANCE, Threat


class Examined(NamedTuple):
    """A function on the default device, and the examples [N] that it is attacked on."""

    network: Network
    variables: Any
    """The arrays of the network."""
    classes: int
    x: np.ndarray
    """[N,H,W,C] in [0, 1]."""
    y: np.ndarray
    threat: Threat
    size: int
    """Of a batch."""
    epsilon: np.ndarray | None = None
    """Radius of the ball of each, [N]; None where it is the threat's."""

    def search(
        self,
        attack: Attack,
        candidates: np.ndarray,
        exhaustive: bool,
        key: jax.Array,
        surrogate: Network | None = None,
        searched: Any = None,
        report: Callable[[InMemory], None] = lambda found: None,
    ) -> InMemory:
        """What one attack finds on the `candidates` [N]; arguments as those of Findings.

        A transfer attack searches on the `surrogate` with the variables `searched`. Of a stochastic network the
        verdicts are those of a draw that no search has seen. `report(found so far)` is called between steps.
        """
        program = kept_program(attack, self.threat, self.network, one_device(), surrogate)
        found = InMemory(candidates, exhaustive, np.zeros_like(self.x))
        load = lambda ids: (self.x[ids], self.y[ids])  # noqa: E731
        data, between = jax.random.key_data(key), lambda: report(found)
        search(
            program, found, load, self.variables, data, self.classes, self.size, searched, between, epsilon=self.epsilon
        )
        if self.network.stochastic:
            self._judge_anew(found, attack, key)
        return found

    def look(self, key: jax.Array, images: np.ndarray | None = None, run: int = 0) -> Reference:
        """Loss, logits and input gradient of the examples, or of `images` in their place, in draw number `run`."""
        n = len(self.y)
        x = self.x if images is None else images
        examples = Examples(x, self.y, np.arange(n, dtype=np.int32), np.full(n, run, np.uint32))
        return looked_at(self.network, one_device(), self.variables, examples, jax.random.key_data(key), self.size)

    def _judge_anew(self, found: InMemory, attack: Attack, key: jax.Array) -> None:
        """Verdict, class and loss of one more draw than the attack's runs: the one that chose delta flatters it."""
        seen, delta = self.look(key, self.x + found.delta, attack.runs(self.classes)), jnp.asarray(found.delta)
        radius = self.threat.epsilon if self.epsilon is None else self.epsilon
        distance = np.asarray(self.threat.distance(delta))
        inside = distance <= radius * (1 + TOLERANCE)
        predicted = np.asarray(predicted_class(seen.logits))
        found.arrays["wrong"] = found.candidates & inside & (predicted != self.y)
        found.arrays["predicted"] = np.where(found.candidates, predicted, found.arrays["predicted"])
        found.arrays["loss"] = seen.loss
        if attack.minimum_norm:  # delta is zero where it found none, and then no draw is to be misclassified
            reached = np.where(predicted != self.y, distance, np.inf)
            found.arrays["distance"] = np.where(found.candidates, reached, found.arrays["distance"])
