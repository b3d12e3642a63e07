"""Per-example verdicts of one attack on disk, from which an interrupted evaluation resumes.

A verdict depends on the attack, the network and the image alone, so that whatever holds verdicts of the same attack is
taken up row by row: of an evaluation that was interrupted, of a worker's share, of fewer or more images. The file holds
no times; they lie beside it, so that whoever finds the same verdicts writes the same bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.attacks.search import Findings
from llrflow.base.arrays import NotArrays, open_npz
from llrflow.base.files import open_atomic, read_regular, write_atomic

SAVE_SECONDS = 2.0
"""Longest stretch of finished work that a kill can lose."""


class Verdicts(Findings):
    """What one attack found for each of N images, on disk after every few batches."""

    def __init__(
        self,
        path: Path,
        candidates: np.ndarray,
        exhaustive: bool,
        identity: str,
        kept: np.ndarray,
        shape: tuple[int, ...],
        known: Mapping[str, np.ndarray],
        others: Iterable[Path] = (),
    ) -> None:
        """Takes up what `path` and `others` hold of `candidates` [N] if it was found by the same attack.

        `identity` says which attack that is. `known` [N] of the images without any attack is stored beside: their `ids`
        in the split, ascending, and such things as labels. `kept` are the rows, ascending, of images [H,W,C] of the
        `shape` whose perturbations are kept too.
        """
        super().__init__(candidates, exhaustive)
        self._path, self._identity, self._saved = path, identity, time.monotonic()
        self.seconds, self._saving, self._began, self.on_disk = 0.0, 0.0, None, False
        self.arrays |= known
        self.arrays["kept"] = kept
        self.arrays["delta"] = np.zeros((len(kept), *shape), np.float32)
        self.on_disk = self._take_up(path)  # whether the file holds what is here, and nothing else
        for source in others:
            self._take_up(source)

    def _take_up(self, source: Path) -> bool:
        """The verdicts in a file that are of the same attack, of candidates, and further on than those known so far.

        Returns whether the file has these, of these images, and no others.
        """
        with contextlib.suppress(NotArrays), open_npz(source) as stored:
            if str(stored["identity"]) != self._identity:
                return False
            found = {name: stored[name] for name in self.arrays}
            self._check(found)
            _, mine, theirs = np.intersect1d(self.arrays["ids"], found["ids"], True, return_indices=True)
            wanted = self.candidates[mine] & (found["tried"][theirs] > self.arrays["tried"][mine])
            wanted &= ~np.isin(mine, self.arrays["kept"]) | np.isin(theirs, found["kept"])
            mine, theirs = mine[wanted], theirs[wanted]
            for name in (*self.FIELDS, "tried"):
                self.arrays[name][mine] = found[name][theirs]
            kept = np.isin(mine, self.arrays["kept"])
            self.keep(mine[kept], found["delta"][np.searchsorted(found["kept"], theirs[kept])])
            self.on_disk = self.on_disk and not len(mine)
            share = len(mine) / max(1, np.count_nonzero(found["tried"]))
            self.seconds += share * _seconds_of(source)
            return share == 1.0 and all(np.array_equal(found[name], self.arrays[name]) for name in ("ids", "kept"))
        return False

    def _check(self, found: Mapping[str, np.ndarray]) -> None:
        """Raise NotArrays where arrays of a file are of other kinds than they are written in."""
        lengths = {"kept": len(found["kept"]), "delta": len(found["kept"])}
        for name, mine in self.arrays.items():
            shape = (lengths.get(name, len(found["ids"])), *mine.shape[1:])
            if found[name].shape != shape or found[name].dtype != mine.dtype:
                raise NotArrays(f"array {name} is {found[name].dtype}{list(found[name].shape)}")

    def record(self, ids: np.ndarray, verdict: Any) -> None:
        """As Findings, and now and then to disk."""
        super().record(ids, verdict)
        self.on_disk = False
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
        """Write the verdicts to disk, and what they took."""
        before = time.monotonic()
        write_atomic(_clock(self._path), f"{self._elapsed():.3f}\n".encode())
        with open_atomic(self._path) as file:
            np.savez(file, allow_pickle=False, identity=self._identity, **self.arrays)
        self._saved, self.on_disk = time.monotonic(), True
        self._saving = self._saved - before

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._began is None else time.monotonic() - self._began)


def _clock(path: Path) -> Path:
    """Where the seconds lie that verdicts took: of all workers together."""
    return path.with_suffix(".seconds")


def _seconds_of(path: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        return float(read_regular(_clock(path)))
    return 0.0
