"""`llrflow.examine`: a verdict on any JAX function, as a run has it of its checkpoints."""

from __future__ import annotations

import datetime
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from llrflow.attacks.base import Attack
from llrflow.attacks.examined import Examined
from llrflow.attacks.function import foreign
from llrflow.attacks.masking import TRIALS, find_flags
from llrflow.attacks.network import one_device
from llrflow.attacks.run import ball_of, check_labels, checked, random_words
from llrflow.attacks.search import InMemory
from llrflow.attacks.trial_attacks import Subject
from llrflow.base.errors import SpecError
from llrflow.base.progress import progress
from llrflow.base.validation import first_problem
from llrflow.method.ascent import predicted_class
from llrflow.method.keys import keyed
from llrflow.method.term import lacking_classes
from llrflow.method.threat import Threat
from llrflow.runs.certificate import Turn, attacked, certified
from llrflow.runs.classifier import hash_of
from llrflow.runs.predictions import spread
from llrflow.runs.presets import evaluate_block
from llrflow.runs.printed import print_certificate
from llrflow.runs.records import AttackRecord, Certificate, FlagRecord, Proportion, versions
from llrflow.spec.schema import Evaluate
from llrflow.spec.threats import UnderThreat

FIELDS = ("attacks", "cascade", "checks", "batch_size")
"""Of an `evaluate` block, those that mean something for a function."""


class FunctionRecord(Certificate):
    """The certificate of a function: what a run's has, without what only a run has."""

    format: Literal[1] = 1
    name: str
    """Of the function."""
    stochastic: bool
    """Whether it takes a random key: every accuracy, the nominal one too, is then of one draw for each image."""
    arrays_sha256: str
    """SHA-256 over the arrays that the function holds and its variables: others mean another function."""
    images_sha256: str
    """SHA-256 over images and labels."""


@dataclass(frozen=True, repr=False)
class Examination:
    """What `llrflow.examine` found; as text what `llrflow evaluate` prints."""

    record: FunctionRecord
    """The certificate: a pydantic model, with `model_dump_json()`."""

    @property
    def nominal(self) -> Proportion:
        """Accuracy without an attack, with its 95 % Wilson interval."""
        return self.record.nominal

    @property
    def attacks(self) -> dict[str, AttackRecord]:
        """Accuracy under each attack, in the order in which they were run."""
        return self.record.attacks

    @property
    def worst_case(self) -> Proportion:
        """Images that are correct and that no attack changed: an upper bound where a sign of masking was found."""
        return self.record.worst_case

    @property
    def flags(self) -> dict[str, FlagRecord]:
        """Every sign of gradient masking, seen (`fired`) or not."""
        return self.record.flags

    @property
    def fired(self) -> list[FlagRecord]:
        """The signs that were seen."""
        return self.record.fired

    def write(self, path: str | Path) -> None:
        """Write the certificate as JSON."""
        self.record.write(Path(path))

    def __str__(self) -> str:
        from rich.console import Console

        found, text = self.record, io.StringIO()
        title = f"{found.name}: {found.n} images, {found.within}"
        print_certificate(found, title, Console(file=text, width=100, color_system=None))
        return text.getvalue()

    def __repr__(self) -> str:
        found = self.record
        seen = ", ".join(flag.name for flag in self.fired) or "none"
        shares = f"nominal {found.nominal.accuracy:.2%}, worst case {found.worst_case.accuracy:.2%}"
        return f"<{type(self).__name__} of {found.name}: {shares} of {found.n} images, signs of masking: {seen}>"


