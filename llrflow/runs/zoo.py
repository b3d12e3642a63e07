"""A zoo: run folders that somebody published, in a folder or below a URL, by an index of their files.

    zoo.json           ZooIndex, sealed
    NAME/...           the files of a run that make it one: spec, record, metrics, one checkpoint, evaluations

Files are listed one by one, with size and SHA-256, so that nothing has to be unpacked: no more is read than the index
says, nothing is written outside of the run's folder, and a folder appears when all of it is as listed.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, ValidationError

from llrflow.base.errors import CheckpointError, DataError, SpecError, line_of
from llrflow.base.files import locked, no_room, open_atomic, open_regular, require_local, sha256_file
from llrflow.base.memory_size import amount
from llrflow.base.sealed import unsealed
from llrflow.base.validation import suggest
from llrflow.runs.folder import RunFolder
from llrflow.runs.model import checkpoints_of, chosen_step
from llrflow.runs.records import Record, RunRecord, written
from llrflow.runs.sealed import first_problem, read_record
from llrflow.spec.source import read_source

INDEX = "zoo.json"

_LARGEST_INDEX, _LARGEST_RUN = 2**24, 2**34
"""Bytes that are read of an index, and of all files of a run together."""

_SECONDS = 30
"""Without an answer, after which a server is given up."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a published run may be called."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,199}")
"""What each part of a file's path may be: nothing hidden, no `..`, no other root, no longer than file systems take."""


def _inside(path: str) -> str:
    if len(path) > 1000 or not all(map(_PART.fullmatch, path.split("/"))):
        raise ValueError("is no path inside of a run folder")
    return path


def _no_folder(files: dict[str, ZooFile]) -> dict[str, ZooFile]:
    for path in files:
        for end in (at for at, letter in enumerate(path) if letter == "/"):
            if path[:end] in files:
                raise ValueError(f"lists {path[:end]} both as a file and as a folder")
    return files


