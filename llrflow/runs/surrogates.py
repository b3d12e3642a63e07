"""The models of other runs that transfer attacks search on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llrflow.attacks.network import Network
from llrflow.base.errors import CheckpointError
from llrflow.program.compile import Program
from llrflow.runs.classifier import hash_of
from llrflow.runs.folder import RunFolder
from llrflow.runs.model import load_model, stored_run
from llrflow.spec.load import at
from llrflow.spec.schema import Spec


class Surrogate(NamedTuple):
    """A model of another run that a transfer attack searches on."""

    network: Network
    variables: Any
    identity: str


def check_consent(specs: Iterable[Spec], trust_plugins: bool = False) -> None:
    """Raise PluginError where another run that specs name, to attack with or to begin with, has plugins that nobody
    here has agreed to. For a driver, whose workers do not ask. A run that lies elsewhere is found missing by them.
    """
    runs = set()
    for spec in specs:
        runs |= {attack.run for _, _, attack in spec.evaluate.transfers(spec.threat)}
        if spec.model.start is not None and spec.model.start.run is not None:
            runs.add(str(spec.model.start.path))
    for run in sorted(runs):
        with contextlib.suppress(CheckpointError):
            stored_run(RunFolder(Path(run)), trust_plugins=trust_plugins)


def surrogates_of(program: Program, trust_plugins: bool = False) -> dict[str, Surrogate]:
    """The models that transfer attacks search on, by the attack's name in the evaluation; SpecError where one does not
    fit.

    Raises as `load_model` does, too.
    """
    found, spec = {}, program.spec
    for under, name, attack in spec.evaluate.transfers(spec.threat):
        model = load_model(attack.run, attack.checkpoint, trust_plugins=trust_plugins)
        if (model.image_shape, model.classes) != (program.image_shape, program.classes):
            got = f"= {attack.run!r} takes images {list(model.image_shape)} of {model.classes} classes"
            fix = f"name a run on images {list(program.image_shape)} of {program.classes} classes"
            raise at(spec, f"{under.place}.{name}.run", got, fix)
        found[under.named(name)] = Surrogate(model.network, model.variables, hash_of(model.variables))
    return found