def examine(
    logits_fn: Callable[..., jax.Array],
    x: jax.Array,
    y: jax.Array,
    threat: Threat | Mapping[str, Any],
    key: jax.Array,
    attacks: str | Mapping[str, Any] = "standard",
    checks: int | None = None,
    batch_size: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    variables: Any = None,
    quiet: bool = True,
) -> Examination:
    """A verdict on any JAX function [B,H,W,C] -> [B,K]: accuracies, signs of gradient masking, a certificate.

    x [N,H,W,C] in [0,1], y [N] integer labels, the threat, a stochastic function (images, key) and `variables` are as
    in `llrflow.attack`. `attacks` is a preset of `llrflow evaluate --attacks` by name, a YAML file, or a mapping as
    under `evaluate.attacks` (or of the block itself, with `cascade`). `checks` are the images, default 100, to look for
    signs of masking on; `batch_size` those attacked at a time, default 250. `class_names` default to numbers. An image
    that is misclassified without an attack counts as not robust; of a stochastic function that is decided by one draw,
    and each attack by one more. A logit of -inf is one of a class that is never predicted, NaN and +inf count as
    misclassified. Of the network of a run, with `jax.random.key(seed)` of its spec, the verdicts are those of the run's
    own evaluation. Raises SpecError for wrong input and for a function that `llrflow.attack` refuses.
    """
    key, block = _threefry(key), _block(attacks, checks, batch_size)
    ball, radii = ball_of(threat, len(x) if np.ndim(x) else 0)
    if radii is not None:
        raise SpecError("threat", "has an epsilon for each image", "give one number: a certificate is of one threat")
    x, y = jnp.asarray(x), jnp.asarray(y)
    images, labels = np.asarray(checked("examine", x, y)), np.asarray(y).astype(np.int32)
    size = min(block.batch_size, len(labels))
    network, arrays, classes = foreign("logits_fn", logits_fn, images, size, variables)
    check_labels("examine", labels, classes)
    _check_attacks(block.attacks, ball, classes)
    named = [str(k) for k in range(classes)] if class_names is None else list(map(str, class_names))
    if len(named) != classes:
        got = f"are {len(named)}, the function has {classes} classes"
        raise SpecError("class_names", got, "name each class, or leave them out")
    examined = Examined(network, arrays, classes, images, labels, ball, size)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    logits = examined.look(keyed(key, "nominal")).logits
    clean = np.asarray(predicted_class(jnp.asarray(logits)))
    work = _Work(examined, key, quiet)
    within = UnderThreat("", ball, block.attacks, "attacks")
    found = attacked(within, block.cascade, classes, clean == labels, work.attack)
    record = FunctionRecord(
        name=name or getattr(logits_fn, "__name__", type(logits_fn).__name__),
        stochastic=network.stochastic,
        arrays_sha256=hash_of(arrays),
        images_sha256=hash_of((images, labels)),
        started=started,
        versions=versions(),
        flags=work.flags(np.flatnonzero(clean == labels), block.checks.examples, found.turns),
        **certified(block, ball, named, labels, clean, [found]),
    )
    return Examination(record)


def _threefry(key: Any) -> jax.Array:
    """The key itself if it is Threefry's, as those of runs are, else one drawn from it. Raises SpecError."""
    words = random_words(key)
    own = jax.random.key_data(key)
    return jax.random.wrap_key_data(own if own.shape == words.shape else words)


@dataclass(frozen=True)
class _Work:
    """What is done to a function, attack after attack."""

    examined: Examined
    key: jax.Array
    quiet: bool

    def attack(self, name: str, attack: Attack, attacked: np.ndarray, within: bool) -> InMemory:
        """The findings of one attack on images [N]; a stage `within` another need only find errors."""
        count, began = int(attacked.sum()), time.monotonic()
        with progress(f"attack {name}", count, self.quiet) as report:
            runs = attack.runs(self.examined.classes)

            def between(found: InMemory) -> None:
                report(count - len(found.pending(runs)))

            exhaustive, key = attack.minimum_norm and not within, keyed(self.key, f"attack {name}")
            found = self.examined.search(attack, attacked, exhaustive, key, report=between)
        found.seconds = time.monotonic() - began
        found.delta = found.delta[:0].copy()  # of all attacks together they would take far more memory than the images
        return found

    def flags(self, correct: np.ndarray, most: int, turns: Iterable[Turn]) -> dict[str, FlagRecord]:
        """Signs of masking, in the attacks that were made and on at most so many of the images `correct` [M]."""
        if not most or not len(correct):
            return {}
        examined, ids = self.examined, spread(correct, most)
        subject = Subject(
            examined.network,
            one_device(),
            examined.variables,
            examined.threat,
            examined.x[ids],
            examined.y[ids],
            np.asarray(jax.random.key_data(keyed(self.key, "masking"))),
            examined.classes,
            min(examined.size, most),  # however many are correct: one program
            ids,
        )
        made = [(part, found.candidates & found.arrays["wrong"]) for turn in turns for part, found in turn.found]
        with progress("masking checks", len(TRIALS), self.quiet) as report:
            return {flag.name: FlagRecord(**flag._asdict()) for flag in find_flags(subject, made, report)}


def _block(attacks: str | Mapping[str, Any], checks: int | None, batch_size: int | None) -> Evaluate:
    """An `evaluate` block of these. Raises SpecError."""
    block = evaluate_block(attacks)
    for field in block:
        if field not in FIELDS:
            raise SpecError("attacks", f"sets {field!r}, which a function has not", "leave it out")
    block |= {"batch_size": batch_size} if batch_size is not None else {}
    block |= {"checks": {"examples": checks}} if checks is not None else {}
    try:
        return Evaluate.model_validate(block)
    except ValidationError as error:
        _, got, fix = first_problem(error)
        raise SpecError("examine", got, fix) from None


def _check_attacks(attacks: Mapping[str, Attack], threat: Threat, classes: int) -> None:
    """SpecError for an attack that cannot be made on a function of so many classes, before any is."""
    for name, attack in attacks.items():
        if attack.needs_surrogate:
            fix = "call llrflow.attack with `surrogate`"
            raise SpecError(f"attacks.{name}", "searches on the model of another run", fix)
        if unknown := attack.unknown(threat.norm):
            got, fix = unknown
            raise SpecError(f"attacks.{name}", f"{attack.label()} {got}", fix)
        for part in attack.stages(threat, classes).values():
            if lacking := lacking_classes(part, classes, ("attacks", name)):
                raise SpecError(*lacking, "choose another term, target or attack")
