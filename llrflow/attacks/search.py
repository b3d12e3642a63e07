"""All runs of an attack on many examples: which are still needed, and what has been found so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llrflow.attacks.network import Examples
from llrflow.attacks.program import AttackProgram, Verdict
from llrflow.data.batches import padded_chunks
from llrflow.method.ascent import outranks

WINDOW = 16
"""Batches in flight at once: examples that settle leave them, and the rest is packed into fewer."""


class Findings:
    """What one attack has found so far for each of N examples, run after run."""

    FIELDS = {"wrong": bool, "predicted": np.int32, "value": np.float32, "loss": np.float32, "distance": np.float32,
              "linearity": np.float32, "queries": np.int32, "gradients": np.int32}  # fmt: skip
    SPENT = ("queries", "gradients")
    """Fields that add up over runs."""

    seconds = 0.0
    """Wall time of the search, where somebody takes it."""

    def __init__(self, candidates: np.ndarray, exhaustive: bool) -> None:
        """`candidates` [N] are to be attacked, until misclassified or, when `exhaustive`, in every run."""
        n = len(candidates)
        self.candidates, self.exhaustive = candidates, exhaustive
        self.arrays: dict[str, Any] = {name: np.zeros(n, dtype) for name, dtype in self.FIELDS.items()}
        self.arrays["predicted"] -= 1  # of no class yet
        self.arrays["tried"] = np.zeros(n, np.int32)

    def pending(self, runs: int) -> np.ndarray:
        """Examples with runs to come, as ids."""
        open_ = self.candidates & (self.arrays["tried"] < runs)
        return np.flatnonzero(open_ if self.exhaustive else open_ & ~self.arrays["wrong"])

    def record(self, ids: np.ndarray, verdict: Verdict) -> None:
        """The verdicts of one more run of examples `ids`; each keeps its better one, and pays for both."""
        known = {name: self.arrays[name][ids] for name in self.FIELDS}
        take = outranks(verdict.wrong, verdict.value, known["wrong"], known["value"]) | (self.arrays["tried"][ids] == 0)
        for name in self.FIELDS:
            found = getattr(verdict, name)
            self.arrays[name][ids] = known[name] + found if name in self.SPENT else np.where(take, found, known[name])
        self.arrays["tried"][ids] += 1
        self.keep(ids[take], verdict.delta[take])

    def keep(self, ids: np.ndarray, delta: np.ndarray) -> None:
        """Called with the perturbations that are now the best of their examples."""


class InMemory(Findings):
    """Findings that keep the perturbations themselves."""

    def __init__(self, candidates: np.ndarray, exhaustive: bool, delta: np.ndarray) -> None:
        """`delta` [N,H,W,C], zeros, is filled."""
        super().__init__(candidates, exhaustive)
        self.delta = delta

    def keep(self, ids: np.ndarray, delta: np.ndarray) -> None:
        """Keep them all."""
        self.delta[ids] = delta


def search(
    program: AttackProgram,
    findings: Findings,
    load: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    variables: Any,
    key: Any,
    classes: int,
    size: int,
    surrogate: Any = None,
    report: Callable[[], None] = lambda: None,
    epsilon: np.ndarray | None = None,
    names: np.ndarray | None = None,
) -> None:
    """Every run of an attack that is still needed, in batches of `size`, with `load(ids)` -> (images, labels).

    `epsilon` [N] is the radius of each example's ball, where it is not the threat's. `names` [N] are the numbers that
    key each example's randomness, by default its row.

    When fewer examples are left than fill a batch, several of their runs share one: they are recorded in the order
    of the runs, as if one had followed the other, so that the outcome does not depend on `size`.
    """
    runs = program.attack.runs(classes)
    while len(pending := findings.pending(runs)):
        tried = findings.arrays["tried"][pending]
        first = int(tried.min())
        now = pending[tried == first]
        together = min(runs - first, max(1, size // len(now)))
        landed = []
        for window, mask in padded_chunks(np.tile(now, together), WINDOW * size):
            ids = window[mask]
            x, y = load(ids)
            run = first + np.arange(len(ids), dtype=np.uint32) // np.uint32(len(now))  # one window, where together > 1
            runs_of = run if together > 1 else np.full_like(run, first)
            keyed = ids if names is None else names[ids]
            examples = Examples(x, y, keyed.astype(np.int32), runs_of, None if epsilon is None else epsilon[ids])
            for rows, verdict in program.run(variables, examples, key, size, surrogate, report):
                if together == 1:
                    findings.record(ids[rows], verdict)
                else:
                    landed.append((ids[rows], run[rows], verdict))
            report()
        _record_in_order(findings, landed, range(first, first + together))


def _record_in_order(findings: Findings, landed: list[tuple[np.ndarray, np.ndarray, Verdict]], runs: range) -> None:
    if not landed:
        return
    ids, of_run = (np.concatenate([part[i] for part in landed]) for i in (0, 1))
    verdict = Verdict(*(np.concatenate(fields) for fields in zip(*(part[2] for part in landed), strict=True)))
    for run in runs:
        chosen = (of_run == run) & (findings.exhaustive | ~findings.arrays["wrong"][ids])
        findings.record(ids[chosen], Verdict(*(field[chosen] for field in verdict)))
