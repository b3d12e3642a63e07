"""Reading the records of a run folder, of an export and of a sweep: whole and as they were written, or one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from llrflow.base.errors import CheckpointError, line_of
from llrflow.base.files import read_regular
from llrflow.base.sealed import unsealed
from llrflow.runs.records import Record

R = TypeVar("R", bound=Record)


def read_record(kind: type[R], path: Path, fix: str) -> R:
    """A file's record. Raises FileNotFoundError where there is none, CheckpointError where it is not what was written.

    `fix` says what to do about a damaged one. Records of earlier versions have no seal, and are believed if they hold
    together.
    """
    data = read_sealed(path, fix)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        number, known = data.get("format") if isinstance(data, dict) else None, kind.model_fields["format"].default
        if isinstance(number, int) and number > known:
            got = f"has format {number}, and this version of llrflow reads formats up to {known}"
            raise CheckpointError(str(path), got, "install a newer llrflow") from None
        raise CheckpointError(str(path), first_problem(error), fix) from None


def read_sealed(path: Path, fix: str) -> Any:
    """What a JSON file holds. Raises as `read_record`."""
    try:
        return unsealed(read_regular(path), path.name)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except OSError as error:
        fix = "make it readable, or name another folder"
        raise CheckpointError(str(path), f"cannot be read: {error.strerror}", fix) from None
    except ValueError as error:
        raise CheckpointError(str(path), f"is damaged: {line_of(error)}", fix) from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, and in which field."""
    problem = error.errors(include_url=False)[0]
    return ": ".join([".".join(map(str, problem["loc"])), problem["msg"]] if problem["loc"] else [problem["msg"]])
