"""A finished run in a folder that cannot be written is read all the same; whatever would write there is one line."""

import json
import os
import shutil
import sys

import pytest

# Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH permissions hold for root too; other users never had them.
AS_A_USER = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "llrflow", *sys.argv[1:]])
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
    """as_a_user(*arguments) -> (exit code, stdout, lines of stderr) of llrflow as someone who may not write there."""
    folder, before = sealed_off

    def run(*arguments):
        process = start(arguments, tmp_path, [sys.executable, "-c", AS_A_USER])
        out, err = process.communicate(timeout=240)
        assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
        return process.returncode, out, err.splitlines()

    return run


@pytest.mark.slow
def test_what_only_reads_works(as_a_user, sealed_off, finished, tiny, write_spec, tmp_path):
    folder, spec = sealed_off[0], write_spec(tmp_path / "spec.yaml", tiny())
    stored = json.loads((finished / "evaluation" / "12.json").read_text())
    del stored["sha256"]
    said = f"{folder} cannot be written: {os.strerror(13)}: what it holds is only read"
    for arguments, told in ((("run", spec, "--out", folder), [said]), (("evaluate", folder), [])):
        code, out, err = as_a_user(*arguments, "--json")
        assert (code, json.loads(out)["evaluation"], err) == (0, stored, told)
    code, out, _ = as_a_user("export", folder, "-o", tmp_path / "export", "--json")
    assert code == 0 and json.loads(out)["network_sha256"] == stored["network_sha256"]
    for arguments in (("report", folder), ("compare", folder, finished), ("runs", folder)):
        code, out, _ = as_a_user(*arguments)
        assert code == 0 and out
    assert (tmp_path / "report.html").exists()
    code, out, _ = as_a_user("tail", folder, "--no-follow")
    assert code == 0 and "finished" in out


@pytest.mark.slow
def test_what_would_write_is_one_line(as_a_user, sealed_off, tiny, write_spec, tmp_path):
    folder, spec = sealed_off[0], write_spec(tmp_path / "spec.yaml", tiny())
    got = f"error: {folder}: cannot be written: {os.strerror(13)}"
    asked = f"{got}, and what is asked for is not in it; make it writable, or copy it and name the copy"
    for arguments, line in (
        (("run", spec, "--out", folder, "--fresh"), f"{got}; make it writable, or choose another --out"),
        (("run", spec, "--out", folder, "--set", "seed=3"), f"error: {folder}: holds a run of another spec (hash "),
        (("evaluate", folder, "--checkpoint", "8"), asked),
        (("evaluate", folder, "--attacks", "quick"), asked),
        (("evaluate", folder, "--study", "strength"), asked),
        (("export", folder), f"error: {folder}/export: cannot be written: {os.strerror(13)}; choose another --out"),
    ):
        code, out, err = as_a_user(*arguments)
        assert (code, out, len(err)) == (2, "", 1) and err[0].startswith(line), err
