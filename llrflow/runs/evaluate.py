"""Evaluation: nominal and robust accuracy of one checkpoint, on every test image or a random part of them."""

from __future__ import annotations

import contextlib
import datetime
import glob
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.masking import TRIALS, Flag, find_flags
from llrflow.attacks.memory import fitting_batch
from llrflow.attacks.network import example_of
from llrflow.attacks.search import search
from llrflow.attacks.studies import Study
from llrflow.attacks.trial_attacks import Subject
from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import write_atomic
from llrflow.base.progress import progress, say
from llrflow.base.sealed import sealed
from llrflow.data.split import Part, Split
from llrflow.method.keys import purpose_key
from llrflow.method.threat import Threat
from llrflow.program.compile import Program
from llrflow.program.state import TrainState
from llrflow.runs.adversarial import write_adversarial, write_shown
from llrflow.runs.certificate import RANDOM, Attacked, attacked, certified
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.pictures import draw_surfaces
from llrflow.runs.predictions import Predictions, spread
from llrflow.runs.records import EvaluationRecord, FlagRecord, Images, OtherData, SubsetRecord, versions, written
from llrflow.runs.sealed import read_record, read_sealed
from llrflow.runs.summaries import cost_and_yield, stage_record
from llrflow.runs.surrogates import Surrogate
from llrflow.runs.verdicts import Verdicts
from llrflow.spec.threats import UnderThreat

