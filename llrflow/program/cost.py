"""What a training step costs: in forward-equivalents by part, in XLA's flops and memory, and in measured time."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from llrflow.objective import Objective
from llrflow.program.compile import Program, compile_spec
from llrflow.program.state import Batch
from llrflow.spec.schema import Spec

PASS_COST = {"clean": 3, "perturbed": 3, "slope": 3, "input_gradient": 1, "reference": 2}
"""Forward-equivalents of what a probe answers, parameter gradient included: a pass is 1F forward and 2F backward,
a slope one more tangent pass and its 2F, a constant input gradient 1F on the pass it shares, 2F where searches use
other statistics and share none. A term that differentiates an input gradient costs more: then trust XLA's count."""

PASS_TEXT = {
    "clean": "clean pass",
    "perturbed": "perturbed pass",
    "slope": "derivative along a perturbation",
    "input_gradient": "input gradient",
    "reference": "clean input gradient, moving statistics",
}


def forward_equivalents(program: Program) -> dict[str, float]:
    """Cost of the objective and its parameter gradient by part; 1F is one forward pass of the network.

    A search of K steps is 2K F a restart, and F more a restart where iterates are compared.
    """
    parts: dict[str, float] = {}
    for made in program.passes():
        parts[PASS_TEXT[made]] = parts.get(PASS_TEXT[made], 0) + PASS_COST[made]
    for name, search in program.spec.objective.perturbations.items():
        compares = search.keep == "best" or search.restarts > 1
        parts[f"search {name} ({search.steps} steps)"] = search.restarts * (2 * search.steps + compares)
    return parts


def measure(program: Program, plain: Program, rounds: int = 7) -> dict[str, float]:
    """Median seconds of both programs' steps, taken in turn on random images, and the median of their ratios."""
    steps = {"step": _Stepper(program), "cross_entropy_step": _Stepper(plain)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, stepper in steps.items():
            times[name].append(stepper.seconds())
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["step"]) / np.array(times["cross_entropy_step"])
    return {
        **medians,
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def plain_program(spec: Spec) -> Program:
    """The same spec with nothing but the cross-entropy of clean images as its objective."""
    return compile_spec(spec.model_copy(update={"objective": Objective()}))


def plan(program: Program, spec: Spec, timed: bool) -> dict[str, Any]:
    """Everything that `llrflow plan` prints."""
    state = program.abstract_state()
    parts = forward_equivalents(program)
    total = sum(parts.values())
    step = program.lowered_step().compile()
    flops, forward = (_flops(compiled) for compiled in (step, program.lowered_forward().compile()))
    memory = step.memory_analysis()
    result = {
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(state.params))),
        "image_shape": list(program.image_shape),
        "classes": program.classes,
        "training_images": program.facts.train,
        "test_images": program.facts.test,
        "steps": program.steps,
        "batch_size": program.spec.train.batch_size,
        "devices": len(program.devices),
        "platform": program.devices.platform,
        "per_device_batch": program.spec.train.batch_size // len(program.devices),
        "forward_equivalents": parts,
        "forward_equivalents_per_step": total,
        "forward_equivalents_of_cross_entropy": PASS_COST["clean"],
        "search_steps": sum(p.steps * p.restarts for p in program.spec.objective.perturbations.values()),
        "xla_flops_per_step_and_device": flops,
        "xla_forward_equivalents": flops / forward,
        "xla_memory_bytes_per_device": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }
    return {**result, "measured": measure(program, plain_program(spec))} if timed else result


def _flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


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
