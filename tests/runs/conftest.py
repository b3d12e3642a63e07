"""Shared by the tests of run folders: one finished run, copied for each test that harms it."""

import shutil

import pytest

import llrflow


@pytest.fixture(scope="session")
def finished(load, tmp_path_factory):
    """Folder of the finished run of the tiny spec."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert llrflow.run(load(), folder).record.state == "finished"
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run's folder, for the test to harm."""
    return shutil.copytree(finished, tmp_path / "run")
