"""What a term may ask about the model around one batch, each answer computed once.

Write f for the classifier, l for the cross-entropy of one example, x for the batch and delta for a
perturbation; `None` stands for the clean image. A Probe serves the objective, where answers are
differentiated with respect to parameters; a SearchProbe serves the inner maximisation, where parameters
are constant and what is asked of the clean image was computed before the loop. Terms cannot tell them apart.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llrflow.method.input_gradient import input_gradient
from llrflow.method.labels import cross_entropy
from llrflow.method.threat import Threat

LogitsFn = Callable[[jax.Array], jax.Array]
ApplyFn = Callable[[jax.Array], tuple[jax.Array, Any]]
"""images [B,H,W,C] -> (logits [B,K], auxiliary state of that pass)."""
NearFn = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
"""The same at perturbed images, given the state that the clean pass left as well."""


@dataclass
class Pass:
    """What was asked of the network at one point; read by the count of costs (`llrflow plan`)."""

    at: str
    """`clean`, the name of a perturbation, or `elsewhere`: a point that a term chose itself."""
    differentiated: bool = False
    """Whether the pass itself is differentiated with respect to parameters."""
    gradient: bool = False
    """Whether the input gradient was asked for."""
    derivative: bool = False
    """Whether something of the input gradient (a slope, a norm) is differentiated."""


class _Values(NamedTuple):
    """The network's pass at one point: l and f there, auxiliary state."""

    loss: jax.Array
    logits: jax.Array
    state: Any


def _split(values: _Values) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    return values.loss, (values.logits, values.state)


