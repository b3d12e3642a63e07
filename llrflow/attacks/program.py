"""An attack as compiled phases that the host drives: begin, advance by chunks of steps, finish and judge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.network import (
    NOISE,
    Examples,
    Network,
    Placement,
    Start,
    look_phase,
    querying,
    quick_options,
    reference_of,
)
from llrflow.base.errors import SpecError
from llrflow.components.calls import guarded, shaped
from llrflow.components.registry import Component
from llrflow.components.traced import bind, numbers
from llrflow.data.batches import padded_chunks
from llrflow.method.ascent import Draws, Plan, misclassified, plan_steps, predicted_class, repeat
from llrflow.method.batched import choose
from llrflow.method.probe import SearchProbe
from llrflow.method.terms.linearity import LocalLinearity
from llrflow.method.threat import Threat, clip_to_box


class Verdict(NamedTuple):
    """What an attack found per example, judged anew on the projected perturbation."""

    delta: Any
    """[B,H,W,C]; in the ball, unless a minimum-norm attack found nothing inside it."""
    wrong: Any
    """Misclassified within the threat model, [B]."""
    predicted: Any
    """The class at x + delta, [B]; -1 where a logit is NaN or +inf."""
    value: Any
    """The attack's own objective, [B]; of a minimum-norm attack -distance."""
    loss: Any
    """Cross-entropy at x + delta in nats, [B]."""
    distance: Any
    """||delta|| in the threat's norm, [B]; of a minimum-norm attack that found nothing, infinity."""
    linearity: Any
    """g(delta; x) = |l(x+delta) - l(x) - <delta, grad l(x)>| in nats, [B]."""
    queries: Any
    """Forward passes used, [B]."""
    gradients: Any
    """Backward passes used, [B]."""


class InFlight(NamedTuple):
    """A run under way: the attack's state and the steps each example has taken [B]."""

    state: Any
    taken: Any


