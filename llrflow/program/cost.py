"""What a training step costs: in forward-equivalents by part, in XLA's flops and memory, and in measured time."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from llrflow.attacks.network import quick_options
from llrflow.base.memory_size import amount
from llrflow.data.batches import steps_per_epoch
from llrflow.data.extra import divided
from llrflow.data.pipelines import choose, roles
from llrflow.data.well_known import describe_or_known
from llrflow.method.objective import Objective
from llrflow.method.probe import Pass, Probe
from llrflow.models.network import has_statistics
from llrflow.program.averages import short_average
from llrflow.program.compile import Program, compile_spec
from llrflow.program.memory import memory
from llrflow.program.state import Batch
from llrflow.spec.schema import Spec

CROSS_ENTROPY = 3
"""Forward-equivalents of a cross-entropy step: one pass and its derivatives for inputs and parameters."""

COMPILED_UP_TO = 1000
"""Arrays of parameters times forward-equivalents of a step that `plan` compiles to look at it."""


class Count(NamedTuple):
    """Passes over the network; each costs about one forward pass, 1F."""

    forward: int = 0
    backward: int = 0
    """Reverse passes: for inputs and for parameters count one each."""
    derivative: int = 0
    """Forward-mode (directional derivative) passes."""

    @property
    def total(self) -> int:
        """Forward-equivalents."""
        return sum(self)

    def plus(self, other: Count) -> Count:
        """The sum of both, field by field."""
        return Count(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, factor: int) -> Count:
        """Each field times a number."""
        return Count(*(factor * mine for mine in self))


def parts(program: Program) -> dict[str, Count]:
    """What the objective and its parameter gradient cost by part.

    A search step costs what its term asks at the perturbation, differentiated for inputs alone: 1 forward and 1
    backward for a term of the perturbed pass. Comparing iterates, restarts or searches costs one forward pass more a
    restart.
    """
    found: dict[str, Count] = {}
    for probe in probes_of(program):
        for name, asked in probe.searches.items():
            steps, restarts, judged = searches_of(program.spec.objective)[name]
            step = functools.reduce(Count.plus, of_passes(asked, reverse=1).values(), Count())
            label = f"{steps} steps" + (f", {restarts} restarts" if restarts > 1 else "")
            total = step.times(steps).plus(Count(len(asked) if judged else 0)).times(restarts)
            found[f"search {name} ({label})"] = total
        for part, count in of_passes(probe.passes.values()).items():
            found[part] = found.get(part, Count()).plus(count)
    return found


class SearchCost(NamedTuple):
    """What decides how much a search takes."""

    steps: int
    restarts: int
    judged: bool
    """Whether the last iterate's value is used."""


def searches_of(objective: Objective) -> dict[str, SearchCost]:
    """The searches of a step by name; those from which each example has one drawn are together one, as long as any."""
    compared = {name for of in objective.members("strongest").values() for name in of}
    together = {name: (name,) for name in objective.alone()} | objective.members("drawn")
    found = {}
    for name, of in together.items():
        searches = [objective.perturbations[member] for member in of]
        judged = name in compared or any(s.keep == "best" or s.restarts > 1 for s in searches)
        found[name] = SearchCost(max(s.steps for s in searches), searches[0].restarts, judged)
    return found


def probes_of(program: Program) -> list[Probe]:
    """Those of a step whose network is a stand-in, which is traced in no time."""
    return program.probes(program.stand_in())


def of_passes(passes: Iterable[Pass], reverse: int = 2) -> dict[str, Count]:
    """What a probe's passes cost, with their derivative, by part.

    A pass is 1 forward, and `reverse` backward where it is differentiated (2: for parameters and inputs, 1: for inputs
    alone); an input gradient 1 backward; and 1 derivative and `reverse` backward more where anything made of it is
    differentiated, however many slopes and norms that is.
    """
    found: dict[str, Count] = {}
    for made in passes:
        counts = {"pass": Count(1, reverse * made.differentiated)}
        if made.gradient:
            counts["input gradient"] = Count(0, 1)
        if made.derivative:
            counts["directional derivative"] = Count(0, reverse, 1)
        for what, count in counts.items():
            name = f"{what}, {made.at}"
            found[name] = found.get(name, Count()).plus(count)
    return found


