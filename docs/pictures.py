"""Draws the pictures of regularizer.md: python docs/pictures.py

They show llrflow's own terms and searches on a loss of two pixels. With d = delta / epsilon it is

    l(x + delta) = 1.5 + (d1 + d2 / 2) / 2 + c / 2 (-1.2 d1^2 + 0.9 d2^2 - 0.6 d1 d2),

a slope, and a curvature c times as strong: c = 0 is a loss that is linear in the ball.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import llrflow
from llrflow.method.objective import Objective, perturb
from llrflow.method.probe import Probe
from llrflow.method.threat import Threat

EPSILON = 0.1
X = jnp.full((1, 1, 2, 1), 0.5)
THREAT = Threat(epsilon=EPSILON)
BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d1702a", "#3f8f5b", "#777777"
FOLDER = Path(__file__).parent / "pictures"


def loss(x: jax.Array, c: Any) -> jax.Array:
    """l [B] of images [B,1,2,1], for one curvature or one for each image [B]."""
    d = (x.reshape(len(x), 2) - 0.5) / EPSILON
    curved = -1.2 * d[:, 0] ** 2 + 0.9 * d[:, 1] ** 2 - 0.6 * d[:, 0] * d[:, 1]
    return 1.5 + (d[:, 0] + d[:, 1] / 2) / 2 + c / 2 * curved


def probe_of(c: Any, count: int) -> Probe:
    """A probe on `count` copies of x of a network of two classes, where the cross-entropy of class 0 is `loss`."""

    def logits(x: jax.Array) -> jax.Array:
        value = loss(x, c)  # log(1 + exp(z)) = value
        return jnp.stack([jnp.zeros_like(value), value + jnp.log(-jnp.expm1(-value))], axis=-1)

    x, y = jnp.repeat(X, count, 0), jnp.zeros(count, int)
    return Probe(logits, x, y, jax.random.split(jax.random.key(0), count), THREAT)


def measured(c: Any, deltas: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(g, |<delta, grad l(x)>|, |l(x + delta) - l(x)|) of perturbations [B,1,2,1], by llrflow's terms."""

    @jax.jit
    def run(c: jax.Array, deltas: jax.Array) -> tuple[jax.Array, ...]:
        probe = probe_of(c, len(deltas))
        terms = (llrflow.make("term", name) for name in ("local_linearity", "gradient_inner_product"))
        return *(term(probe, deltas) for term in terms), jnp.abs(probe.loss(deltas) - probe.loss())

    g, slope, change = run(jnp.asarray(c, jnp.float32), deltas)
    return np.asarray(g), np.asarray(slope), np.asarray(change)


def search(c: Any, term: str, steps: int, start: str = "uniform") -> jax.Array:
    """The perturbations [B,1,2,1] that the search of an objective finds, for curvatures [B]; each starts by itself."""
    block = {"maximize": {"type": term}, "steps": steps, "start": start, "keep": "best"}
    objective = Objective.model_validate({"perturbations": {"found": block}})

    @jax.jit
    def run(c: jax.Array) -> jax.Array:
        probe = probe_of(c, len(c))
        keys = jax.random.split(jax.random.key(1), len(c))
        return perturb(objective, probe, THREAT, lambda name: keys, "scan")["found"]

    return run(jnp.asarray(c, jnp.float32))


def grid(count: int = 81) -> jax.Array:
    """Perturbations all over the ball, [count^2,1,2,1]."""
    axis = jnp.linspace(-EPSILON, EPSILON, count)
    return jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2, 1)


def shares_found(c: Any, steps: int) -> np.ndarray:
    """What PGD from the clean image finds of the largest rise of the loss in the ball, for curvatures [B]."""
    found = loss(X + search(c, "cross_entropy", steps, "zero"), jnp.asarray(c)) - 1.5
    return np.asarray(found) / np.array([float(jnp.max(loss(X + grid(), one))) - 1.5 for one in c])


def gammas(c: Any) -> np.ndarray:
    """gamma(epsilon, x) for curvatures [B]: the largest g on a grid."""
    return np.array([measured(one, grid())[0].max() for one in c])


