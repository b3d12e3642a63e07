"""A checkpoint of a run folder evaluated again, with its spec's attacks or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from llrflow.base.progress import say
from llrflow.data.facts import describe
from llrflow.data.pipelines import open_split
from llrflow.data.schema import Data
from llrflow.program.compile import compile_spec, located
from llrflow.runs.averages import estimated, training_images, with_statistics
from llrflow.runs.elsewhere import fitting_block, named_data
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder, Step, label_of
from llrflow.runs.interrupt import stop_requests
from llrflow.runs.model import checkpoints_of, chosen_step, recorded_facts, stored_run
from llrflow.runs.pipeline import Run
from llrflow.runs.presets import changed_block
from llrflow.runs.records import Images, OtherData, RunRecord
from llrflow.runs.surrogates import surrogates_of
from llrflow.spec.load import at
from llrflow.spec.schema import Spec


class How(TypedDict, total=False):
    """How a checkpoint is evaluated."""

    quiet: bool
    """Without progress; default true."""
    attacks: str | Mapping[str, Any] | None
    """A preset or a YAML file by name, or a mapping as under `evaluate.attacks` or of a whole `evaluate` block, instead
    of the spec's attacks; its record is <step>-<hash>.json."""
    export: bool
    """Also write the images that each attack found."""
    studies: Sequence[str]
    """Made besides: strength, linearity, surface."""
    devices: int | None
    """Their number; default all."""
    trust_plugins: bool
    """Whether plugins may run that are neither installed nor such as this user has trained with; default false."""
    stop_after: int | None
    """At most so many images, drawn as `evaluate.images` draws them, in the place of the spec's number; its record is
    <step>-<hash>.json. What fewer images have shown is taken up by more."""


def evaluate_run(path: str | Path, step: Step | None = None, images: Images = "test", **how: Unpack[How]) -> Run:
    """Evaluate a checkpoint of a run folder, with its spec's attacks or others (`How`).

    `step` chooses it as `llrflow.runs.model.chosen_step` says, by default the best if looks have chosen one. `images`
    held back from training are evaluated in the place of test images if so wanted, and recorded in validation/. Raises
    CheckpointError when no intact checkpoint is there, SpecError where the run held no images back, PluginError where
    it needs plugins that are not trusted.
    """
    return _evaluated(path, step, images, (), **how)[0]


def evaluate_elsewhere(
    path: str | Path, on_data: Sequence[str], step: Step | None = None, **how: Unpack[How]
) -> list[Run]:
    """As `evaluate_run`, on other prepared datasets of the same images and classes (`named_data`), one after the other.

    The records are evaluation/<step>@<data>.json, and with other attacks evaluation/<step>-<hash>@<data>.json. The
    run's own dataset need not be here. Raises DataError, before anything is evaluated, where one is not prepared, or
    has other images or classes.
    """
    return _evaluated(path, step, "test", on_data, **how)


def attack_share(
    path: str | Path, share: tuple[int, int], on_data: Sequence[str] = (), step: Step | None = None, **how: Unpack[How]
) -> None:
    """Only make the attacks of `evaluate_run` (of `evaluate_elsewhere` with `on_data`) on a share (index, of) of the
    images, for these to take up. The caller sees to it that nobody else has the folder. Raises as these do.
    """
    _evaluated(path, step, "test", on_data, share=share, **how)


def changed_run(
    folder: RunFolder,
    attacks: str | Mapping[str, Any] | None,
    stop_after: int | None,
    studies: Sequence[str] = (),
    devices: int | None = None,
    trust_plugins: bool = False,
) -> tuple[RunRecord, Spec, str]:
    """A run's record, its spec with what another evaluation changes, and that evaluation's label.

    Raises CheckpointError, SpecError and PluginError.
    """
    overrides: dict[str, Any] = {"devices.count": devices}
    block = changed_block(attacks, stop_after)
    label = label_of(block) if block else ""
    threats = stored_run(folder, trust_plugins=trust_plugins)[1].evaluate.threats if block else {}
    if "attacks" in block:  # in the place of those that the spec has, within every threat
        own = (name for name, threat in threats.items() if threat.attacks is not None)
        overrides |= {"evaluate.attacks": None, **{f"evaluate.threats.{name}.attacks": None for name in own}}
    if "threats" in block and threats:
        overrides["evaluate.threats"] = None
    for field in ("attacks", "threats"):
        overrides |= {f"evaluate.{field}.{name}": value for name, value in block.pop(field, {}).items()}
    overrides |= {f"evaluate.{name}": value for name, value in block.items()}
    record, spec = stored_run(folder, overrides, trust_plugins)
    wanted = [name for name in studies if getattr(spec.evaluate, name) is None]
    if wanted:
        _, spec = stored_run(folder, {**overrides, **{f"evaluate.{name}": {} for name in wanted}}, trust_plugins)
    return record, spec, label


def _evaluated(
    path: str | Path,
    step: Step | None,
    images: Images,
    on_data: Sequence[str],
    quiet: bool = True,
    attacks: str | Mapping[str, Any] | None = None,
    export: bool = False,
    studies: Sequence[str] = (),
    devices: int | None = None,
    stop_after: int | None = None,
    share: tuple[int, int] | None = None,
    trust_plugins: bool = False,
) -> list[Run]:
    """The run with its evaluation on each of `on_data`, or without any on the spec's own images; none of a share."""
    folder = RunFolder(Path(path))
    record, spec, label = changed_run(folder, attacks, stop_after, studies, devices, trust_plugins)
    if images == "validation" and spec.data.validation is None:
        raise at(spec, "data.validation", "holds back no images to evaluate", "train again with it, such as 0.1")
    facts_of = (lambda data: recorded_facts(record, spec)) if on_data else describe
    program = compile_spec(spec, training=False, facts_of=facts_of)
    checkpoints = checkpoints_of(folder, record)
    others = {other: fitting_block(other, spec, record) for other in named_data(on_data, spec.data)}
    blocks: dict[OtherData | None, Data] = {**others} if on_data else {None: spec.data}
    why = folder.unwritable()  # then what is stored is only read
    owner = share is None and why is None
    with folder.owned() if owner else nullcontext(), stop_requests() as stop:
        if owner:
            folder.clean()
        chosen = chosen_step(folder, checkpoints, step)
        state = checkpoints.restore(program.abstract_state(), chosen.step)
        surrogates, found = surrogates_of(program, trust_plugins), []
        estimate = partial(estimated, program, state, partial(training_images, program), stop, quiet)
        estimate = estimate if why is None else None
        state, used = with_statistics(program, state, checkpoints, program.evaluated_parameters, estimate)
        for other, data in blocks.items():
            with located(spec):
                split = open_split(data, images, spec.seed)
            if other is not None and not quiet:
                say(f"on {other.title}")
            kept = (label, export, surrogates, used, images, other, why)
            evaluator = Evaluator(program, state, split, folder, record.spec_hash, stop, quiet, *kept)
            if share is not None:
                evaluator.attack_share(*share)
            else:
                found.append(Run(folder.path, record, evaluator.evaluate(), chosen.why))
            if owner:
                evaluator.drop_shares()
    return found