def measure(program: Program, plain: Program, rounds: int = 7, profile: Path | None = None) -> dict[str, float]:
    """Median seconds of both programs' steps, taken in turn on random images, and the median of their ratios.

    A trace of a few steps more is written to the folder `profile`, as `jax.profiler` does.
    """
    steps = {"step": _Stepper(program), "cross_entropy_step": _Stepper(plain)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, stepper in steps.items():
            times[name].append(stepper.seconds())
    medians = {name: float(np.median(values)) for name, values in times.items()}
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            steps["step"].seconds()
    ratios = np.array(times["step"]) / np.array(times["cross_entropy_step"])
    return {
        **medians,
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def rates(seconds: float, images: int, flops: float, peak: float | None = None) -> dict[str, float]:
    """What a step of so many seconds comes to, for `images` on all devices and `flops` on each of them.

    `flops` are counted: F times those of a forward pass. `peak` is what a device can do at best, in Tflop/s.
    """
    found = {"images_per_second": images / seconds, "flops_per_second_and_device": flops / seconds}
    return found if peak is None else {**found, "share_of_peak": flops / seconds / (peak * 1e12)}


def plain_program(spec: Spec) -> Program:
    """The same spec with nothing but the cross-entropy of clean images as its objective."""
    return compile_spec(spec.model_copy(update={"objective": Objective()}), facts_of=describe_or_known)


def warnings_of(program: Program) -> list[str]:
    """What a valid spec is likely to be a mistake in, a sentence each."""
    spec = program.spec
    found = [short_average(spec, program.inputs), program.facts.warning]
    moving = spec.train.batch_norm.terms == "moving" and spec.objective.terms
    if moving and has_statistics(program.abstract_state().model_state):
        found.append(
            "train.batch_norm.terms = moving is for fine-tuning with small steps: a network trained with it from "
            "scratch becomes constant under moving statistics, with which it is evaluated (docs/objective.md)"
        )
    return [warning for warning in found if warning]


def plan(
    program: Program,
    count: int,
    timed: bool,
    compiled: bool | None = None,
    peak: float | None = None,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Everything that `llrflow plan` prints, for `count` devices with the share of the program's devices each.

    `compiled` adds XLA's flops and memory; None does where that takes no longer than about a minute on 2 cores. `peak`
    is of `rates`, `profile` of `measure`.
    """
    state, counts = program.abstract_state(), parts(program)
    total = sum(part.total for part in counts.values())
    if compiled is None:
        compiled = total * len(jax.tree.leaves(state.params)) <= COMPILED_UP_TO
    evaluated = program.spec.evaluate
    data, share = program.spec.data, program.spec.train.batch_size // len(program.devices)
    lowered = program.lowered_forward()
    forward, needed = flops_of(lowered), memory(program)
    result = {
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(state.params))),
        "image_shape": list(program.image_shape),
        "classes": program.classes,
        "training_images": program.facts.train,
        "validation_images": program.facts.validation,
        "held_back": data.validation,
        "test_images": program.facts.test,
        "facts": program.facts.source,
        "pipelines": {role: choose(data, program.facts, role)._asdict() for role in roles(data)},
        "extra": _extra(program, share * count),
        "steps": program.steps,
        "batch_size": share * count,
        "devices": count,
        "platform": program.devices.platform,
        "per_device_batch": share,
        "passes": {name: part._asdict() for name, part in counts.items()},
        "forward_equivalents": {name: part.total for name, part in counts.items()},
        "forward_equivalents_per_step": total,
        "forward_equivalents_of_cross_entropy": CROSS_ENTROPY,
        "search_steps": sum(s.steps * s.restarts for s in searches_of(program.spec.objective).values()),
        "forward_flops_per_image": forward / share,
        "estimated_flops_per_step_and_device": forward * total,
        "estimated_flops_of_training": forward * total * count * program.steps,
        "estimated_memory_bytes_per_device": needed._asdict(),
        "accumulate": program.spec.train.accumulate,
        "accumulate_why": program.why_parts,
        "evaluation_forwards": evaluated.drawn_of(program.facts.test)
        * evaluated.forwards(program.spec.threat, program.classes),
        "warnings": [*warnings_of(program), *filter(None, (_too_much(program, sum(needed)),))],
        **(_by_xla(program, lowered) if compiled else {}),
    }
    if not timed:
        return result
    measured = measure(program, plain_program(program.spec), profile=profile)
    here = rates(measured["step"], program.spec.train.batch_size, forward * total, peak)
    return {**result, "measured": {**measured, **here, "devices": len(program.devices)}}


def _too_much(program: Program, needed: int) -> str | None:
    """That a step needs more memory than its devices are said to have, or None."""
    limit = program.spec.devices.memory
    if limit is None or needed <= limit:
        return None
    return f"{amount(needed)} a device are estimated, more than devices.memory = {amount(limit)}: accumulate, or remat"


def _extra(program: Program, batch_size: int) -> dict[str, Any] | None:
    """What `data.extra` puts into a batch, and how many steps make an epoch of the training images."""
    extra, facts, block = program.spec.data.extra, program.facts.extra, program.spec.data.extra_block
    if extra is None or facts is None or block is None:
        return None
    training, added = divided(batch_size, extra.share)
    return {
        "name": extra.name,
        "labels": extra.labels,
        "images": facts.train,
        "facts": facts.source,
        "share": extra.share,
        "steps_per_epoch": steps_per_epoch(program.facts.train, training),
        "steps_per_extra_epoch": steps_per_epoch(facts.train, added),
        **choose(block, facts, "train")._asdict(),
    }


def _by_xla(program: Program, lowered_forward: Any) -> dict[str, Any]:
    # Nobody runs these: LLVM's optimisations on CPUs, half of the time, change neither operations nor buffers.
    step = program.lowered_step().compile(compiler_options=quick_options(program.devices.platform))
    flops, forward = flops_of(step), flops_of(lowered_forward.compile(compiler_options=quick_options("cpu")))
    found = step.memory_analysis()
    return {
        "xla_flops_per_step_and_device": flops,
        "xla_forward_equivalents": flops / forward,
        "xla_memory_bytes_per_device": found.temp_size_in_bytes + found.argument_size_in_bytes,
    }


def flops_of(program: Any) -> float:
    """Floating-point operations of a lowered or compiled function, by XLA's count."""
    analysis = program.cost_analysis()  # of a lowered or compiled function: the share of one device
    return float((analysis[0] if isinstance(analysis, list) else analysis).get("flops", 0.0))


class _Stepper:
    """Repeats a program's step on one random batch; the first, compiling, call is not timed."""

    def __init__(self, program: Program) -> None:
        size, rng = program.spec.train.batch_size, np.random.default_rng(0)
        images = rng.integers(0, 256, (size, *program.image_shape), np.uint8)
        labels = rng.integers(0, program.classes, size, np.int32)
        self._program, self._batch = program, Batch(images, labels, np.arange(size, dtype=np.int32))
        self._state, self._repeats = program.init(), 1
        self.seconds()
        self._repeats = max(1, round(0.3 / self.seconds()))

    def seconds(self) -> float:
        """Seconds of one step, averaged over a few."""
        began = time.perf_counter()
        for _ in range(self._repeats):
            self._state, metrics = self._program.train_step(self._state, self._batch, 0)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / self._repeats
