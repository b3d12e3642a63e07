"""The program to plan with: of one device's share of a batch where a spec is for more devices than there are here."""

from __future__ import annotations

from llrflow.data.well_known import describe_or_known
from llrflow.program.compile import Program, compile_spec, located, undivided
from llrflow.program.devices import Devices
from llrflow.spec.resolve import resolve
from llrflow.spec.schema import Spec


def program_of_share(spec: Spec, count: int | None) -> tuple[Program, int]:
    """(program, number of devices); of one device's share of the batch where there are fewer than `count` devices here.

    A dataset that is not prepared may stand in `llrflow.data.well_known`. Raises as `compile_spec`.
    """
    if count is None or count <= len(Devices()):
        changed = spec if count is None else _on(spec, count, spec.train.batch_size)
        program = compile_spec(changed, facts_of=describe_or_known)
        return program, len(program.devices)
    size = spec.train.batch_size
    if size % count:
        raise undivided(spec, count)
    with located(spec):
        resolved = resolve(spec, describe_or_known(spec.data))
    return compile_spec(_on(resolved, 1, size // count), facts_of=describe_or_known), count


def devices_of(spec: Spec) -> int | None:
    """Devices that the spec trains on, over all its hosts; None where it takes all of one.

    Hosts whose devices are not counted are taken to have as many as this one.
    """
    hosts, count = spec.devices.hosts, spec.devices.count
    return count if hosts == 1 else hosts * (count or len(Devices()))


def _on(spec: Spec, count: int, batch_size: int) -> Spec:
    train = spec.train.model_copy(update={"batch_size": batch_size})
    devices = spec.devices.model_copy(update={"count": count, "hosts": 1})
    return spec.model_copy(update={"train": train, "devices": devices})
