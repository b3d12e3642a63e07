"""The models of other runs that transfer attacks search on."""

from __future__ import annotations

from typing import Any, NamedTuple

from llrflow.attacks.network import Network
from llrflow.program.compile import Program
from llrflow.runs.classifier import hash_of
from llrflow.runs.model import load_model
from llrflow.spec.load import at


class Surrogate(NamedTuple):
    """A model of another run that a transfer attack searches on."""

    network: Network
    variables: Any
    identity: str


def surrogates_of(program: Program, trust_plugins: bool = False) -> dict[str, Surrogate]:
    """The models that transfer attacks search on, by the attack's name in the evaluation; SpecError where one does not
    fit.

    Raises as `load_model` does, too.
    """
    found, spec = {}, program.spec
    every = (
        (under, name, attack)
        for under in spec.evaluate.by_threat(spec.threat)
        for name, attack in under.attacks.items()
    )
    for under, name, attack in every:
        if not attack.needs_surrogate:
            continue
        model = load_model(attack.run, attack.checkpoint, trust_plugins=trust_plugins)
        if (model.image_shape, model.classes) != (program.image_shape, program.classes):
            got = f"= {attack.run!r} takes images {list(model.image_shape)} of {model.classes} classes"
            fix = f"name a run on images {list(program.image_shape)} of {program.classes} classes"
            raise at(spec, f"{under.place}.{name}.run", got, fix)
        found[under.named(name)] = Surrogate(model.network, model.variables, hash_of(model.variables))
    return found
