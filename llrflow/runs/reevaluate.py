"""A checkpoint of a run folder evaluated again, with its spec's attacks or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llrflow.data.pipelines import open_split
from llrflow.program.compile import compile_spec, located
from llrflow.runs.averages import estimated, training_images, with_statistics
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder, Step, label_of
from llrflow.runs.interrupt import stop_requests
from llrflow.runs.model import chosen_step, stored_run
from llrflow.runs.pipeline import Run
from llrflow.runs.presets import evaluate_block
from llrflow.runs.records import Images
from llrflow.runs.surrogates import surrogates_of
from llrflow.spec.load import at


def evaluate_run(
    path: str | Path,
    step: Step | None = None,
    quiet: bool = True,
    attacks: str | Mapping[str, Any] | None = None,
    export: bool = False,
    studies: Sequence[str] = (),
    devices: int | None = None,
    images: Images = "test",
) -> Run:
    """Evaluate a checkpoint of a run folder, with its spec's attacks or others.

    `step` chooses it as `llrflow.runs.model.chosen_step` says, by default the best if looks have chosen one.
    `attacks` names a preset or a YAML file, or is a mapping as under `evaluate.attacks` or of a whole `evaluate`
    block; its record is evaluation/<step>-<hash>.json. `export` writes the images that each attack found. Raises
    CheckpointError when no intact checkpoint is there. `studies` (strength, linearity, surface) are made besides.
    `devices` is their number, by default all. `images` held back from training are evaluated in the place of test
    images if so wanted, and recorded in validation/. Raises SpecError where the run held none back.
    """
    folder = RunFolder(Path(path))
    overrides: dict[str, Any] = {"devices.count": devices}
    label = ""
    if attacks is not None:
        block = evaluate_block(attacks)
        label = label_of(block)
        overrides |= {"evaluate.attacks": None, **{f"evaluate.attacks.{n}": a for n, a in block.pop("attacks").items()}}
        overrides |= {f"evaluate.{name}": value for name, value in block.items()}
    record, spec = stored_run(folder, overrides)
    wanted = [name for name in studies if getattr(spec.evaluate, name) is None]
    if wanted:
        _, spec = stored_run(folder, {**overrides, **{f"evaluate.{name}": {} for name in wanted}})
    if images == "validation" and spec.data.validation is None:
        raise at(spec, "data.validation", "holds back no images to evaluate", "train again with it, such as 0.1")
    program = compile_spec(spec, training=False)
    checkpoints = Checkpoints(folder.checkpoints)
    with located(spec):
        split = open_split(spec.data, images, spec.seed)
    with folder.owned(), stop_requests() as stop:
        chosen = chosen_step(folder, checkpoints, step)
        state = checkpoints.restore(program.abstract_state(), chosen)
        others = surrogates_of(program)
        estimate = partial(estimated, program, state, partial(training_images, program), stop, quiet)
        state, used = with_statistics(program, state, checkpoints, program.evaluated_parameters, estimate)
        evaluator = Evaluator(
            program, state, split, folder, record.spec_hash, stop, quiet, label, export, others, used, images
        )
        evaluation = evaluator.evaluate()
    return Run(folder.path, record, evaluation)
