"""What a run folder holds that cannot be written: on a disk that is read-only, or another user's."""

from __future__ import annotations

from llrflow.base.errors import SpecError
from llrflow.base.progress import say
from llrflow.data.facts import describe
from llrflow.program.compile import located
from llrflow.runs.folder import RunFolder
from llrflow.runs.ledger import earlier
from llrflow.runs.looks import chosen
from llrflow.runs.records import EvaluationRecord, RunRecord
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import Spec


def stored_result(spec: Spec, folder: RunFolder, why: str) -> tuple[RunRecord, EvaluationRecord]:
    """The record of the finished run of a spec and its evaluation as they are stored: nothing is checked anew.

    `why` says why the folder cannot be written. Raises SpecError where it would have to be.
    """
    record, got, fix = folder.record(), f"cannot be written: {why}", "make it writable, or choose another --out"
    if record is None:
        raise SpecError(str(folder.path), got, fix)
    with located(spec):
        digest = spec_hash(resolve(spec, describe(spec.data)))
    earlier(folder, digest, record.data)  # which raises where it is another spec's
    if record.state != "finished":
        raise SpecError(str(folder.path), f"{got}, and its run is {record.state} at step {record.step}", fix)
    found = chosen(folder.metric_lines())
    step = record.step if found is None else found.best
    evaluation = folder.evaluations().get(step)
    if evaluation is None:
        raise SpecError(str(folder.path), f"{got}, and it holds no evaluation of step {step}", fix)
    say(f"{folder.path} {got}: what it holds is only read")
    return record, evaluation
