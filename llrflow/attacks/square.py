"""Square: random search that sees the logits alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from llrflow.attacks.base import Attack, StepCost
from llrflow.base.norms import NormName
from llrflow.components.registry import register
from llrflow.method.ascent import ProbeFactory, misclassified, restart_keys
from llrflow.method.batched import choose
from llrflow.method.norms import NORMS
from llrflow.method.terms.classification import margin
from llrflow.method.threat import Threat

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Changes after which p is halved (section 5 of the paper, where they are of 10,000)."""


class State(NamedTuple):
    """The point kept so far."""

    keys: jax.Array
    """Raw random keys, one per example and run."""
    delta: jax.Array
    """[B,H,W,C]."""
    value: jax.Array
    """Its margin, [B]."""
    wrong: jax.Array
    """Whether it is misclassified, [B]."""


@register("attack", "square")
class Square(Attack):
    """Black-box random search: changes a random square of the image and keeps the change if the margin grows.

    Andriushchenko et al. 2020 (arXiv:1912.00049). linf starts at vertical stripes of +-epsilon and adds
    +-2 epsilon per channel to a square of side sqrt(p H W), cut to ball and box. l2 starts at a grid of tiles, each a
    positive and a negative bump, and moves the norm of a second square, and what the box left unused, into the first.
    l1 as l2 with sharper bumps (Croce & Hein 2021).
    An example ends at its first misclassified point. It finds what gradient masking hides from first-order attacks.
    """

    norms: ClassVar[tuple[str, ...]] = tuple(NORMS)
    step_cost: ClassVar[StepCost] = StepCost(1, 0)

    queries: int = Field(default=5000, ge=1)
    """Forward passes of one run, that of the initial point included."""

    p: float = Field(default=0.8, gt=0, le=1)
    """Initial share of the pixels that a change covers; halved on the way as `rescale` says."""

    rescale: bool = True
    """Halve p after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries (the paper, for any number of them), or,
    if false, after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 changes, as Square within AutoAttack does."""

    restarts: int = Field(default=1, ge=1)
    """Independent runs, each of so many queries."""

    @property
    def length(self) -> int:
        """Queries: step 0 asks for the initial point, every other for one change."""
        return self.queries

    def runs(self, classes: int) -> int:
        """Restarts."""
        return self.restarts

    def begin(self, probes: ProbeFactory, threat: Threat, keys: jax.Array, run: jax.Array) -> State:
        """The initial point, not yet asked for."""
        x = probes().x
        way = WAYS[threat.norm]
        delta = jax.vmap(lambda key: way.start(key, x.shape[1:]))(restart_keys(keys, 0)).astype(x.dtype)
        delta = threat.project(threat.radius() * delta if way.in_epsilons else delta, x)
        nothing = jnp.full(len(x), -jnp.inf, x.dtype)
        return State(jax.random.key_data(keys), delta, nothing, jnp.zeros(len(x), bool))

    def advance(self, probes: ProbeFactory, threat: Threat, state: State, index: jax.Array) -> State:
        """One query."""
        probe, shape = probes(), state.delta.shape[1:]
        side = jnp.asarray(sides(shares(self.p, self.queries, self.rescale), threat.norm, shape))[index]
        keys = restart_keys(jax.random.wrap_key_data(state.keys), index)
        draws = jax.vmap(lambda key: draw_change(key, side, shape))(keys)
        change = WAYS[threat.norm].change
        axes = (0, 0, None, 0 if jnp.ndim(threat.epsilon) else None)
        changed = jax.vmap(change, in_axes=axes)(state.delta, draws, side, threat.epsilon)
        delta = jnp.where(index == 0, state.delta, threat.project(changed, probe.x))
        logits = probe.logits(delta)
        value, wrong = margin(logits, probe.y), misclassified(logits, probe.y)
        kept = (value > state.value) | wrong
        return State(
            state.keys,
            choose(kept, delta, state.delta),
            jnp.where(kept, value, state.value),
            jnp.where(kept, wrong, state.wrong),
        )

    def finish(self, probes: ProbeFactory, threat: Threat, state: State) -> jax.Array:
        """The kept point, [B,H,W,C]."""
        return state.delta

    def settled(self, state: State) -> jax.Array:
        """Examples that are misclassified at the kept point."""
        return state.wrong


def shares(p: float, queries: int, rescale: bool) -> np.ndarray:
    """Share of the pixels that the change of each query covers, [queries]; query 0, the initial point, has none."""
    # As in the authors' code the first change has number 0, and p is halved once that number has passed a mark.
    change = np.maximum(np.arange(queries) - 1, 0)
    if rescale:  # in integers: theirs, int(i / n * 10000), is one short for some i
        change = change * 10_000 // queries
    return p * 0.5 ** (change[:, None] > np.asarray(HALVED_AT)).sum(axis=1)


