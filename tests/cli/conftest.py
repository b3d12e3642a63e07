"""Shared by the tests of the command line: the same `main` that the console script calls, in this process."""

import pytest


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command(*arguments) -> (exit code, stdout, stderr), run in the empty directory tmp_path/cwd."""
    from llrflow.cli import main

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
