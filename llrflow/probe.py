"""What a term may ask about the model around one batch, each answer computed once.

Write f for the classifier, l for the cross-entropy of one example, x for the batch and delta for a
perturbation; `None` stands for the clean image. A Probe serves the objective, where answers are
differentiated with respect to parameters; a SearchProbe serves the inner maximisation, where parameters
are constant and l(x), grad l(x) were computed before the loop. Terms cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

LogitsFn = Callable[[jax.Array], jax.Array]
ApplyFn = Callable[[jax.Array, bool], tuple[jax.Array, Any]]
"""(images [B,H,W,C], is this the clean pass) -> (logits [B,K], auxiliary state of that pass)."""


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """-log softmax(logits)[y] per example, in nats, [B]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)


class Probe:
    """Answers about one batch that are differentiable with respect to the parameters inside `logits_fn`.

    The clean pass is linearised once: l(x), its logits, every slope <v, grad l(x)> and grad l(x) itself
    share one forward pass. A slope is the forward-mode derivative, so differentiating it with respect to
    parameters is reverse-over-forward (about 6F with l(x)) and never double backpropagation.

    Shapes: x [B,H,W,C] in [0,1], y [B] integer, keys [B] or None, every answer [B] unless stated.
    With batch statistics an example's loss depends on its batch-mates; slopes then carry the whole batch's
    tangent, and only their sum equals that of <v, grad sum l>. Use `moving` statistics for exact per-example values.
    """

    def __init__(self, logits_fn: LogitsFn, x: jax.Array, y: jax.Array, keys: jax.Array | None = None) -> None:
        self.x, self.y, self.keys = x, y, keys
        self._apply: ApplyFn = lambda images, clean: (logits_fn(images), None)
        self._memo: dict[tuple[str, int], tuple[Any, Any]] = {}
        self.states: dict[str, Any] = {}
        self.passes: list[str] = []
        """What was computed, in order: `clean`, `perturbed`, `slope`, `input_gradient`. Read by the cost count."""

    @classmethod
    def stateful(cls, apply: ApplyFn, x: jax.Array, y: jax.Array, keys: jax.Array | None = None) -> Probe:
        """A Probe on a network whose passes also return state (BatchNorm), kept in `states`."""
        probe = cls(lambda images: images, x, y, keys)
        probe._apply = apply
        return probe

    def logits(self, delta: jax.Array | None = None) -> jax.Array:
        """f(x + delta), [B,K]."""
        return self._clean[1] if delta is None else self._perturbed(delta)

    def loss(self, delta: jax.Array | None = None) -> jax.Array:
        """l(x + delta), the cross-entropy in nats."""
        return self._clean[0] if delta is None else cross_entropy(self._perturbed(delta), self.y)

    def slope(self, direction: jax.Array) -> jax.Array:
        """<direction, grad l(x)> per example, in nats: the directional derivative at the clean image."""
        return self._once("slope", direction, lambda: self._clean[2](direction))

    def input_gradient(self, delta: jax.Array | None = None) -> jax.Array:
        """grad_x l(x + delta), [B,H,W,C], in nats per pixel unit.

        Differentiating it with respect to parameters is double backpropagation: where a term needs only
        <v, grad l(x)>, `slope` is cheaper.
        """
        if delta is None:
            return self._once("input_gradient", None, self._clean_gradient)

        def total(offset: jax.Array) -> jax.Array:
            return jnp.sum(cross_entropy(self._apply(self.x + offset, False)[0], self.y))

        return self._once("input_gradient", delta, lambda: jax.grad(total)(delta))

    @property
    def _clean(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        def run() -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
            def loss_and_aux(images: jax.Array) -> tuple[jax.Array, Any]:
                logits, state = self._apply(images, True)
                return cross_entropy(logits, self.y), (logits, state)

            loss, tangent, (logits, self.states["clean"]) = jax.linearize(loss_and_aux, self.x, has_aux=True)
            return loss, logits, tangent

        return self._once("clean", None, run)

    def _clean_gradient(self) -> jax.Array:
        loss, _, tangent = self._clean
        return jax.linear_transpose(tangent, self.x)(jnp.ones_like(loss))[0]

    def _perturbed(self, delta: jax.Array) -> jax.Array:
        def run() -> jax.Array:
            logits, self.states["perturbed"] = self._apply(self.x + delta, False)
            return logits

        return self._once("perturbed", delta, run)

    def _once(self, what: str, delta: jax.Array | None, run: Callable[[], Any]) -> Any:
        # The memo keeps delta itself, so that its id cannot be reused while the entry lives.
        key = (what, id(delta))
        if key not in self._memo:
            self.passes.append(what)
            self._memo[key] = (delta, run())
        return self._memo[key][1]


class SearchProbe(Probe):
    """A Probe with constant parameters: l(x) and grad l(x) are given, slopes are inner products with the latter."""

    def __init__(
        self, apply: ApplyFn, x: jax.Array, y: jax.Array, keys: jax.Array | None, loss: jax.Array, gradient: jax.Array
    ) -> None:
        super().__init__(lambda images: images, x, y, keys)
        self._apply = apply
        self._reference = (loss, gradient)
        self.asked_reference = False
        """Whether l(x) or grad l(x) was wanted."""

    @property
    def _loss(self) -> jax.Array:
        self.asked_reference = True
        return self._reference[0]

    @property
    def _gradient(self) -> jax.Array:
        self.asked_reference = True
        return self._reference[1]

    def loss(self, delta: jax.Array | None = None) -> jax.Array:
        """l(x + delta); at the clean image the stored constant."""
        return self._loss if delta is None else super().loss(delta)

    def slope(self, direction: jax.Array) -> jax.Array:
        """<direction, grad l(x)> with the stored gradient."""
        return jnp.sum((direction * self._gradient).reshape(len(self._gradient), -1), axis=1)

    def input_gradient(self, delta: jax.Array | None = None) -> jax.Array:
        """grad l(x + delta); at the clean image the stored constant."""
        return self._gradient if delta is None else super().input_gradient(delta)


def asks_reference(term: Callable[[Probe, jax.Array], jax.Array], probe: SearchProbe) -> bool:
    """Whether a term needs l(x) or grad l(x) while searching; found by tracing it once, nothing is computed."""
    jax.eval_shape(lambda delta: term(probe, delta), probe.x)
    return probe.asked_reference