def sides(share: np.ndarray, norm: str, shape: tuple[int, ...]) -> np.ndarray:
    """Sides in pixels of squares that cover such shares of an image (H, W, C), [...]."""
    height, width = shape[:2]
    side = np.rint(np.sqrt(share * height * width)).astype(np.int32)
    if norm != "linf":  # smaller than 3 there is no bump, and the authors' code makes sides odd
        side = np.maximum(side, 3)
        side += side % 2 == 0
    return np.clip(side, 1, min(height, width))


class Change(NamedTuple):
    """The random choices of one change of one example."""

    corners: jax.Array
    """Upper left corners (row, column) of two squares, [2,2]; linf uses the first alone."""
    sign: jax.Array
    """-1 or 1 for each channel, [C]."""
    turned: jax.Array
    """Whether the two bumps lie one below the other, not side by side."""


def draw_change(key: jax.Array, side: jax.Array, shape: tuple[int, ...]) -> Change:
    """Draw squares that lie inside the image (H, W, C)."""
    where, sign, turn = jax.random.split(key, 3)
    # All H - side + 1 places: public implementations leave out the last, and with it one row and column of the image.
    corners = jax.random.randint(where, (2, 2), 0, jnp.asarray(shape[:2]) - side + 1)
    return Change(corners, jax.random.rademacher(sign, shape[2:]), jax.random.bernoulli(turn))