def draw_linearity(axes: Any) -> None:
    """The loss along the perturbation that LLR finds, its tangent, and g between them."""
    for axis, c, name in zip(axes, (0.15, 1.0), ("nearly linear", "curved"), strict=True):
        found = search([c] * 32, "local_linearity", 20)
        worst = found[np.argmax(measured(c, found)[0])][None]
        t = np.linspace(-1.2, 1.2, 121)
        along = np.asarray(loss(X + jnp.asarray(t).reshape(-1, 1, 1, 1) * worst, c))
        at = float(loss(X, c)[0])
        slope = float(jax.jvp(lambda x, c=c: loss(x, c), (X,), (worst,))[1][0])
        gamma = float(measured(c, worst)[0][0])
        axis.plot(t, along, color=BLUE, label="l(x + t delta)")
        axis.plot(t, at + slope * t, "--", color=GREY, label="its tangent at x")
        axis.plot(
            [1, 1], [float(loss(X + worst, c)[0]), at + slope], color=ORANGE, lw=2.5, label=f"gamma = {gamma:.2f}"
        )
        axis.set(
            title=f"{name}, c = {c:g}", xlabel="t (delta: where g is largest)", ylabel="loss, nats", ylim=(0.2, 2.8)
        )
        axis.legend(frameon=False, fontsize=8)


def draw_bound(axis: Any) -> None:
    """|l(x + delta) - l(x)| under its bound, for random perturbations."""
    deltas = jax.random.uniform(jax.random.key(1), (200, 1, 2, 1), minval=-EPSILON, maxval=EPSILON)
    for c, colour in ((1.0, ORANGE), (0.15, BLUE)):
        g, slope, change = measured(c, deltas)
        axis.scatter(g + slope, change, s=5, color=colour, label=f"c = {c:g}", alpha=0.7, lw=0)
    axis.axline((0, 0), slope=1, color=GREY, lw=1)
    axis.set(xlabel="g + |<delta, grad l>|", ylabel="|l(x + delta) - l(x)|", title="the bound", xlim=0, ylim=0)
    axis.legend(frameon=False, fontsize=8)


def draw_surfaces(figure: Any, axes: Any) -> None:
    """The loss in the ball, and where PGD from the clean image ends."""
    for axis, c in zip(axes, (0.0, 1.0), strict=True):
        side = np.linspace(-1, 1, 41)
        values = np.asarray(loss(X + grid(41), c)).reshape(41, 41)
        drawn = axis.contourf(side, side, values, levels=np.linspace(0.2, 2.4, 12), cmap="viridis")
        for steps, marker, size in ((1, "s", 11), (2, "^", 8), (20, "o", 4)):
            d = np.asarray(search([c], "cross_entropy", steps, "zero")).reshape(2) / EPSILON
            axis.plot(
                *d, marker, color="white", mec="black", ms=size, label=f"{steps} step{'s' * (steps > 1)}", clip_on=False
            )
        axis.annotate("", (0.5, 0.25), (0, 0), arrowprops={"arrowstyle": "->", "color": "white", "lw": 1.5})
        axis.set(
            title=f"c = {c:g}", xlabel="first pixel, in epsilon", ylabel="second pixel, in epsilon", aspect="equal"
        )
    axes[1].legend(fontsize=8, loc="lower left")
    figure.colorbar(drawn, ax=list(axes), label="loss, nats", shrink=0.8)


def draw_steps(axis: Any) -> None:
    """What K steps of PGD find, against the linearity measure."""
    curvatures = np.linspace(0, 1.2, 9)
    for steps, colour in ((1, ORANGE), (2, GREEN), (5, BLUE), (20, GREY)):
        axis.plot(
            gammas(curvatures),
            100 * shares_found(curvatures, steps),
            ".-",
            color=colour,
            label=f"{steps} step{'s' * (steps > 1)}",
        )
    axis.set(xlabel="gamma(epsilon, x), nats", ylabel="of the largest rise, found, %", ylim=(0, 105))
    axis.legend(frameon=False, fontsize=8)


def main() -> None:
    """Write all pictures."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "llrflow", "svg.fonttype": "path", "font.size": 9, "figure.facecolor": "white"}
    )
    FOLDER.mkdir(exist_ok=True)
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    drawings = {}
    drawings["linearity"], axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
    draw_linearity(axes[:2])
    draw_bound(axes[2])
    drawings["surfaces"], axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
    draw_surfaces(drawings["surfaces"], axes)
    drawings["steps"], axis = plt.subplots(figsize=(5, 2.9), layout="constrained")
    draw_steps(axis)
    for name, figure in drawings.items():
        about = {"Date": None, "Description": f"made by docs/pictures.py, sha256 {source}"}
        figure.savefig(FOLDER / f"{name}.svg", metadata=about)


if __name__ == "__main__":
    main()
