"""Images a second of training steps, batch and numbers placed while the step before computes, as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from setting import DRY, NETWORKS, Box, Setting, arguments, batch_of, compiled, emit, methods

from llrflow.base.errors import line_of
from llrflow.program.compiled import functions_of

SECONDS, LEAST = 1.5, 3
"""How long a program is timed, and how many steps at least."""


class Case(NamedTuple):
    """What is timed."""

    network: str
    method: str
    precision: str
    batch: int


def waves(networks: dict[str, Setting], names: list[str]) -> Iterator[list[Case]]:
    """Cases that are compiled side by side and then timed, what matters most first: bfloat16, then the other
    precisions, then other batches."""
    for name, setting in networks.items():
        yield [Case(name, method, "bfloat16", setting.batches[0]) for method in names]
    for precision in ("tf32", "float32"):
        for name, setting in networks.items():
            yield [Case(name, method, precision, setting.batches[0]) for method in names[:2]]
    for name, setting in networks.items():
        for batch in setting.batches[1:]:
            yield [Case(name, method, "bfloat16", batch) for method in names]
    for precision in ("tf32", "float32"):
        for name, setting in networks.items():
            yield [Case(name, method, precision, setting.batches[0]) for method in names[2:]]


def prepared(case: Case, setting: Setting, objective: Any) -> Any:
    """The program of a case with its compiled step; the error where there is none."""
    try:
        program = compiled(setting, objective, case.batch, case.precision)
        return program, program.lowered_step().compile()
    except Exception as error:  # the next case may do
        return error


def images_a_second(program: Any, step: Any, setting: Setting, batch: int, dry: bool) -> tuple[float, int]:
    """(images/s, bytes of the device that this process had in use at most so far, or 0 where it does not tell)."""
    program._compiled.train = step
    examples, state = batch_of(setting, batch), program.init()
    state, metrics = program.train_step(state, examples, 0)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    state, metrics = program.train_step(state, examples, 1)
    jax.block_until_ready(metrics)
    count = 1 if dry else max(LEAST, round(SECONDS / (time.perf_counter() - began)))
    began, placed = time.perf_counter(), program.place(examples, 2)
    for number in range(count):
        before = metrics
        state, metrics = program.advance(state, placed)
        placed = program.place(examples, number + 3)
        jax.block_until_ready(before)  # as in a run two steps are under way at most
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - began) / count
    used = (program.devices.own[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return batch / seconds, used


def main(dry: bool, seconds: float) -> None:
    networks, objectives = (DRY, methods(2)) if dry else (NETWORKS, methods(10))
    box = Box(seconds)
    for wave in waves(networks, [*objectives]):
        names = ", ".join(f"{case.network} {case.method} {case.precision} batch {case.batch}" for case in wave)
        if not box.room(names):
            continue
        began = time.perf_counter()
        with ThreadPoolExecutor(len(wave)) as pool:
            made = [*pool.map(lambda c: prepared(c, networks[c.network], objectives[c.method]), wave)]
        took = time.perf_counter() - began
        for case, found in zip(wave, made, strict=True):
            row = case._asdict()
            try:
                if isinstance(found, Exception):
                    raise found
                rate, used = images_a_second(*found, networks[case.network], case.batch, dry)
            except Exception as error:  # most likely out of memory
                emit(**row, refused=line_of(error)[:160])
            else:
                emit(**row, images_per_second=rate, peak_bytes_so_far=used, compile_seconds_of_wave=took)
        made.clear()
        functions_of.cache_clear()
        box.took(time.perf_counter() - began)


if __name__ == "__main__":
    given = arguments()
    main(given.dry, given.seconds)
