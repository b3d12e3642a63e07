"""Checkpoints: Orbax steps with a sha256 manifest, because Orbax restores flipped bytes without a word."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llrflow.base.arrays import open_npz
from llrflow.base.errors import CheckpointError
from llrflow.base.files import TEMPORARY, open_atomic, read_regular, remove_temporaries, sha256_file, write_atomic
from llrflow.base.sealed import digest_of
from llrflow.base.validation import listing
from llrflow.program.state import TrainState

STATISTICS = "statistics.npz"
"""Beside Orbax's files of a step: BatchNorm statistics of the averaged parameters, once somebody asked for them."""


class Checkpoints:
    """The checkpoints of one run. A step counts once its manifest is on disk; anything else is debris."""

    def __init__(self, directory: Path, keep: int = 1, spec_hash: str | None = None, taken_over: int = -1) -> None:
        """`spec_hash` is that of the run: a checkpoint of another one that was put here counts as damaged, but for
        those up to the step `taken_over`."""
        import orbax.checkpoint as ocp

        self.directory = directory.absolute()
        self._manifests = self.directory / "manifests"
        self._ocp = ocp
        self._keep, self._spec_hash, self._taken_over = keep, spec_hash, taken_over
        self.protected: int | None = None
        """A step that is kept however many are newer."""
        self.on_save: Callable[[], None] | None = None
        """Called after each save."""

    def save(self, state: TrainState, spec_hash: str) -> None:
        """Save an unreplicated state (NumPy leaves) under its step; returns when all of it is on disk."""
        step = int(state.step)
        with _silent_orbax(), self._manager() as manager:
            manager.save(step, args=self._ocp.args.StandardSave(state._asdict()))
            manager.wait_until_finished()
        self._manifests.mkdir(exist_ok=True)
        files = {str(p.relative_to(self._step(step))): sha256_file(p) for p in self._files(step)}
        manifest = {"step": step, "spec_hash": spec_hash, "structure": _structure(state), "files": files}
        self._seal(manifest)
        self._drop_stale()
        if self.on_save is not None:
            self.on_save()

    def steps(self) -> list[int]:
        """Steps with a manifest, oldest first."""
        return sorted(int(p.stem) for p in self._manifests.glob("*.json") if re.fullmatch("[0-9]+", p.stem))

    def newest_intact(self, report: Callable[[str], None]) -> int | None:
        """The newest step whose files are what was written; each damaged one is reported on the way."""
        for step in self.steps()[::-1]:
            problem = self.problem(step)
            if problem is None:
                return step
            report(f"checkpoint {step} is damaged: {problem}")
        return None

    def restore(self, target: TrainState, step: int) -> TrainState:
        """One intact checkpoint as NumPy arrays shaped like `target`.

        Raises CheckpointError when it is missing or damaged, or when its tree is not the target's.
        """
        if problem := self.problem(step):
            fix = f"choose from {listing(self.steps())}" if self.steps() else "train first"
            raise CheckpointError(str(self._step(step)), problem, fix)
        saved, wanted = self._manifest(step)["structure"], _structure(target)
        for path in sorted({*saved, *wanted}):
            if saved.get(path) != wanted.get(path):
                raise CheckpointError(
                    str(self._step(step)),
                    f"holds {path} as {saved.get(path, 'nothing')}, the spec wants {wanted.get(path, 'nothing')}",
                    "use the spec that made the checkpoint",
                )
        try:
            with self._manager() as manager:
                restored = manager.restore(step, args=self._ocp.args.StandardRestore(target._asdict()))
        except RecursionError:  # Orbax reads the metadata of all steps
            others = listing(other for other in self.steps() if self.problem(other))
            got = f"holds damaged checkpoints that keep step {step} from being read: {others}"
            raise CheckpointError(str(self.directory), got, "remove those") from None
        return TrainState(**jax.tree.map(np.asarray, restored))

    def keep_statistics(self, step: int, model_state: Any, images: int) -> None:
        """Keep BatchNorm statistics of the averaged parameters with an intact checkpoint, sealed by its manifest.

        `images` is the number of training images that they were estimated from.
        """
        path = self._step(step) / STATISTICS
        arrays = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(model_state)}
        with open_atomic(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
        manifest = self._manifest(step)
        files = {**manifest["files"], STATISTICS: sha256_file(path)}
        self._seal({**manifest, "files": files, "statistics_images": images})

    def statistics(self, step: int, target: Any) -> tuple[Any, int] | None:
        """What `keep_statistics` left with an intact checkpoint, as a tree like `target`, and the number of images."""
        images = self._manifest(step).get("statistics_images")
        if images is None:
            return None
        with open_npz(self._step(step) / STATISTICS) as kept:
            found = jax.tree_util.tree_map_with_path(lambda at, leaf: kept[jax.tree_util.keystr(at)], target)
        return found, images

    def problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, or None."""
        try:
            manifest = self._manifest(step)
        except (OSError, ValueError):
            return "no readable manifest"
        if manifest["step"] != step:
            return f"its manifest is that of step {manifest['step']}"
        if step > self._taken_over and self._spec_hash not in (None, manifest["spec_hash"]):
            return f"it is of another spec's run (hash {manifest['spec_hash']}, this one has {self._spec_hash})"
        found = {str(p.relative_to(self._step(step))) for p in self._files(step)}
        if missing := sorted(set(manifest["files"]) - found):
            return f"{missing[0]} is missing"
        for name, digest in manifest["files"].items():
            try:
                if sha256_file(self._step(step) / name) != digest:
                    return f"{name} has changed"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
        return None

    def copy_to(self, other: Checkpoints, step: int) -> None:
        """Put one of these among others, linked where the file system can; it becomes theirs.

        Raises FileNotFoundError where there is none, ValueError where its manifest is damaged.
        """
        manifest = self._manifest(step)
        other._drop(step)
        shutil.copytree(self._step(step), other._step(step), copy_function=_link)
        other._manifests.mkdir(exist_ok=True)
        other._seal({**manifest, "spec_hash": other._spec_hash or manifest["spec_hash"]})
        other._drop_stale()

    def discard_after(self, step: int) -> None:
        """Remove every checkpoint, finished or not, of a later step: training will make them again."""
        for path in self.directory.iterdir() if self.directory.exists() else ():
            number = path.name.split(".")[0]
            if number.isdigit() and int(number) > step:
                shutil.rmtree(path)
        for later in [s for s in self.steps() if s > step]:
            self._drop(later)

    def clean(self) -> None:
        """Remove what a kill left: steps without a manifest, manifests without a step, files that were begun."""
        kept = set(self.steps())
        for path in self.directory.iterdir() if self.directory.exists() else ():
            number = path.name.split(".")[0]
            if path.is_dir() and number.isdigit() and (path.name != number or int(number) not in kept):
                shutil.rmtree(path, ignore_errors=True)
        for step in sorted(kept):
            if step < max(kept) and not self._step(step).exists():  # the newest is told as damaged
                self._drop(step)
            remove_temporaries(self._step(step) / STATISTICS)
        for left in self._manifests.glob(f".*.json.{TEMPORARY}"):
            left.unlink(missing_ok=True)

    def _seal(self, manifest: dict[str, Any]) -> None:
        sealed = {"sha256": digest_of(manifest), "manifest": manifest}
        write_atomic(self._manifests / f"{manifest['step']}.json", json.dumps(sealed, indent=1).encode())

    def _manifest(self, step: int) -> dict[str, Any]:
        """Raises OSError and ValueError where there is none as it was written."""
        try:
            sealed = json.loads(read_regular(self._manifests / f"{step}.json"))
        except RecursionError:
            raise ValueError("the manifest is nested too deeply") from None
        if not isinstance(sealed, dict) or sealed.get("sha256") != digest_of(sealed.get("manifest")):
            raise ValueError("the manifest has changed")
        return sealed["manifest"]

    def _manager(self) -> Any:
        # Retention is ours: Orbax would delete a step before its successor's manifest is written.
        alone = self._ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # Orbax would wait for the other processes, which save nothing
            mine = jax.process_index()
            alone = self._ocp.options.MultiprocessingOptions(primary_host=mine, active_processes={mine})
        self.directory.mkdir(parents=True, exist_ok=True)
        options = self._ocp.CheckpointManagerOptions(
            create=False, enable_async_checkpointing=False, multiprocessing_options=alone
        )
        return self._ocp.CheckpointManager(self.directory, options=options)

    def _step(self, step: int) -> Path:
        return self.directory / str(step)

    def _files(self, step: int) -> list[Path]:
        return sorted(p for p in self._step(step).rglob("*") if p.is_file())

    def _drop_stale(self) -> None:
        for stale in self.steps()[: -self._keep]:
            if stale != self.protected:
                self._drop(stale)

    def _drop(self, step: int) -> None:
        (self._manifests / f"{step}.json").unlink(missing_ok=True)
        shutil.rmtree(self._step(step), ignore_errors=True)


@contextmanager
def _silent_orbax() -> Iterator[None]:
    """Without the pages that Orbax logs of an error which it raises as well."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _link(source: str, target: str) -> None:
    """A second name of a file that is never written again, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _structure(state: TrainState) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