class Probe:
    """Answers about one batch that are differentiable with respect to the parameters inside `logits_fn`.

    The pass at each point is made once. Where its input gradient is wanted too, and the probe was told so (`expect`),
    loss, logits and gradient share a linearised pass, whose derivative is that of what JAX's derivative rules compute:
    of a network with rules of its own that differ from its functions (`jax.custom_vjp`: a straight-through estimator),
    other passes follow the rules, and this one what stands inside them.
    grad l(x_i) stands for G_i = d(sum_j l_j)/dx_i everywhere, in the objective, in searches and in evaluations. Where
    examples are independent that is d l_i/dx_i; batch statistics let an example's pixels change its batch-mates'
    losses too, on all devices, and G_i has their sum, as double backpropagation of the batch's loss would.

    Shapes: x [B,H,W,C] in [0,1], y [B] integer or [B,K] probabilities (`llrflow.method.labels`), keys [B] or None,
    every answer [B] unless stated.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        x: jax.Array,
        y: jax.Array,
        keys: jax.Array | None = None,
        threat: Threat | None = None,
    ) -> None:
        self.x, self.y, self.threat = x, y, threat
        self._keys = keys
        self._apply: ApplyFn = lambda images: (logits_fn(images), None)
        self._near: NearFn | None = None
        self._axis: str | None = None
        self._recompute = False
        self._seen = ""
        self._names: dict[int, str] = {}
        self._expected: frozenset[str] = frozenset()
        self._memo: dict[Any, tuple[Any, Any]] = {}
        self.states: dict[str, Any] = {}
        """Auxiliary state (BatchNorm) of the clean pass and of the first perturbed one that terms asked for."""
        self.passes: dict[Any, Pass] = {}
        """What was asked at each point."""
        self.searches: dict[str, list[Pass]] = {}
        """What one step of each search on this batch asks, by the search's name."""

    @classmethod
    def stateful(
        cls,
        apply: ApplyFn,
        x: jax.Array,
        y: jax.Array,
        keys: jax.Array | None = None,
        threat: Threat | None = None,
        axis: str | None = None,
        recompute: bool = False,
        seen: str = "",
        near: NearFn | None = None,
    ) -> Probe:
        """A Probe on a network whose passes also return state (BatchNorm), kept in `states`.

        `near` is the network at all points but the clean one, where it depends on what the clean pass left;
        `axis` names the device axis that the batch is spread over; `recompute` is for networks whose derivatives
        compute blocks anew (`train.remat`), which a pass linearised once would keep; `seen` is added to the names of
        its passes (`, as searches see it`).
        """
        probe = cls(lambda images: images, x, y, keys, threat)
        probe._apply, probe._near, probe._axis, probe._recompute, probe._seen = apply, near, axis, recompute, seen
        return probe

    @property
    def relative(self) -> bool:
        """Whether perturbed passes depend on what the clean one left."""
        return self._near is not None

    def logits(self, delta: jax.Array | None = None, constant: bool = False) -> jax.Array:
        """f(x + delta), [B,K]; `constant` stops its derivative."""
        logits = self._at(delta, differentiated=not constant).logits
        return jax.lax.stop_gradient(logits) if constant else logits

    def loss(self, delta: jax.Array | None = None) -> jax.Array:
        """l(x + delta), the cross-entropy in nats."""
        return self._at(delta, differentiated=True).loss

    def slope(self, direction: jax.Array, delta: jax.Array | None = None) -> jax.Array:
        """<direction, grad l(x + delta)> per example, in nats."""
        return jnp.sum((direction * self.input_gradient(delta)).reshape(len(self.x), -1), axis=1)

    def input_gradient(self, delta: jax.Array | None = None, constant: bool = False) -> jax.Array:
        """grad l(x + delta), [B,H,W,C], in nats per pixel unit; `constant` stops its derivative.

        Any function of it can be differentiated, in reverse mode, at 1 forward-mode and 2 reverse passes a point
        however many terms ask: no double backpropagation is made (`llrflow.method.input_gradient`).
        """
        self._at(delta, differentiated=not constant)
        gradient = self._gradient(delta)
        self._pass(delta).derivative |= not constant
        return jax.lax.stop_gradient(gradient) if constant else gradient

    def of_gradients(self, function: Callable[..., jax.Array], *deltas: jax.Array | None) -> jax.Array:
        """Deprecated: function(grad l(x + delta_1), ...); write function(probe.input_gradient(delta_1), ...)."""
        message = (
            "Probe.of_gradients(function, ...): write function(probe.input_gradient(...), ...), which costs the same"
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return function(*(self.input_gradient(delta) for delta in deltas))

    def keys(self, purpose: str) -> jax.Array:
        """One random key per example, [B], for one use (`purpose`); the same wherever the example stands in a batch."""
        if self._keys is None:
            raise ValueError("this probe was made without random keys: pass `keys`")
        return jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(purpose.encode())))(self._keys)

    def batch_mean(self, values: jax.Array) -> jax.Array:
        """The mean of [B] values over the whole batch, on all devices, as a constant: for a term's running state."""
        mean = jax.lax.stop_gradient(jnp.mean(values))
        return mean if self._axis is None else jax.lax.pmean(mean, self._axis)

    def name(self, delta: jax.Array, name: str) -> None:
        """Tell what a perturbation is called, for the count of costs."""
        self._names[id(delta)] = name

    def sketch(self, classes: int) -> Probe:
        """A probe of the same batch without a network, for tracing alone: it notes what is asked."""
        flat = lambda images: jnp.broadcast_to(jnp.mean(images), (len(images), classes))  # noqa: E731
        arguments = (self.x, self.y, self._keys, self.threat, self._axis)
        return Probe.stateful(lambda images: (flat(images), None), *arguments, seen=self._seen)

    def expect(self, sketched: Probe) -> None:
        """Share one pass between values and input gradient at the points where a sketch was asked for both."""
        self._expected = frozenset(made.at for made in sketched.passes.values() if made.gradient)

    def constants(self, asked: set[str]) -> Reference | None:
        """What a search asks of the clean image (fields of `Reference`), as constants; None if it asks nothing."""
        if not asked:
            return None
        if "gradient" in asked:
            self._expected |= {self._pass(None).at}
        clean = self._values(None)  # not `_at`: what a search asks must not decide which pass updates BatchNorm
        gradient = self._gradient(None) if "gradient" in asked else None
        return jax.lax.stop_gradient(Reference(clean.loss, clean.logits, gradient, clean.state))

    def searching(self, reference: Reference | None, threat: Threat) -> SearchProbe:
        """The probe of a search on the same batch."""
        probe = SearchProbe(self._apply, self.x, self.y, self._keys, threat, reference)
        probe._near, probe._recompute = self._near, self._recompute
        return probe

    def _left(self) -> Any:
        """The state that the clean pass left."""
        return self._values(None).state

    def _at(self, delta: jax.Array | None, differentiated: bool) -> _Values:
        at = self._values(delta)
        self._pass(delta).differentiated |= differentiated
        self.states.setdefault("clean" if delta is None else "perturbed", at.state)
        return at

    def _images(self, delta: jax.Array | None) -> jax.Array:
        return self.x if delta is None else self.x + delta

    def _function(self, delta: jax.Array | None) -> Callable[[jax.Array], _Values]:
        apply = self._apply if delta is None or self._near is None else partial(self._near, self._left())

        def values(images: jax.Array) -> _Values:
            logits, state = apply(images)
            return _Values(cross_entropy(logits, self.y), logits, state)

        return values

    def _values(self, delta: jax.Array | None) -> _Values:
        if self._pass(delta).at in self._expected:
            return self._linear(delta)[0]
        return self._once("values", (delta,), lambda: self._function(delta)(self._images(delta)))

    def _linear(self, delta: jax.Array | None) -> tuple[_Values, Callable[[jax.Array], jax.Array]]:
        """The values, and v -> sum_j <v_j, dl_i/dx_j>."""

        def run() -> tuple[_Values, Callable[[jax.Array], jax.Array]]:
            images, values = self._images(delta), self._function(delta)
            if self._recompute:  # JAX takes what a linearised function knows out of its checkpoints
                loss = lambda images: values(images).loss  # noqa: E731
                return values(images), lambda v: jax.jvp(loss, (images,), (v,))[1]
            loss, tangent, (logits, state) = jax.linearize(lambda images: _split(values(images)), images, has_aux=True)
            return _Values(loss, logits, state), tangent

        return self._once("linear", (delta,), run)

    def _gradient(self, delta: jax.Array | None) -> jax.Array:
        self._pass(delta).gradient = True
        return self._once("input_gradient", (delta,), lambda: input_gradient(self._linear(delta)[1], self.x))

    def _pass(self, delta: jax.Array | None) -> Pass:
        at = "clean" if delta is None else self._names.get(id(delta), "elsewhere")
        return self.passes.setdefault(id(delta), Pass(at + self._seen))

    def _once(self, what: str, arrays: tuple[jax.Array | None, ...], run: Callable[[], Any]) -> Any:
        # The memo keeps the arrays themselves, so that no id can be reused while an entry lives.
        key = (what, *map(id, arrays))
        if key not in self._memo:
            self._memo[key] = (arrays, run())
        return self._memo[key][1]


