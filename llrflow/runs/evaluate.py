"""Evaluation: nominal and robust accuracy of one checkpoint on every test image."""

from __future__ import annotations

import contextlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from llrflow.ascent import Search
from llrflow.attacks.run import Examples, Verdict, better
from llrflow.data.batches import padded_chunks
from llrflow.data.resident import Split
from llrflow.errors import NonFiniteError
from llrflow.files import open_atomic
from llrflow.keys import purpose_key
from llrflow.program.compile import Program
from llrflow.program.state import TrainState
from llrflow.progress import progress
from llrflow.registry import make
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.records import AttackRecord, Distribution, EvaluationRecord, Proportion, RunFolder, versions

RANDOM = "random"
"""Name of the control: uniform noise, whose linearity stands beside that of the attacks."""

SAVE_SECONDS = 2.0
"""Longest stretch of attacking that a kill can lose."""


class Verdicts:
    """What one attack found for each of the N test images, on disk after every few batches."""

    FIELDS = {"tried": np.int32, "wrong": bool, "value": np.float32, "loss": np.float32, "distance": np.float32,
              "linearity": np.float32}  # fmt: skip

    def __init__(self, path: Path, n: int, identity: str) -> None:
        """Picks up what `path` holds if it was found by the same attack: `identity` says which that is."""
        self._path, self._identity, self._saved, self.seconds = path, identity, time.monotonic(), 0.0
        self.arrays: dict[str, Any] = {name: np.zeros(n, dtype) for name, dtype in self.FIELDS.items()}
        absent_or_damaged = contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile)  # then begin anew
        with absent_or_damaged, path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity:
                self.arrays, self.seconds = {name: stored[name] for name in self.FIELDS}, float(stored["seconds"])

    def record(self, ids: np.ndarray, verdict: Verdict) -> None:
        """Keep per example the better of what is known and a new restart's verdict."""
        known = Verdict(None, *(self.arrays[name][ids] for name in Verdict._fields[1:]))
        take = better(verdict, known) | (self.arrays["tried"][ids] == 0)
        for name in Verdict._fields[1:]:
            self.arrays[name][ids] = np.where(take, getattr(verdict, name), getattr(known, name))
        self.arrays["tried"][ids] += 1
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the verdicts to disk."""
        with open_atomic(self._path) as file:
            np.savez(file, allow_pickle=False, identity=self._identity, seconds=np.float64(self.seconds), **self.arrays)
        self._saved = time.monotonic()


class Evaluator:
    """Attacks one checkpoint's network; every intermediate verdict is kept on disk and picked up again."""

    def __init__(
        self,
        program: Program,
        state: TrainState,
        split: Split,
        folder: RunFolder,
        spec_hash: str,
        stop: StopRequest,
        quiet: bool = False,
        label: str = "",
    ) -> None:
        """`label` keeps an evaluation with other attacks than the spec's apart: evaluation/<step><label>.json."""
        spec, devices = program.spec, program.devices
        self.program, self.split, self.folder, self.spec_hash = program, split, folder, spec_hash
        self.label = label
        self.stop, self.quiet, self.step, self.n = stop, quiet, int(state.step), len(split.labels)
        self.parameters: Literal["raw", "ema"] = program.evaluated_parameters
        params = state.ema if self.parameters == "ema" else state.params
        self._variables = devices.replicate((params, state.model_state))
        self._batch_size = -(-spec.evaluate.batch_size // len(devices)) * len(devices)
        folder.evaluation.mkdir(exist_ok=True)

    def evaluate(self) -> EvaluationRecord:
        """Run every attack of the spec and write evaluation/<step><label>.json. Raises Interrupted between batches."""
        spec = self.program.spec
        correct = self._correct()
        everything = {**spec.evaluate.attacks, RANDOM: make("attack", "noise")}
        verdicts = {name: self._attack(name, attack, correct) for name, attack in everything.items()}
        standing = correct.copy()
        attacks: dict[str, AttackRecord] = {}
        for name, attack in spec.evaluate.attacks.items():
            robust = correct & ~verdicts[name].arrays["wrong"]
            standing &= robust
            share = proportion(robust)
            attacks[name] = AttackRecord(
                **dict(share),
                attack=attack.model_dump(),
                kills=int(correct.sum() - robust.sum()),
                seconds=round(verdicts[name].seconds, 3),
            )
        record = EvaluationRecord(
            spec_hash=self.spec_hash,
            checkpoint=self.step,
            parameters=self.parameters,
            threat=spec.threat.model_dump(),
            n=self.n,
            nominal=proportion(correct),
            attacks=attacks,
            worst_case=proportion(standing),
            gamma={name: distribution(v.arrays["linearity"][correct]) for name, v in verdicts.items() if correct.any()},
            versions=versions(),
        )
        record.write(self.folder.evaluation / f"{self.step}{self.label}.json")
        return record

    def _correct(self) -> np.ndarray:
        correct = np.zeros(self.n, bool)
        for ids, mask in padded_chunks(np.arange(self.n), self._batch_size):
            logits = self.program.logits(self._variables, self._images(ids))
            if not np.isfinite(logits).all():
                raise NonFiniteError(f"the network of checkpoint {self.step} gives logits that are not finite")
            correct[ids[mask]] = (logits.argmax(-1) == self.split.labels[ids])[mask]
        return correct

    def _attack(self, name: str, attack: Search, correct: np.ndarray) -> Verdicts:
        devices, program = self.program.devices, self.program.attack(attack)
        spec = self.program.spec
        found_by = [attack.model_dump(), spec.threat.model_dump(), self.parameters, self.split.fingerprint]
        found_by += spec.plugin_identities()
        path = self.folder.evaluation / f"{self.step}{self.label}.{name}.npz"
        verdicts = Verdicts(path, self.n, json.dumps(found_by, sort_keys=True))
        tried, wrong = verdicts.arrays["tried"], verdicts.arrays["wrong"]
        purpose = purpose_key(self.program.spec.seed, f"attack {name}")
        shared = devices.replicate((np.asarray(jax.random.key_data(purpose)), program.numbers))
        n, count = int(correct.sum()), attack.restarts
        with progress(f"attack {name}", n * count, self.quiet) as report:
            for restart in range(count):
                pending = np.flatnonzero(correct & ~wrong & (tried <= restart))
                restart_input = devices.replicate(np.uint32(restart))
                for ids, mask in padded_chunks(pending, self._batch_size):
                    began = time.monotonic()
                    batch = Examples(self._images(ids), self.split.labels[ids], ids.astype(np.int32))
                    key, inputs = shared
                    verdict = program.run(self._variables, devices.shard(batch), key, restart_input, inputs)
                    verdict = devices.gather(verdict)
                    self.program.spec.threat.check(verdict.delta, batch.x)
                    verdicts.seconds += time.monotonic() - began
                    verdicts.record(ids[mask], Verdict(None, *(field[mask] for field in verdict[1:])))
                    robust = int((correct & ~wrong).sum())
                    done = int(np.where(wrong, count, tried)[correct].sum())
                    report(done, f"{robust / self.n:.1%} of {self.n} still correct")
                    if self.stop.signum is not None:
                        verdicts.save()
                        raise Interrupted(
                            self.stop.signum, "evaluation stopped and saved; run the same command to continue"
                        )
        verdicts.save()
        return verdicts

    def _images(self, ids: np.ndarray) -> np.ndarray:
        return self.split.images[ids].astype(np.float32) / np.float32(255.0)


def proportion(hits: np.ndarray) -> Proportion:
    """Share of True values with its Wilson 95 % interval (Wilson 1927)."""
    from scipy.stats import binomtest

    correct, n = int(hits.sum()), len(hits)
    low, high = binomtest(correct, n).proportion_ci(0.95, "wilson")
    return Proportion(accuracy=correct / n, correct=correct, n=n, interval=(float(low), float(high)))


def distribution(values: np.ndarray) -> Distribution:
    """Mean and quantiles."""
    quantiles = {str(q): float(np.quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)}
    return Distribution(n=len(values), mean=float(values.mean()), quantiles=quantiles)
