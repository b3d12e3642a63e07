"""One step of training and one attack against a CPU in float32, and the three ways to repeat the steps of a search.

Signs of gradients decide a search: where a gradient is float noise its sign may differ, so a few pixels may. What is
compared is made of many, with tolerances that leave room for that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from setting import Setting, arguments, batch_of, compiled, emit, methods

import llrflow
from llrflow.attacks.network import Examples, one_device
from llrflow.attacks.program import AttackProgram
from llrflow.method.ascent import Plan
from llrflow.method.threat import Threat
from llrflow.program.compiled import functions_of

NETWORK = Setting({"type": "resnet", "widths": [16, 32], "norm": "batch"}, (16, 16, 3), 10, (32,))
SMALL = Setting({"type": "cnn", "channels": [8, 8], "dense": 16}, (8, 8, 3), 10, (8,))
THREAT = {"norm": "linf", "epsilon": "8/255"}
UPDATE = {"standard": 1e-4, "LLR-2": 2e-2}
"""How far ||update - CPU's|| may be from 0, in parts of ||CPU's||, where `update` is what a step adds to parameters."""
OBJECTIVE = {"standard": 1e-5, "LLR-2": 1e-3}
PIXELS, LOSS = 0.99, 1e-3
"""Share of pixels at which an attack must find the same, and how far its mean loss may be, in parts of it."""


def step_of(setting: Setting, method: str, count: int) -> tuple[np.ndarray, float]:
    """(what one step adds to all parameters, objective)."""
    program = compiled(setting, methods(10)[method], setting.batches[0], count=count)
    state = program.init()
    before = jax.tree.map(np.copy, program.devices.fetch(state.params))
    state, metrics = program.train_step(state, batch_of(setting, setting.batches[0]), 0)
    after = program.devices.fetch(state.params)
    update = [(a - b).ravel() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]
    return np.concatenate(update), float(program.devices.fetch(metrics)["objective"])


def attacked(setting: Setting, plan: Plan | None, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(delta [B,H,W,C], loss [B]) of PGD on a network that has not learnt anything."""
    program, batch = compiled(setting, {}, setting.batches[0]), batch_of(setting, setting.batches[0])
    state = program.devices.fetch(program.init())
    attack = llrflow.make("attack", {"type": "pgd", "steps": steps, "maximize": "cross_entropy", "stop": "never"})
    made = AttackProgram(attack, Threat.model_validate(THREAT), program.network, one_device(), plan=plan)
    x = batch.images.astype(np.float32) / 255
    examples = Examples(x, batch.labels, batch.ids, np.zeros(len(x), np.uint32))
    key = jax.random.key_data(jax.random.key(0))
    ((rows, verdict),) = made.run((state.params, state.model_state), examples, key, len(x))
    order = np.argsort(rows)
    return verdict.delta[order], verdict.loss[order]


def all_of(setting: Setting, count: int, steps: int) -> dict[str, Any]:
    """Everything that is compared with a CPU."""
    found: dict[str, Any] = {}
    for method in UPDATE:
        found[f"{method} update"], found[f"{method} objective"] = step_of(setting, method, count)
    found["delta"], found["loss"] = attacked(setting, None, steps)
    return found


def check(name: str, value: float, limit: float, least: bool = False) -> None:
    """Report a comparison; `least` where the value must not be below its limit."""
    ok = bool(value >= limit if least else value <= limit)
    emit(check=name, value=float(value), at_least=limit, ok=ok) if least else emit(
        check=name, value=float(value), at_most=limit, ok=ok
    )


def compare_attacks(name: str, ours: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    same = float(np.mean(np.abs(ours[0] - other[0]) < 1e-6))
    check(f"{name}: share of pixels that are the same", same, PIXELS, least=True)
    mean = float(np.mean(other[1]))
    check(f"{name}: mean loss, relative difference", abs(float(np.mean(ours[1])) - mean) / mean, LOSS)


def ways(setting: Setting, steps: int) -> None:
    """Scanned, written out and driven by the host: the searches of an attack, and of a step of training."""
    scanned = attacked(setting, Plan("scan", steps), steps)
    for name, plan in {"written out": Plan("unroll", steps), "driven by the host": Plan("host", 1)}.items():
        compare_attacks(f"PGD scanned against {name}", attacked(setting, plan, steps), scanned)
    found = []
    for by in ("scan", "unroll"):
        functions_of.cache_clear()
        with mock.patch("llrflow.program.compiled.plan_steps", lambda steps, platform, inside, by=by: Plan(by, steps)):
            found.append(step_of(setting, "LLR-2", 1)[0])
    functions_of.cache_clear()
    difference = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1])
    check("LLR-2 step scanned against written out: update", difference, UPDATE["LLR-2"])


def main(out: Path, dry: bool, seconds: float, child: Path | None) -> None:
    setting, steps = (SMALL, 3) if dry else (NETWORK, 10)
    if child is not None:  # two devices: no sum of the reference is in the order of ours
        np.savez(child, **all_of(setting, 2, steps))
        return
    began, reference = time.monotonic(), out / "cpu.npz"
    command = [sys.executable, __file__, "--out", str(out), "--child", str(reference), *(["--dry"] if dry else [])]
    with subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as process:
        ours = all_of(setting, 1, steps)
        ways(setting, steps)
        try:
            process.wait(max(1.0, seconds - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            process.kill()
            emit(cut="comparison with a CPU: that had not ended")
            return
    with np.load(reference) as other:
        for method, limit in UPDATE.items():
            theirs = other[f"{method} update"]
            difference = np.linalg.norm(ours[f"{method} update"] - theirs) / np.linalg.norm(theirs)
            check(f"{method} step against CPU: update", difference, limit)
            objective = float(other[f"{method} objective"])
            relative = abs(ours[f"{method} objective"] - objective) / abs(objective)
            check(f"{method} step against CPU: objective", relative, OBJECTIVE[method])
        compare_attacks("PGD against CPU", (ours["delta"], ours["loss"]), (other["delta"], other["loss"]))


if __name__ == "__main__":
    given = arguments()
    main(given.out, given.dry, given.seconds, given.child)