class Reference(NamedTuple):
    """Constants of the clean images that a search may need."""

    loss: Any
    """l(x), [B]."""
    logits: Any
    """f(x), [B,K]."""
    gradient: Any
    """grad l(x), [B,H,W,C], or None where nobody asks for it."""
    state: Any = None
    """What the clean pass left (BatchNorm's statistics)."""


class SearchProbe(Probe):
    """A Probe with constant parameters: answers about the clean image are given."""

    def __init__(
        self,
        apply: ApplyFn,
        x: jax.Array,
        y: jax.Array,
        keys: jax.Array | None,
        threat: Threat,
        reference: Reference | None,
    ) -> None:
        """Without a reference it finds the clean image's answers itself."""
        super().__init__(lambda images: images, x, y, keys, threat)
        self._apply, self._reference = apply, reference
        self.asked: set[str] = set()
        """Which fields of the reference were wanted."""

    def logits(self, delta: jax.Array | None = None, constant: bool = False) -> jax.Array:
        """f(x + delta); at the clean image the stored constant."""
        return self._constants("logits").logits if delta is None else super().logits(delta, constant)

    def loss(self, delta: jax.Array | None = None) -> jax.Array:
        """l(x + delta); at the clean image the stored constant."""
        return self._constants("loss").loss if delta is None else super().loss(delta)

    def input_gradient(self, delta: jax.Array | None = None, constant: bool = False) -> jax.Array:
        """grad l(x + delta); at the clean image the stored constant."""
        return self._constants("gradient").gradient if delta is None else super().input_gradient(delta, constant)

    def _left(self) -> Any:
        return self._constants("state").state

    def _constants(self, field: str) -> Reference:
        self.asked.add(field)
        if self._reference is not None:
            return self._reference
        clean = self._values(None)
        return Reference(clean.loss, clean.logits, self._gradient(None), clean.state)


def asked_constants(term: Callable[[SearchProbe, jax.Array], Any], probe: SearchProbe) -> set[str]:
    """Which constants of the clean image (fields of `Reference`) a search for a term's maximum needs.

    Found by tracing the term once, on a probe without a reference; nothing is computed.
    """
    jax.eval_shape(lambda delta: term(probe, delta), probe.x)
    return probe.asked
