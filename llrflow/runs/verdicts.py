"""Per-example verdicts of one attack on disk, from which an interrupted evaluation resumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.attacks.search import Findings
from llrflow.base.files import NOT_NPZ, open_atomic

SAVE_SECONDS = 2.0
"""Longest stretch of finished work that a kill can lose."""


class Verdicts(Findings):
    """What one attack found for each of the N test images, on disk after every few batches."""

    def __init__(
        self,
        path: Path,
        candidates: np.ndarray,
        exhaustive: bool,
        identity: str,
        kept: np.ndarray,
        shape: tuple[int, ...],
        known: Mapping[str, np.ndarray],
    ) -> None:
        """Picks up what `path` holds if it was found by the same attack: `identity` says which that is.

        `known` [N] of the images without any attack, such as their labels, is stored beside. `kept` are the ids,
        ascending, of images [H,W,C] of the `shape` whose perturbations are kept too.
        """
        super().__init__(candidates, exhaustive)
        self._path, self._identity, self._saved = path, identity, time.monotonic()
        self.seconds, self._saving, self._began = 0.0, 0.0, None
        self.arrays |= known
        self.arrays["kept"] = kept
        self.arrays["delta"] = np.zeros((len(kept), *shape), np.float32)
        absent_or_damaged = contextlib.suppress(*NOT_NPZ)  # then begin anew
        with absent_or_damaged, path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity and np.array_equal(stored["kept"], kept):
                self.arrays, self.seconds = {name: stored[name] for name in self.arrays}, float(stored["seconds"])

    def record(self, ids: np.ndarray, verdict: Any) -> None:
        """As Findings, and now and then to disk."""
        super().record(ids, verdict)
        if time.monotonic() - self._saved > max(SAVE_SECONDS, 10 * self._saving):
            self.save()

    def keep(self, ids: np.ndarray, delta: np.ndarray) -> None:
        """Keep perturbations where they are wanted."""
        wanted = np.isin(ids, self.arrays["kept"])
        self.arrays["delta"][np.searchsorted(self.arrays["kept"], ids[wanted])] = delta[wanted]

    def perturbations(self, ids: np.ndarray) -> np.ndarray:
        """Those of images that are kept, [len(ids),H,W,C]; zeros where no attack has been made."""
        return self.arrays["delta"][np.searchsorted(self.arrays["kept"], ids)]

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to `seconds`, also for what is saved while it runs."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began, self.seconds = None, self._elapsed()

    def save(self) -> None:
        """Write the verdicts to disk."""
        before = time.monotonic()
        with open_atomic(self._path) as file:
            seconds = np.float64(self._elapsed())
            np.savez(file, allow_pickle=False, identity=self._identity, seconds=seconds, **self.arrays)
        self._saved = time.monotonic()
        self._saving = self._saved - before

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._began is None else time.monotonic() - self._began)