class ZooFile(Record):
    """A file of a published run."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ZooRun(Record):
    """A published run: what it is, and its files."""

    spec_hash: str
    step: int
    """Of its checkpoint."""
    dataset: str
    network: str
    threat: str
    """Norm and epsilon."""
    nominal: float | None
    worst_case: float | None
    """Accuracies of its own evaluation; None where the checkpoint was not evaluated."""
    plugins: list[str]
    """What its spec names; they are not published with it."""
    files: Annotated[dict[Annotated[str, AfterValidator(_inside)], ZooFile], AfterValidator(_no_folder)]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files.values())


class ZooIndex(Record):
    """zoo.json: the runs of a zoo by name."""

    format: Literal[1] = 1
    runs: dict[Annotated[str, Field(pattern=f"^{_NAME.pattern}$")], ZooRun]


def read_index(source: str) -> ZooIndex:
    """The index of the zoo in a folder, or below an http(s) URL. Raises DataError."""
    where = f"{source.rstrip('/')}/{INDEX}"
    content = b""
    for chunk in _chunks(source, INDEX):
        content += chunk
        if len(content) > _LARGEST_INDEX:
            raise DataError(where, f"is larger than {amount(_LARGEST_INDEX)}", "name another zoo")
    try:
        return ZooIndex.model_validate(unsealed(content, INDEX))
    except ValidationError as error:
        raise DataError(where, f"is no index of a zoo: {first_problem(error)}", "name another zoo") from None
    except ValueError as error:
        raise DataError(where, f"is damaged: {line_of(error)}", "name another zoo") from None


def get(source: str, name: str, out: Path) -> ZooRun:
    """Copy a run of a zoo to a folder that does not exist yet; it appears when every file is as the index says.

    What was fetched before an interruption is not fetched again. Nothing of it is run: it is a stranger's run, as any
    that was handed out. Raises DataError.
    """
    require_local(out)
    runs = read_index(source).runs
    if name not in runs:
        raise DataError(source, f"has no run {name!r}", suggest(name, runs) if runs else "name another zoo")
    run = runs[name]
    if out.exists():
        raise DataError(str(out), "exists already", "choose another --out, or remove it")
    if run.bytes > _LARGEST_RUN:
        got = f"lists {amount(run.bytes)} of {name}, more than {amount(_LARGEST_RUN)}"
        raise DataError(source, got, "copy that folder by hand, if you want it")
    partial = out.with_name(f".{out.name}.part")
    try:
        _complete(source, name, run, partial)
        partial.rename(out)
    except OSError as error:
        if no_room(error):
            raise
        got = f"cannot be written: {error.strerror or line_of(error)}"
        raise DataError(error.filename or str(out), got, "choose another --out") from None
    return run


def _complete(source: str, name: str, run: ZooRun, partial: Path) -> None:
    """Fetch what is not there yet of a run, and remove all else. Raises DataError, OSError."""
    for path, file in run.files.items():
        target = partial / path
        if target.is_file() and target.stat().st_size == file.bytes and sha256_file(target) == file.sha256:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(source, f"{name}/{path}", file, target)
    for left in [path for path in partial.rglob("*") if path.is_file()]:
        if left.relative_to(partial).as_posix() not in run.files:
            left.unlink()  # of an index that has changed since
    try:
        RunFolder(partial).existing()
    except CheckpointError as error:
        raise DataError(f"{source}/{name}", f"is no run: {error.got}", "name another") from None


def add(run_dir: Path, zoo: Path, name: str | None = None) -> str:
    """Publish a finished run in a folder, under its spec's name unless another is given; an equal name is replaced.

    Its checkpoint is the one that `load_model` takes; the name is returned. Others who add at the same time wait, and
    what a killed `add` of this run left is replaced. Raises CheckpointError for a run that is not finished, damaged or
    has another spec.yaml than it wrote, SpecError for a name that cannot be a folder, or is that of something else.
    """
    require_local(zoo)
    folder = RunFolder(run_dir)
    record = folder.existing()
    if record.state != "finished":
        raise CheckpointError(str(run_dir), f"is {record.state}", "finish it with `llrflow run`")
    checkpoints = checkpoints_of(folder, record)
    step = chosen_step(folder, checkpoints).step
    if problem := checkpoints.problem(step):
        raise CheckpointError(str(run_dir), f"has a damaged checkpoint {step}: {problem}", "train it again")
    if problem := folder.spec_problem(record):
        raise CheckpointError(str(run_dir), problem, "put back the spec.yaml that it wrote")
    spec = read_source(folder.spec).data  # which imports nothing
    name = name or str(spec["name"])
    if not _NAME.fullmatch(name):
        raise SpecError("--name", f"{name!r} cannot be a folder of a zoo", "use letters, digits, `.`, `_` and `-`")
    zoo.mkdir(parents=True, exist_ok=True)
    with locked(zoo / ".lock"):
        _publish(folder, record, spec, step, zoo, name)
    return name


def _publish(folder: RunFolder, record: RunRecord, spec: Any, step: int, zoo: Path, name: str) -> None:
    """Copy a run into a zoo and list it there; the caller holds the zoo's lock. Raises SpecError, CheckpointError."""
    try:
        before = read_record(ZooIndex, zoo / INDEX, "remove it, and add the runs again").runs
    except FileNotFoundError:
        before = {}
    if (zoo / name).exists() and name not in before and not _is_of(zoo / name, record):
        raise SpecError(str(zoo / name), "is there already, and no run of this zoo", "give the run another --name")
    run_dir = folder.path
    paths = [path for path in (run_dir / part for part in ("run.json", "spec.yaml", "metrics.jsonl")) if path.exists()]
    paths += [run_dir / "checkpoints/manifests" / f"{step}.json", *sorted(run_dir.glob("evaluation/*.json"))]
    paths += sorted(path for path in (run_dir / "checkpoints" / str(step)).rglob("*") if path.is_file())
    staging, files = zoo / f".{name}.part", {}
    shutil.rmtree(staging, ignore_errors=True)
    for path in paths:
        inside = path.relative_to(run_dir).as_posix()
        target = staging / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        files[inside] = ZooFile(bytes=target.stat().st_size, sha256=sha256_file(target))
    shutil.rmtree(zoo / name, ignore_errors=True)
    staging.rename(zoo / name)
    evaluation = folder.evaluations().get(step)
    made = ZooRun(
        spec_hash=record.spec_hash,
        step=step,
        dataset=spec["data"]["name"],
        network=spec["model"]["type"],
        threat=f"{spec['threat']['norm']} {written(float(spec['threat']['epsilon']))}",
        nominal=None if evaluation is None else evaluation.nominal.accuracy,
        worst_case=None if evaluation is None else evaluation.worst_case.accuracy,
        plugins=[str(plugin) for plugin in spec.get("plugins", ())],
        files=files,
    )
    ZooIndex(runs={**before, name: made}).write(zoo / INDEX)


def _is_of(folder: Path, record: RunRecord) -> bool:
    """Whether a folder holds a run of the same spec."""
    try:
        found = RunFolder(folder).record()
    except CheckpointError:
        return False
    return found is not None and found.spec_hash == record.spec_hash


def _fetch(source: str, path: str, file: ZooFile, target: Path) -> None:
    """Write a file, which is complete and as the index says, or absent. Raises DataError."""
    digest, size = hashlib.sha256(), 0
    with open_atomic(target) as content:
        for chunk in _chunks(source, path):
            content.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size > file.bytes:
                break
        if size != file.bytes or digest.hexdigest() != file.sha256:
            got = "is not the file that the index lists (size, SHA-256)"
            raise DataError(f"{source}/{path}", got, "try again; if it stays so, the zoo is damaged")


def _chunks(source: str, path: str) -> Iterator[bytes]:
    """What a file of a zoo holds; what the system or a server says of it becomes a DataError."""
    where = f"{source.rstrip('/')}/{path}"
    try:
        with _opened(source, path) as stream:
            while chunk := stream.read(2**20):
                yield chunk
    except urllib.error.HTTPError as error:
        raise DataError(where, f"cannot be read: {error.code} {error.reason}", "check the address") from None
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:  # the last of `~nobody`
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or line_of(error)
        raise DataError(where, f"cannot be read: {reason}", "check the address, or name a folder") from None


def _opened(source: str, path: str) -> Any:
    if re.match("https?://", source, re.IGNORECASE):
        return urllib.request.urlopen(f"{source.rstrip('/')}/{quote(path)}", timeout=_SECONDS)
    return open_regular(Path(source).expanduser() / path)
