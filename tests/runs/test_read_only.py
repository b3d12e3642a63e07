"""A finished run in a folder that cannot be written is read all the same; whatever would write there is one line."""

import json
import os
import shutil
import sys
from unittest.mock import Mock

import pytest

import llrflow
from llrflow.runs.folder import RunFolder

# Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH permissions hold for root too; other users never had them.
AS_A_USER = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
# One process for all commands: most of their time is that of starting.
COMMANDS = """
import contextlib, io, json, sys
from llrflow.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    found.append((code or 0, out.getvalue(), err.getvalue().splitlines()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sealed_off(finished, tmp_path_factory):
    """A copy of the finished run in which nothing may be written, and what stands in it and when that was written."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("sealed") / "run")
    places = [folder, *folder.rglob("*")]
    for path in places:
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder, {path: path.stat().st_mtime_ns for path in places}
    for path in places:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def as_a_user(start, sealed_off, tmp_path):
    """as_a_user(*commands) -> (exit code, stdout, lines of stderr) of each, as someone who may not write there."""
    folder, before = sealed_off

    def run(*commands):
        given = json.dumps([[str(argument) for argument in command] for command in commands])
        process = start([COMMANDS, given], tmp_path, [sys.executable, "-c", AS_A_USER])
        out, err = process.communicate(timeout=240)
        assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
        assert process.returncode == 0, err
        return json.loads(out)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [".", "evaluation", "checkpoints"])
def test_one_sealed_folder_is_enough(start, finished, tiny, write_spec, tmp_path, sealed):
    """`chmod a-w` of the run folder alone leaves its lock writable; and what is to be written may lie further in."""
    folder, spec = shutil.copytree(finished, tmp_path / "run"), write_spec(tmp_path / "spec.yaml", tiny())
    place = folder / sealed
    place.chmod(0o555)
    given = json.dumps(
        [["run", str(spec), "--out", str(folder), "--json"], ["evaluate", str(folder), "--attacks", "quick"]]
    )
    process = start([COMMANDS, given], tmp_path, [sys.executable, "-c", AS_A_USER])
    out, err = process.communicate(timeout=240)
    place.chmod(0o755)
    assert process.returncode == 0, err
    (code, read, told), (refused, _, error) = json.loads(out)
    denied = f"{folder}{{}} cannot be written: {os.strerror(13)}"
    assert (code, told) == (0, [f"{denied.format('')}: what it holds is only read"]) and json.loads(read)["evaluation"]
    assert refused == 2 and len(error) == 1 and error[0].startswith(f"error: {denied.format(':')}, and what is asked")


@pytest.mark.slow
def test_what_reads_works_and_what_would_write_is_one_line(as_a_user, sealed_off, finished, tiny, write_spec, tmp_path):
    folder, spec = sealed_off[0], write_spec(tmp_path / "spec.yaml", tiny())
    stored = json.loads((finished / "evaluation" / "12.json").read_text())
    del stored["sha256"]
    denied = f"cannot be written: {os.strerror(13)}"
    run = ("run", spec, "--out", folder)
    reading = [(*run, "--json"), ("evaluate", folder, "--json"), ("export", folder, "-o", "export", "--json")]
    reading += [("report", folder), ("compare", folder, finished), ("runs", folder), ("tail", folder, "--no-follow")]
    asked = f"{folder}: {denied}, and what is asked for is not in it; make it writable, or copy it and name the copy"
    writing = {
        (*run, "--fresh"): f"{folder}: {denied}; make it writable, or choose another --out",
        (*run, "--set", "seed=3"): f"{folder}: holds a run of another spec (hash ",
        ("evaluate", folder, "--checkpoint", "8"): asked,
        ("evaluate", folder, "--attacks", "quick"): asked,
        ("evaluate", folder, "--study", "strength"): asked,
        ("export", folder): f"{folder}/export: {denied}; choose another --out",
    }
    found = as_a_user(*reading, *writing)
    (read, evaluated, exported, *others, tail), refused = found[: len(reading)], found[len(reading) :]
    for (code, out, err), told in ((read, [f"{folder} {denied}: what it holds is only read"]), (evaluated, [])):
        assert (code, json.loads(out)["evaluation"], err) == (0, stored, told)
    assert exported[0] == 0 and json.loads(exported[1])["network_sha256"] == stored["network_sha256"]
    assert all(code == 0 and out for code, out, _ in others) and (tmp_path / "report.html").exists()
    assert tail[0] == 0 and "finished" in tail[1]
    for (code, out, err), line in zip(refused, writing.values(), strict=True):
        assert (code, out, len(err)) == (2, "", 1) and err[0].startswith(f"error: {line}"), err


def test_a_process_of_a_group_joins_it_all_the_same(load, tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "unwritable", lambda folder: "Permission denied")
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("llrflow.runs.pipeline.session", Mock(side_effect=InterruptedError("joined")))
    with pytest.raises(InterruptedError, match="joined"):
        llrflow.run(load(), tmp_path)