SHARES = "shares"
"""Folder, beside the verdicts, of those that workers found for their shares of the images."""


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
        export: bool = False,
        surrogates: Mapping[str, Surrogate] | None = None,
        statistics_images: int | None = None,
        images: Images = "test",
        data: OtherData | None = None,
        unwritable: str | None = None,
    ) -> None:
        """`label` keeps an evaluation with other attacks than the spec's apart: evaluation/<step><label>.json.

        So does `data`, which says what `split` is if not the spec's test split.

        `export` also writes the images that each attack found. `surrogates` holds what each transfer attack searches
        on, by its name. `statistics_images` is on record: what `state` has statistics from, if they are no longer those
        of training. `images` says which those of `split` are. `unwritable` says why nothing can be written in the
        folder, where that is so: then what it holds is given, and all else is a SpecError.
        """
        subset = program.spec.evaluate.images
        self._ids = np.arange(len(split)) if subset is None else subset.ids(split)
        self._whole, self._share = split, None  # of a worker: which images are its own [N]
        split = split if len(self._ids) == len(split) else Part(split, self._ids)
        self.program, self.split, self.spec_hash = program, split, spec_hash
        self.label, self.export, self._surrogates = label + (data.label if data else ""), export, surrogates or {}
        self.stop, self.quiet, self.step = stop, quiet, int(state.step)
        self._predicted = Predictions(program, state, split)
        self._fitting = self._predicted.batch_size
        self._statistics_images, self._data = statistics_images, data
        self._versions = versions()
        self._images: Images = images
        self.folder, self._place, self._unwritable = folder, folder.evaluations_of(images), unwritable
        if unwritable is None:
            self._place.mkdir(exist_ok=True)

    def evaluate(self) -> EvaluationRecord:
        """Run every attack of the spec and write evaluation/<step><label>.json. Raises Interrupted between batches."""
        block, began = self.program.spec.evaluate, datetime.datetime.now(datetime.UTC)
        identity = self._identity(block.model_dump(), [surrogate.identity for surrogate in self._surrogates.values()])
        record = None if self.export else self._known(identity)
        if record is None:
            self._require_writable()
            record = self._evaluate(identity, began.isoformat(timespec="seconds"))
            record.write(self._path("json"))
        for study in (block.strength, block.linearity, block.surface):
            if study is not None and record.nominal.correct:
                self._study(study)
        return record

    def attack_share(self, index: int, of: int) -> None:
        """Only make the attacks, on every `of`-th correct image from number `index` on, for `evaluate` to take up.

        Their verdicts lie in evaluation/shares/<index>-of-<of>/. Raises Interrupted between batches.
        """
        share = np.zeros(self._predicted.n, bool)
        share[np.flatnonzero(self._predicted.correct)[index::of]] = True
        self._share, self._place = share, self._place / SHARES / f"{index}-of-{of}"
        self._place.mkdir(parents=True, exist_ok=True)
        self._attacked(share)

    def drop_shares(self) -> None:
        """Delete what workers found for this evaluation, which has taken it up."""
        top = self.folder.evaluations_of(self._images) / SHARES
        for path in top.glob(f"*/{self.step}{glob.escape(self.label)}.*"):
            path.unlink(missing_ok=True)
        for place in (*top.glob("*"), top):
            with contextlib.suppress(OSError):  # of another evaluation, or there is none
                place.rmdir()

    def _path(self, name: str) -> Path:
        """evaluation/<step><label>.<name>."""
        return self._place / f"{self.step}{self.label}.{name}"

    def _identity(self, *parts: Any, of: Split | None = None, threat: Threat | None = None) -> str:
        """A hash over `parts` and all else that decides what an attack finds: on disk, what has it is taken over.

        It is of the images of a split, by default of those that are evaluated, and of a threat, by default the spec's.
        """
        spec, split = self.program.spec, of or self.split
        packages = [self._versions[package] for package in ("llrflow", "jax", "jaxlib")]
        packages.append(self.program.devices.platform)
        model = {"type": spec.model.label(), **spec.model.model_dump(exclude={"start"})}
        shared = [(threat or spec.threat).model_dump(), model, spec.seed, self._predicted.sha256, split.fingerprint]
        text = json.dumps([*parts, *shared, *spec.plugin_identities(), *packages], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _require_writable(self) -> None:
        """Raise SpecError, before anything is attacked, where nobody could keep what is found."""
        if self._unwritable is not None:
            got = f"cannot be written: {self._unwritable}, and what is asked for is not in it"
            raise SpecError(str(self.folder.path), got, "make it writable, or copy it and name the copy")

    def _known(self, identity: str) -> EvaluationRecord | None:
        """The record on disk, if it is that of this very evaluation."""
        try:
            record = read_record(EvaluationRecord, self._path("json"), "")
        except (FileNotFoundError, CheckpointError):  # what is damaged is made again, from the verdicts
            return None
        return record if record.identity == identity else None

    def _evaluate(self, identity: str, started: str) -> EvaluationRecord:
        spec, predicted = self.program.spec, self._predicted
        made = self._attacked(predicted.correct)
        if predicted.correct.any():
            found = {turn.name: turn.found for within in made for turn in within.turns}
            write_shown(self._path("npz"), predicted, self._ids, found)
        flags = [flag for within in made for flag in self._flags(within)]
        names, situations = self.split.dataset.class_names, (predicted.classes["label"], predicted.classes["clean"])
        return EvaluationRecord(
            identity=identity,
            spec_hash=self.spec_hash,
            checkpoint=self.step,
            network_sha256=predicted.sha256,
            parameters=predicted.parameters,
            products="float32",
            statistics_images=self._statistics_images,
            images=self._images,
            corrupt=self.split.corrupt_names(),
            subset=self._subset(),
            ids_sha256=hashlib.sha256(f"{self.split.fingerprint} {predicted.n}".encode()).hexdigest(),
            data=self._data,
            flags={flag.name: FlagRecord(**flag._asdict()) for flag in flags},
            started=started,
            versions=self._versions,
            **certified(spec.evaluate, spec.threat, names, *situations, made),
        )

    def _attacked(self, correct: np.ndarray) -> list[Attacked]:
        """Everything that is attacked, on images that are `correct` [N]."""
        spec = self.program.spec
        return [
            attacked(under, spec.evaluate.cascade, self.program.classes, correct, partial(self._attack, under))
            for under in spec.evaluate.by_threat(spec.threat)
        ]

    def _subset(self) -> SubsetRecord | None:
        """How the images were drawn, unless they are all."""
        drawn, of = self.program.spec.evaluate.images, len(self._whole)
        if drawn is None or self._predicted.n == of:
            return None
        return SubsetRecord(of=of, seed=drawn.seed, stratified=drawn.stratified)

    def _study(self, study: Study) -> None:
        """Write evaluation/<step>.<study>.json, unless it is there from the same study."""
        path, spec, identity = self._path(f"{study.title}.json"), self.program.spec, self._identity(study.model_dump())
        try:
            found = read_sealed(path, "")
        except (FileNotFoundError, CheckpointError):
            found = None
        if not isinstance(found, dict) or found.get("identity") != identity:
            self._require_writable()
            found = self._studied(study, identity)
            write_atomic(path, sealed(found, path.name))
        picture = path.with_suffix(".svg")
        if study.title == "surface" and not picture.exists() and self._unwritable is None:
            draw_surfaces(found, picture, f"{spec.name}, {spec.threat.norm} {written(spec.threat.epsilon)}")

    def _studied(self, study: Study, identity: str) -> dict[str, Any]:
        with progress(f"{study.title} study", study.parts, self.quiet) as report:
            found = study.run(
                self._subject(study.examples, study.title, self.program.spec.threat), self._between(report)
            )
        threat = self.program.spec.threat.model_dump()
        return {"identity": identity, "checkpoint": self.step, "threat": threat, **found}

    def _between(self, report: Any) -> Callable[[int], None]:
        """report(parts done) between the parts of a job that is done anew when it is stopped."""

        def between(done: int) -> None:
            report(done)
            if self.stop.signum is not None:
                self._stop()

        return between

    def _attack(self, under: UnderThreat, bare: str, attack: Attack, attacked: np.ndarray, within: bool) -> Verdicts:
        """The verdicts of one attack on the images `attacked` [N]; a stage `within` another need only find errors.

        They are those that the attack has where its threat is the only one: `bare` is its name there.
        """
        name, control = under.named(bare), bare == RANDOM
        predicted, surrogate = self._predicted, self._surrogates.get(name)
        others = surrogate and surrogate.identity
        exhaustive = attack.minimum_norm and not within
        identity = self._identity(bare, attack.model_dump(), others, exhaustive, of=self._whole, threat=under.threat)
        kept = np.arange(predicted.n) if self.export and not control else predicted.shown
        kept = kept if self._share is None else kept[self._share[kept]]
        path, known = self._path(f"{name}.npz"), {"ids": self._ids, **predicted.classes}
        of, like = (attacked, exhaustive, identity), self._like(path, bare)
        verdicts = Verdicts(path, *of, kept, self.split.image_shape, known, like)
        if len(verdicts.pending(attack.runs(self.program.classes))):
            self._search(under, bare, attack, verdicts)
            if not self.quiet and not control:
                say(f"attack {name}: {cost_and_yield(stage_record(verdicts))}")
        if attacked.any() and not verdicts.on_disk:
            verdicts.save()
        if self.export and attacked.any() and not control and self._share is None:
            write_adversarial(self._path(f"{name}.adversarial.npz"), predicted, verdicts)
        return verdicts

    def _search(self, under: UnderThreat, bare: str, attack: Attack, verdicts: Verdicts) -> None:
        """Make an attack where it is still needed."""
        devices, spec, predicted = self.program.devices, self.program.spec, self._predicted
        name, attacked = under.named(bare), verdicts.candidates
        surrogate = self._surrogates.get(name)
        program = self.program.attack(attack, under.threat, surrogate and surrogate.network)
        key = jax.random.key_data(purpose_key(spec.seed, f"attack {bare}"))
        other = None if surrogate is None else devices.replicate(surrogate.variables)
        own, example = predicted.variables, example_of(self.program.image_shape)
        places = (own, own if other is None else other, example)
        size = fitting_batch(program, predicted.batch_size, *places, spec.evaluate.memory)
        self._fitting = min(self._fitting, size)
        with progress(f"attack {name}", int(attacked.sum()), self.quiet) as report, verdicts.timed():

            def between() -> None:
                self._report(report, verdicts, attack)

            search(
                program,
                verdicts,
                predicted.examples,
                own,
                devices.replicate(np.asarray(key)),
                self.program.classes,
                size,
                other,
                between,
                names=self._ids,
            )
            between()

    def _like(self, path: Path, name: str) -> list[Path]:
        """Files besides `path` that may hold verdicts of an attack of that name, on this network: of other evaluations,
        and of workers."""
        top, file = self.folder.evaluations_of(self._images), f"{self.step}*.{glob.escape(name)}.npz"
        return sorted({*top.glob(file), *top.glob(f"{SHARES}/*/{file}")} - {path})

    def _report(self, report: Any, verdicts: Verdicts, attack: Attack) -> None:
        pending = len(verdicts.pending(attack.runs(self.program.classes)))
        attacked = int(verdicts.candidates.sum())
        wrong = int((verdicts.candidates & verdicts.arrays["wrong"]).sum())
        report(attacked - pending, f"{attacked - wrong} of {attacked} still correct")
        if self.stop.signum is not None:
            verdicts.save()
            self._stop()

    def _stop(self) -> None:
        assert self.stop.signum is not None
        raise Interrupted(self.stop.signum, "evaluation stopped and saved; run the same command to continue")

    def _flags(self, found: Attacked) -> list[Flag]:
        """Signs of masking within a threat: from attacks that were made, and from trials on a few correct images."""
        examples = self.program.spec.evaluate.checks.examples
        if not examples or not self._predicted.correct.any():
            return []
        under, stages = found.under, itertools.chain(*(turn.found for turn in found.turns))
        subject = self._subject(examples, "masking", under.threat)
        with progress(f"masking checks {under.name}".strip(), len(TRIALS), self.quiet) as report:
            made = [(part, v.candidates & v.arrays["wrong"]) for part, v in stages]
            flags = find_flags(subject, made, self._between(report))
        return [flag._replace(name=under.named(flag.name)) for flag in flags]

    def _subject(self, examples: int, purpose: str, threat: Threat) -> Subject:
        """At most so many correctly classified images, evenly spread over them, as a subject of trials."""
        program, devices = self.program, len(self.program.devices)
        ids = spread(np.flatnonzero(self._predicted.correct), examples)
        key = np.asarray(jax.random.key_data(purpose_key(program.spec.seed, purpose)))
        size = min(self._fitting, -(-len(ids) // devices) * devices)
        return Subject(
            program.network,
            program.placement,
            self._predicted.variables,
            threat,
            *self._predicted.examples(ids),
            key,
            program.classes,
            size,
            self._ids[ids],
        )
