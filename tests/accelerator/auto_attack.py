"""Seconds that each stage of AutoAttack takes for 1,000 images that stay correct.

Weights are random, labels are what the network predicts, and the radius is so small that the images stay: then every
one is attacked to the end, as a robust one would be. A stage makes one run (target) of some of its steps, compiled
before; its time is multiplied up to all of them, and says so. Of a trained network some images fall early, and the
whole takes less.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from setting import DRY, NETWORKS, Box, arguments, batch_of, compiled, emit

import llrflow
from llrflow.attacks.network import Examples, one_device
from llrflow.attacks.program import AttackProgram
from llrflow.base.errors import line_of
from llrflow.method.threat import Threat

STEPS = {"apgd_ce": 20, "apgd_t": 20, "fab_t": 20, "square": 200}
THREAT = {"norm": "linf", "epsilon": 1e-6}


def examples_of(program: Any, variables: Any, setting: Any, size: int) -> Examples:
    """Made-up images with the classes that the network predicts."""
    batch = batch_of(setting, size)
    x = batch.images.astype(np.float32) / 255
    y = np.asarray(jax.jit(lambda v, images: jax.numpy.argmax(program.network.predict(v, images), -1))(variables, x))
    return Examples(x, y.astype(np.int32), batch.ids, np.zeros(size, np.uint32))


def main(dry: bool, seconds: float) -> None:
    name, size = ("CNN", 4) if dry else ("WRN-28-10", 256)
    setting, box = (DRY if dry else NETWORKS)[name], Box(seconds)
    program = compiled(setting, {}, size)
    state = program.devices.fetch(program.init())
    variables = jax.device_put((state.params, state.model_state))
    threat, key = Threat.model_validate(THREAT), jax.random.key_data(jax.random.key(0))
    examples = examples_of(program, variables, setting, size)
    one = jax.tree.map(lambda field: field[0], examples)
    for stage, whole in llrflow.make("attack", "auto_attack").stages(threat, setting.classes).items():
        if not box.room(f"AutoAttack's {stage}"):
            continue
        field = "queries" if stage == "square" else "steps"
        made = 2 if dry else STEPS[stage]
        began = time.perf_counter()
        try:
            attack = AttackProgram(whole.model_copy(update={field: made}), threat, program.network, one_device())
            attack.prepare(size, variables, variables, one)
            _ = [*attack.run(variables, examples, key, size)]  # what is left to be done once is done here
            ready = time.perf_counter()
            ((_, verdict),) = attack.run(variables, examples, key, size)
            took = time.perf_counter() - ready
        except Exception as error:
            emit(network=name, stage=stage, refused=line_of(error)[:160])
        else:
            runs = whole.runs(setting.classes)
            emit(
                network=name,
                stage=stage,
                seconds_per_1000=took * 1000 / size * whole.length / made * runs,
                timed=f"{made} of {whole.length} steps of one of {runs} run(s) on {size} images",
                passes=whole.length * runs * whole.step_cost.forwards,
                standing=int(np.sum(~verdict.wrong)),
            )
        box.took(time.perf_counter() - began)


if __name__ == "__main__":
    given = arguments()
    main(given.dry, given.seconds)
