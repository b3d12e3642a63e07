"""Terms of the logits: at one point, or between the clean image and a perturbed one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import PlainValidator

from llrflow.base.validation import invalid
from llrflow.components.fields import Traced
from llrflow.components.registry import Component, register
from llrflow.method.labels import at_label, cross_entropy, largest_other
from llrflow.method.probe import Probe

Target = int | Literal["least_likely", "random"] | None


def _check_target(raw: Any) -> Any:
    if raw is None or raw in ("least_likely", "random") or (type(raw) is int and raw >= 1):
        return raw
    raise invalid("target", "is no target; write a rank (1, 2, ...), `least_likely` or `random`")


class Targeted(Component):
    """Base of terms that may aim at one wrong class instead of all."""

    target: Annotated[Target, PlainValidator(_check_target, json_schema_input_type=Target)] = None
    """Wrong class to aim at: its rank on the clean image (1 is the likeliest wrong class), `least_likely`, or
    `random` (uniform, one draw per example). Default: untargeted."""

    @property
    def needs_one_label(self) -> bool:
        """Whether labels must be classes: a share of several leaves no class to aim at."""
        return self.target is not None

    def target_class(self, probe: Probe, classes: int) -> jax.Array:
        """The class that each example is driven to, [B]."""
        if self.target == "random":
            draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))(probe.keys("target"))
            return (probe.y + draw) % classes
        if isinstance(self.target, jax.Array):  # put there by an attack
            return self.target
        rank = self.target if isinstance(self.target, int) else classes - 1
        return wrong_classes(probe.logits(constant=True), probe.y)[:, rank - 1]

    @property
    def needs_classes(self) -> int:
        """Least number of classes."""
        return self.target + 1 if isinstance(self.target, int) else 2


@register("term", "cross_entropy")
class CrossEntropy(Targeted):
    """l(x + delta) = -sum_k q_k log softmax(f(x + delta))_k, in nats.

    q = (1 - s) onehot(y) + s / K with label smoothing s (Szegedy et al. 2016); s = 0 gives -log p_y. Soft labels stand
    in the place of onehot(y). With a target t it is log p_t, which grows as the example is driven to t.
    """

    label_smoothing: Annotated[float, Traced(ge=0, lt=1)] = 0.0
    """Share s of the label's probability spread evenly over all K classes."""

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], in nats."""
        logits = probe.logits(delta)
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        spread = jnp.where(self.label_smoothing == 0, 0.0, self.label_smoothing * uniform)  # a logit may be -inf
        if self.target is None:
            return (1.0 - self.label_smoothing) * probe.loss(delta) + spread
        towards = cross_entropy(logits, self.target_class(probe, logits.shape[-1]))
        return -(1.0 - self.label_smoothing) * towards - spread


@register("term", "margin")
class Margin(Targeted):
    """max_{k != y} f_k(x + delta) - f_y(x + delta), in logit units: positive when misclassified.

    The "difference between logits" of the LLR author response, which it found a stronger attack than
    cross-entropy (Carlini & Wagner 2017). With a target t it is f_t - f_y (Gowal et al. 2019). Of soft labels the
    expectation over y.
    """

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], in logits."""
        logits = probe.logits(delta)
        if self.target is None:
            return margin(logits, probe.y)
        return at_label(logits, self.target_class(probe, logits.shape[-1])) - at_label(logits, probe.y)


@register("term", "dlr")
class DLR(Targeted):
    """Difference of logits ratio (Croce & Hein 2020): unchanged when logits are shifted or scaled.

    -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)) with z = f(x + delta) and z_(i) the i-th largest; with a target t
    -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2). Needs 3 classes, 4 with a target. Of soft labels the expectation
    over y.
    """

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], without unit."""
        logits = probe.logits(delta)
        if self.target is None:
            return dlr(logits, probe.y)
        return targeted_dlr(logits, probe.y, self.target_class(probe, logits.shape[-1]))

    @property
    def needs_classes(self) -> int:
        """Least number of classes."""
        return 3 if self.target is None else max(4, super().needs_classes)


@register("term", "kl_divergence")
class KLDivergence(Component):
    """KL divergence of the predictions p = softmax(f(x)) and q = softmax(f(x + delta)), in nats.

    KL(p || q) is the penalty of TRADES (Zhang et al. 2019), whose gradient flows through both sides. It has no
    gradient at delta = 0: a search that maximises it must start elsewhere.
    """

    needs_perturbation: ClassVar[bool] = True
    flat_at_zero: ClassVar[bool] = True

    direction: Literal["clean_to_perturbed", "perturbed_to_clean"] = "clean_to_perturbed"
    """KL(p || q), or KL(q || p)."""

    def __call__(self, probe: Probe, delta: jax.Array) -> jax.Array:
        """[B], in nats."""
        clean, perturbed = jax.nn.log_softmax(probe.logits()), jax.nn.log_softmax(probe.logits(delta))
        if self.direction == "perturbed_to_clean":
            clean, perturbed = perturbed, clean
        return optax.losses.kl_divergence_with_log_targets(perturbed, clean)


@register("term", "logit_pairing")
class LogitPairing(Component):
    """mean_k (f_k(x + delta) - f_k(x))^2: adversarial logit pairing (Kannan et al. 2018), in squared logits."""

    needs_perturbation: ClassVar[bool] = True
    flat_at_zero: ClassVar[bool] = True

    def __call__(self, probe: Probe, delta: jax.Array) -> jax.Array:
        """[B], in squared logits."""
        return jnp.mean((probe.logits(delta) - probe.logits()) ** 2, axis=-1)


def wrong_classes(logits: jax.Array, y: jax.Array) -> jax.Array:
    """All classes but y, the likeliest first: [B,K], [B] -> [B,K-1]."""
    return jnp.argsort(-jnp.where(_is_label(logits, y), -jnp.inf, logits), axis=-1)[:, :-1]


def margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """max_{k != y} logits_k - logits_y, [B,K], [B] -> [B]; of soft labels [B,K] its expectation."""
    if y.ndim == 2:
        return at_label(largest_other(logits) - logits, y)
    return jnp.max(jnp.where(_is_label(logits, y), -jnp.inf, logits), axis=-1) - at_label(logits, y)


def dlr(logits: jax.Array, y: jax.Array) -> jax.Array:
    """(max_{k != y} z_k - z_y) / (z_(1) - z_(3) + 1e-12), [B,K], [B] -> [B]; of soft labels [B,K] its expectation."""
    largest = jax.lax.top_k(logits, 3)[0]
    return margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: jax.Array, y: jax.Array, target: jax.Array) -> jax.Array:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), [B,K], [B], [B] -> [B]."""
    largest = jax.lax.top_k(logits, 4)[0]
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12
    return (at_label(logits, target) - at_label(logits, y)) / scale


def _is_label(logits: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