class AttackProgram:
    """One attack on one kind of model, compiled once per batch shape.

    Numbers of attack and threat are inputs, so changing them compiles nothing. `surrogate` is the network that the
    attack searches on, when that is not the network by which it is judged (transfer).
    """

    def __init__(
        self,
        attack: Attack,
        threat: Threat,
        network: Network,
        placement: Placement,
        surrogate: Network | None = None,
        plan: Plan | None = None,
    ) -> None:
        """`plan` says how its steps are compiled; by default what suits the platform and the attack's length."""
        if unknown := attack.unknown(threat.norm):
            raise SpecError(attack.label(), *unknown)
        self.attack, self.threat, self.network, self.placement = attack, threat, network, placement
        self._searched = surrogate or network
        self.plan = plan or plan_steps(attack.length, placement.platform, inside=False)
        self._compiled: dict[Any, dict[str, Any]] = {}
        self._look = look_phase(self._searched, placement, self._searched.draws(attack.eot))
        self._begin, self._advance, self._finish = map(
            placement.wrap, (self._begin_fn, self._advance_fn, self._finish_fn)
        )

    @property
    def numbers(self) -> dict[str, np.float32]:
        """The traced numbers of attack and threat, to pass to `run`."""
        found: dict[str, np.float32] = {}
        for path, value, _ in (*numbers(self.attack, ("attack",)), *numbers(self.threat, ("threat",))):
            if isinstance(value, Component):
                raise SpecError(path, "follows a schedule, but an attack has no training steps", "give one number")
            found[path] = np.float32(value)
        return found

    def like(self, attack: Attack, threat: Threat) -> AttackProgram:
        """The same compiled program for an attack and a threat that differ in traced numbers, restarts, or in a length
        that is a multiple of the compiled steps and decides nothing else (a step size given as a number)."""
        other = copy.copy(self)
        other.attack, other.threat = attack, threat
        return other

    def run(
        self,
        variables: Any,
        examples: Examples,
        key: Any,
        size: int,
        surrogate: Any = None,
        report: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[np.ndarray, Verdict]]:
        """One run of every example, in batches of `size`: (rows of `examples` [M], their verdicts) as they end.

        variables (and the surrogate's, if there is one) and key data as `placement` replicates them; examples in NumPy,
        a few batches of them for packing to pay. `report()` is called between chunks of steps.
        """
        placement, inputs = self.placement, self.placement.replicate(self.numbers)
        searched = variables if surrogate is None else surrogate
        one = jax.tree.map(lambda field: np.asarray(field)[0], examples)
        if (size, _kind(one)) not in self._compiled:
            self.prepare(size, variables, searched, one)
        phases = self._compiled[size, _kind(one)]
        rest = (phases["finish"], variables, searched, inputs)
        flights = [
            _Flight(rows, mask, *self._launch(phases["begin"], searched, examples, rows, key, inputs))
            for rows, mask in padded_chunks(np.arange(len(examples.y)), size)
        ]
        for first in range(0, self.attack.length, self.plan.chunk) if self.attack.length else ():
            if not flights:  # a search may be far shorter than it might have been
                break
            index, settled = placement.replicate(np.int32(first)), []
            for place, f in enumerate(flights):  # one after the other: an old state is given up for each new one
                flying, done = phases["advance"](searched, f.examples, f.start, f.flying, index, inputs)
                flights[place] = f._replace(flying=flying)
                settled.append(done)
            report()
            if first + self.plan.chunk < self.attack.length and self._settles:
                going = [f.mask & ~placement.gather(done) for f, done in zip(flights, settled, strict=True)]
                count = sum(int(g.sum()) for g in going)
                if -(-count // size) < len(flights):
                    ended = [f.mask & ~g for f, g in zip(flights, going, strict=True)]
                    on_host = [(f.rows, *placement.gather((f.examples, f.start, f.flying))) for f in flights]
                    landing, flights = (self._pack(on_host, chosen, size) for chosen in (ended, going))
                    yield from self._land(landing, rest)
        yield from self._land(flights, rest)

    def arguments(self, variables: Any, searched: Any, size: int, example: Examples) -> dict[str, tuple[Any, ...]]:
        """The abstract arguments of each phase on a batch of `size` examples like one `example`; nothing is run."""
        lead, each = self.placement.lead, size // self.placement.count
        examples = jax.tree.map(lambda one: jax.ShapeDtypeStruct((*lead, each, *one.shape), one.dtype), example)
        key, index = jax.ShapeDtypeStruct((*lead, 2), np.uint32), jax.ShapeDtypeStruct(lead, np.int32)
        inputs = self.placement.replicate(self.numbers)
        start = jax.eval_shape(self._look.phase, searched, examples, key)
        begin = (searched, examples, start, inputs)
        flying = jax.eval_shape(self._begin, *begin)
        return {
            "look": (searched, examples, key),
            "begin": begin,
            "advance": (searched, examples, start, flying, index, inputs),
            "finish": (variables, searched, examples, start, flying, inputs),
        }

    def trace(self, variables: Any, size: int, example: Examples) -> None:
        """Trace every phase without compiling it: raises PluginError for a plugin's fault."""
        phases = {"advance": self._advance, "finish": self._finish}
        for name, arguments in self.arguments(variables, variables, size, example).items():
            if name in phases:
                jax.eval_shape(phases[name], *arguments)

    def prepare(self, size: int, variables: Any, searched: Any, example: Examples) -> tuple[int, int]:
        """Compile for batches of `size` examples like one `example`, phases side by side; they are kept.

        Returns, by XLA's own account, (bytes on one device while it takes its steps, bytes of a batch on all devices).
        """
        arguments = self.arguments(variables, searched, size, example)
        phases = {"begin": self._begin, "advance": self._advance, "finish": self._finish}
        used = {name: phase for name, phase in phases.items() if name != "advance" or self.attack.length}
        lowered = {name: phase.lower(*arguments[name]) for name, phase in used.items()}
        platform = self.placement.platform
        options = [None if name == "advance" else quick_options(platform) for name in lowered]
        with ThreadPoolExecutor() as pool:
            pool.submit(self._look.prepare, *arguments["look"])
            made = pool.map(lambda phase, chosen: phase.compile(chosen), lowered.values(), options)
            compiled = dict(zip(lowered, made, strict=True))
        self._compiled[size, _kind(example)] = {**phases, **compiled}
        batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments["advance"][1:4]))
        memory = compiled.get("advance", compiled["begin"]).memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes, batch

    @property
    def _settles(self) -> bool:
        return type(self.attack).settled is not Attack.settled and not self._searched.stochastic

    def _settled(self, attack: Attack, state: Any) -> jax.Array | None:
        return attack.settled(state) if self._settles else None

    def _launch(self, begin: Any, variables: Any, examples: Examples, rows: np.ndarray, key: Any, inputs: Any) -> Any:
        batch = self.placement.shard(jax.tree.map(lambda field: np.asarray(field)[rows], examples))
        start = self._look(variables, batch, key)
        return batch, start, begin(variables, batch, start, inputs)

    def _pack(self, on_host: list[tuple[Any, ...]], chosen: list[np.ndarray], size: int) -> list[_Flight]:
        """The examples that are chosen of (rows, examples, start, flying) in NumPy, in as few batches as hold them."""
        parts = [
            jax.tree.map(lambda leaf, c=c: leaf[c], batch) for batch, c in zip(on_host, chosen, strict=True) if c.any()
        ]
        if not parts:
            return []
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        packed = []
        for places, mask in padded_chunks(np.arange(len(whole[0])), size):
            rows, *on_devices = jax.tree.map(lambda leaf, p=places: leaf[p], whole)
            packed.append(_Flight(rows, mask, *self.placement.shard(tuple(on_devices))))
        return packed

    def _land(self, flights: list[_Flight], rest: Any) -> Iterator[tuple[np.ndarray, Verdict]]:
        finish, variables, searched, inputs = rest
        for flight in flights:
            verdict = finish(variables, searched, flight.examples, flight.start, flight.flying, inputs)
            verdict = Verdict(*(field[flight.mask] for field in self.placement.gather(verdict)))
            self._check(verdict, self.placement.gather(flight.examples), flight.mask)
            yield flight.rows[flight.mask], verdict

    def _check(self, verdict: Verdict, examples: Examples, mask: np.ndarray) -> None:
        inside = verdict.wrong if self.attack.minimum_norm else np.ones(len(verdict.wrong), bool)
        if inside.any():
            there = jax.tree.map(lambda field: field[mask][inside], examples)
            _ball_of(self.threat, there).check(verdict.delta[inside], there.x)

    def _bound(self, inputs: Mapping[str, jax.Array], examples: Examples) -> tuple[Attack, Threat]:
        split = {part: {} for part in ("attack", "threat")}
        for path, value in inputs.items():
            part, _, field = path.partition(".")
            split[part][field] = value
        return bind(self.attack, split["attack"]), _ball_of(bind(self.threat, split["threat"]), examples)

    def _probes(
        self, network: Network, variables: Any, examples: Examples, start: Start, threat: Threat, at: Any
    ) -> Draws:
        keys = jax.random.wrap_key_data(start.keys)
        applies = [querying(network, variables, keys, at, draw) for draw in range(network.draws(self.attack.eot))]
        rest = (examples.x, examples.y, keys, threat, start.reference)
        return Draws(tuple(partial(SearchProbe, apply, *rest) for apply in applies))

    def _begin_fn(self, variables: Any, examples: Examples, start: Start, inputs: Any) -> InFlight:
        attack, threat = self._bound(inputs, examples)
        probes = self._probes(self._searched, variables, examples, start, threat, NOISE + 1)
        keys = jax.random.wrap_key_data(start.keys)
        state = guarded(attack, lambda: attack.begin(probes, threat, keys, examples.run))
        return InFlight(state, jnp.zeros(len(examples.y), jnp.int32))

    def _advance_fn(
        self, variables: Any, examples: Examples, start: Start, flying: InFlight, first: jax.Array, inputs: Any
    ) -> tuple[InFlight, jax.Array]:
        attack, threat = self._bound(inputs, examples)

        def one(flying: InFlight, index: jax.Array) -> InFlight:
            probes = self._probes(self._searched, variables, examples, start, threat, index)
            state = guarded(attack, lambda: attack.advance(probes, threat, flying.state, index))
            stepped = InFlight(state, flying.taken + 1)
            # Settled examples stay as they are: what an example ends with must not depend on its batch-mates' luck.
            settled = self._settled(attack, flying.state)
            return stepped if settled is None else jax.tree.map(partial(choose, settled), flying, stepped)

        flying = repeat(one, flying, first, self.plan.chunk, self.plan.inside)
        settled = self._settled(attack, flying.state)
        return flying, jnp.zeros(len(examples.y), bool) if settled is None else settled

    def _finish_fn(
        self, variables: Any, searched: Any, examples: Examples, start: Start, flying: InFlight, inputs: Any
    ) -> Verdict:
        attack, threat = self._bound(inputs, examples)
        at = NOISE + 2
        probes = self._probes(self._searched, searched, examples, start, threat, at)
        delta = shaped(attack, examples.x.shape, lambda: attack.finish(probes, threat, flying.state))
        if self._searched is not self.network:
            keys = jax.random.wrap_key_data(start.keys)
            start = start._replace(reference=reference_of(self.network, variables, examples, keys, attack.eot))
        probe = self._probes(self.network, variables, examples, start, threat, at + 1)()
        inside = threat.project(delta, examples.x)
        wrong, predicted = misclassified(probe.logits(inside), examples.y), predicted_class(probe.logits(inside))
        if not attack.minimum_norm:
            delta, distance, value = inside, threat.distance(inside), attack.objective(probe, inside)
        else:
            delta = clip_to_box(jnp.nan_to_num(delta), examples.x)
            found = wrong | misclassified(probe.logits(delta), examples.y)
            delta = choose(wrong, inside, choose(found, delta, jnp.zeros_like(delta)))
            distance = jnp.where(found, threat.distance(delta), jnp.inf)
            value = -distance
            predicted = jnp.where(wrong, predicted, predicted_class(probe.logits(delta)))
        cost = attack.step_cost.over(self._searched.draws(attack.eot))
        queries, gradients = (flying.taken * count for count in cost)
        linearity = LocalLinearity()(probe, delta)
        return Verdict(delta, wrong, predicted, value, probe.loss(delta), distance, linearity, queries, gradients)


def _kind(example: Examples) -> tuple[Any, ...]:
    """Shapes and types of one example: what a compiled program takes, besides the size of its batches."""
    return tuple(None if field is None else (field.shape, str(field.dtype)) for field in example)


def _ball_of(threat: Threat, examples: Examples) -> Threat:
    """The threat with each example's own radius, where they have one."""
    return threat if examples.epsilon is None else threat.of_radius(examples.epsilon)


class _Flight(NamedTuple):
    """One batch under way."""

    rows: np.ndarray
    mask: np.ndarray
    """False where a row only fills the batch."""
    examples: Any
    start: Any
    flying: Any