def change_linf(delta: jax.Array, draw: Change, side: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """delta [H,W,C] with +-2 epsilon added in the square (Algorithm 2), not yet projected."""
    inside = _inside(*_coordinates(delta.shape, draw.corners[0]), side)[:, :, None]
    return delta + 2 * epsilon * jnp.where(inside, draw.sign, 0).astype(delta.dtype)


def change_l2(delta: jax.Array, draw: Change, side: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """delta [H,W,C] with norm moved from the second square into a bump in the first (Algorithm 3), unprojected.

    Norms are those of each channel, as in the paper; public code takes that of both squares over all channels.
    """
    here, there = (_coordinates(delta.shape, corner) for corner in draw.corners)
    first, second = (_inside(*at, side)[:, :, None] for at in (here, there))
    unused = jnp.maximum(epsilon**2 - jnp.sum(delta**2), 0.0)
    available = jnp.sqrt(jnp.sum(jnp.where(first | second, delta**2, 0.0), axis=(0, 1)) + unused / delta.shape[2])
    bump = (eta(*here, side, draw.turned)[:, :, None] * draw.sign).astype(delta.dtype)
    bump = _unit(bump + _unit(jnp.where(first, delta, 0.0)))
    return jnp.where(first, bump * available, jnp.where(second, 0.0, delta))


def change_l1(delta: jax.Array, draw: Change, side: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """As `change_l2` with l1 norms and sharper bumps; as in the authors' code each channel may spend that of all."""
    here, there = (_coordinates(delta.shape, corner) for corner in draw.corners)
    first, second = (_inside(*at, side)[:, :, None] for at in (here, there))
    unused = jnp.maximum(epsilon - jnp.sum(jnp.abs(delta)), 0.0)
    available = jnp.sum(jnp.where(first | second, jnp.abs(delta), 0.0), axis=(0, 1)) * delta.shape[2] + unused
    bump = (eta(*here, side, draw.turned, "l1")[:, :, None] * draw.sign).astype(delta.dtype)
    bump = _unit(bump + _unit(jnp.where(first, delta, 0.0), "l1"), "l1")
    return jnp.where(first, bump * available, jnp.where(second, 0.0, delta))


def eta(
    row: jax.Array, column: jax.Array, side: jax.Array | int, turned: jax.Array | bool, norm: NormName = "l2"
) -> jax.Array:
    """Two bumps of opposite sign that fill a square, unit norm together; zero outside (eq. 2 of the paper).

    `row` and `column` [H,W] are each pixel's place in the square. The square is cut into the first floor(side / 2)
    columns and the rest; a pixel at Chebyshev distance d from the centre of its part is sum_{m=d}^{side/2} 1/(m+1)^2,
    under l1 (Croce & Hein 2021, arXiv:2103.01208) 1/(m+1)^4 with parts of equal norm.
    """
    row, column = jnp.where(turned, column, row), jnp.where(turned, row, column)
    cut = side // 2
    right = column >= cut
    centre = jnp.where(right, cut + (side - cut) // 2, cut // 2)
    distance = jnp.maximum(jnp.abs(row - side // 2), jnp.abs(column - centre))
    power = {"l2": 2, "l1": 4}[norm]
    tails = np.cumsum(1.0 / np.arange(max(row.shape) + 2.0, 0, -1) ** power)[::-1]  # tails[d] = sum_{m >= d}
    tails = jnp.asarray(tails, float)
    height = jnp.take(tails, distance, mode="clip") - jnp.take(tails, side // 2 + 1, mode="clip")
    height = jnp.where(_inside(row, column, side), height, 0.0)
    if norm == "l1":  # as in the authors' code; the paper on l2 leaves the larger part the larger bump
        first, second = (_length(jnp.where(part, height, 0.0), norm) for part in (~right, right))
        height = height / jnp.maximum(jnp.where(right, second, first), 1e-12)  # of a square of one pixel one is empty
    bumps = jnp.where(right, -height, height)
    return bumps / _length(bumps, norm)


class Grid(NamedTuple):
    """The random choices of one example's initial point under l2; `n` by `m` tiles."""

    sign: jax.Array
    """-1 or 1 for each tile and channel, [n,m,C]."""
    turned: jax.Array
    """Whether the two bumps of a tile lie one below the other, [n,m]."""


def draw_grid(key: jax.Array, shape: tuple[int, ...]) -> Grid:
    """Draw for tiles a fifth as wide as the image (H, W, C), as many as fit (5 x 5 from 25 pixels on)."""
    sign, turn = jax.random.split(key)
    size = tile_side(shape)
    tiles = (shape[0] // size, shape[1] // size)
    return Grid(jax.random.rademacher(sign, (*tiles, shape[2])), jax.random.bernoulli(turn, shape=tiles))


def tile_side(shape: tuple[int, ...]) -> int:
    """Side of a tile of the initial grid under l2, in pixels."""
    return max(min(shape[:2]) // 5, 1)


def start_l2(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The grid of bumps in the middle of an image, unit l2 norm, [H,W,C]."""
    grid = _grid(key, shape, "l2")
    return grid / jnp.sqrt(jnp.sum(grid**2))


def start_l1(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The grid of bumps, each of unit l1 norm: more than fits the ball, which keeps the tops of them; [H,W,C]."""
    return _grid(key, shape, "l1")


def _grid(key: jax.Array, shape: tuple[int, ...], norm: NormName) -> jax.Array:
    draw, size = draw_grid(key, shape), tile_side(shape)
    tile = eta(*_coordinates((size, size), np.zeros(2, int)), size, False, norm)
    tiles = jnp.where(draw.turned[:, :, None, None], tile.T, tile)  # [n,m,side,side]
    grid = jnp.einsum("nmij,nmc->nimjc", tiles, draw.sign.astype(tiles.dtype))
    grid = grid.reshape(draw.turned.shape[0] * size, draw.turned.shape[1] * size, shape[2])
    spare = [length - covered for length, covered in zip(shape[:2], grid.shape[:2], strict=True)]
    return jnp.pad(grid, [*((left // 2, left - left // 2) for left in spare), (0, 0)])


def start_linf(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Vertical stripes of width one, for each column and channel -1 or 1, [H,W,C]."""
    return jnp.broadcast_to(jax.random.rademacher(key, (1, *shape[1:])), shape)


def _coordinates(shape: tuple[int, ...], corner: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    row, column = (jax.lax.broadcasted_iota(int, shape[:2], axis) - corner[axis] for axis in (0, 1))
    return row, column


def _inside(row: jax.Array, column: jax.Array, side: jax.Array | int) -> jax.Array:
    """A square of a size known only at run time is a mask, [H,W]."""
    return (row >= 0) & (row < side) & (column >= 0) & (column < side)


def _unit(channels: jax.Array, norm: NormName = "l2") -> jax.Array:
    """[H,W,C] with unit norm in each channel; zero stays zero."""
    length = _length(channels, norm)
    return channels / jnp.where(length > 0, length, 1.0)


def _length(planes: jax.Array, norm: NormName) -> jax.Array:
    """The norm over the two axes of an image, [H,W,...] -> [...]."""
    if norm == "l1":
        return jnp.sum(jnp.abs(planes), axis=(0, 1))
    return jnp.sqrt(jnp.sum(planes**2, axis=(0, 1)))


class Way(NamedTuple):
    """How points are made under one norm."""

    start: Callable[..., jax.Array]
    """(key, image shape) -> the initial point before the projection."""
    change: Callable[..., jax.Array]
    """(delta, draw, side, epsilon) -> the changed point before the projection."""
    in_epsilons: bool = True
    """Whether the initial point is in units of epsilon, or as it is."""


WAYS: dict[NormName, Way] = {
    "linf": Way(start_linf, change_linf),
    "l2": Way(start_l2, change_l2),
    "l1": Way(start_l1, change_l1, in_epsilons=False),
}
