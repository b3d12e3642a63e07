"""What can be asked of a trained classifier in Python, wherever its logits come from."""

from __future__ import annotations

import functools
import hashlib
import html
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.attacks.run import AttackResult, attack
from llrflow.attacks.studies import Largest
from llrflow.base.errors import SpecError
from llrflow.method.labels import cross_entropy
from llrflow.method.threat import Threat


class LinearityResult(NamedTuple):
    """How well a linear function describes the loss l around each image (Qin et al. 2019); all in nats, [B]."""

    gamma: jax.Array
    """g(delta; x) = |l(x + delta) - l(x) - <delta, grad l(x)>|; where delta is the maximiser that a search found, a
    lower bound of gamma(eps, x)."""
    change: jax.Array
    """l(x + delta) - l(x)."""
    slope: jax.Array
    """<delta, grad l(x)>: what the gradient promises of the change."""
    delta: jax.Array
    """The perturbation, [B,H,W,C]."""


class Classifier:
    """Images [B,H,W,C] in [0,1] -> logits [B,K], with the threat model that it was trained for."""

    name: str
    classes: int
    image_shape: tuple[int, int, int]
    step: int
    threat: Threat
    _logits: Callable[[jax.Array], jax.Array]

    def logits(self, x: Any) -> jax.Array:
        """Logits [B,K] of images [B,H,W,C] in [0,1]; a JAX function, so it can be attacked and differentiated.

        Raises SpecError for images of another shape than it was trained on.
        """
        self._check_shape(x)
        return self._logits(x)

    def _check_shape(self, x: Any) -> None:
        """Raise SpecError unless x are images [B,H,W,C] of the model's."""
        shape, own = np.shape(x), tuple(self.image_shape)
        if shape[1:] == own:
            return
        height, width, channels = own
        fix = f"pass images [B,{height},{width},{channels}]"
        if shape == own:
            fix = "give it a batch axis: x[None]"
        elif shape[1:] == (channels, height, width):
            fix = "put the channels last: x.transpose(0, 2, 3, 1)"
        raise SpecError("images", f"are {list(shape)}, and {self.name} takes [B,{height},{width},{channels}]", fix)

    def predict(self, x: Any) -> jax.Array:
        """Labels [B] of images [B,H,W,C] in [0,1]."""
        return jnp.argmax(self.logits(x), axis=-1)

    def probabilities(self, x: Any) -> jax.Array:
        """Softmax of the logits, [B,K]."""
        return jax.nn.softmax(self.logits(x), axis=-1)

    def attack(
        self,
        x: Any,
        y: Any,
        config: Mapping[str, Any] | str = "pgd",
        threat: Threat | Mapping[str, Any] | None = None,
        seed: int = 0,
        surrogate: Classifier | Callable[..., jax.Array] | None = None,
        batch_size: int | None = None,
    ) -> AttackResult:
        """`llrflow.attack` on this classifier, by default within the threat model of its spec.

        `config` is an attack as it stands in YAML, or its type alone; the same `seed` gives the same result. A
        `transfer` attack searches on `surrogate`. Raises SpecError for a wrong threat, config or batch.
        """
        self._check_shape(x)
        other = surrogate.logits if isinstance(surrogate, Classifier) else surrogate
        ball = self.threat if threat is None else threat
        return attack(self.logits, x, y, ball, config, jax.random.key(seed), other, batch_size)

    def linearity(
        self,
        x: Any,
        y: Any,
        delta: Any = None,
        steps: int = 20,
        threat: Threat | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> LinearityResult:
        """The linearity of the loss at perturbations `delta` [B,H,W,C], by default those that maximise g.

        The search for these takes `steps` steps within `threat`, by default that of the spec. Raises SpecError.
        """
        x, y = jnp.asarray(x), jnp.asarray(y)
        if delta is None:
            search = Largest(maximize="local_linearity", steps=steps, stop="never")
            delta = self.attack(x, y, search, threat, seed).x_adv - x  # type: ignore[arg-type]
        return LinearityResult(*self._line(x, y, jnp.asarray(delta)), delta=jnp.asarray(delta))

    @functools.cached_property
    def _line(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        """(x, y, delta) -> (g, change of the loss, slope), each [B]."""

        def losses(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = cross_entropy(self.logits(x), y)
            return jnp.sum(loss), loss

        def line(x: jax.Array, y: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            gradient, clean = jax.grad(losses, has_aux=True)(x, y)
            change = losses(x + delta, y)[1] - clean
            slope = jnp.sum((delta * gradient).reshape(len(x), -1), axis=1)
            return jnp.abs(change - slope), change, slope

        return jax.jit(line)

    def _facts(self) -> dict[str, Any]:
        """What a person should know of it, by name."""
        return {
            "images": " x ".join(map(str, self.image_shape)),
            "classes": self.classes,
            "threat": f"{self.threat.norm} {self.threat.epsilon:g}",
            "step": self.step,
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"<{type(self).__name__} {self.name}: {facts}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{rows}</table>"


def parameter_count(tree: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def hash_of(variables: Any) -> str:
    """SHA-256 over the names, types, shapes and values of a network's parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
