"""Every kind of file of a run folder, and of the data, damaged in every way: see `damages`."""

import json
import shutil

import numpy as np
import pytest
from damages import Damaging, cases_of, report

import llrflow
from llrflow.base.errors import LlrflowError


def load_model(run, command):
    try:
        model = llrflow.load_model(run)
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    logits = np.asarray(model.logits(np.full((2, *model.image_shape), 0.5, np.float32)))
    return 0, json.dumps([model.step, np.round(logits, 4).tolist()]), ""


def load_exported(run, command):
    try:
        exported = llrflow.load_exported(run / "export")
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    return 0, json.dumps([exported.step, float(sum(np.abs(w).sum() for w in exported.weights.values()))]), ""


COMMANDS = {
    "runs": lambda run, command: command("runs", run, "--json"),
    "tail": lambda run, command: command("tail", run, "--no-follow", "--json"),
    "compare": lambda run, command: command("compare", run, run, "--json"),
    "evaluate": lambda run, command: command("evaluate", run, "--json"),
    "export": lambda run, command: command("export", run, "-o", run.parent / "exported", "--json"),
    "run": lambda run, command: command("run", run.parent / "spec.yaml", "--out", run, "--json"),
    "report": report,
    "load_model": load_model,
    "load_exported": load_exported,
}


@pytest.fixture(scope="module")
def whole(load, tmp_path_factory):
    """A folder with the spec and a finished run: three checkpoints, two evaluations, a study and an export."""
    folder = tmp_path_factory.mktemp("whole")
    llrflow.run(load({"evaluate.strength": {"steps": [1], "restarts": [1], "epsilons": [0.1]}}), folder / "run")
    from llrflow.runs.export import export_model

    export_model(folder / "run")
    shutil.copy(folder / "run" / "spec.yaml", folder)
    return folder


@pytest.fixture
def damaged(whole, command, capsys, tmp_path):
    return Damaging(whole, "run", COMMANDS, tmp_path / "case", capsys, command)


def test_a_sample_of_damage_is_told_or_changes_nothing(whole, damaged):
    codes = damaged.all(cases_of(whole / "run", COMMANDS)[:70])
    assert 2 <= codes.count(2) < 60


@pytest.mark.long
def test_all_damage_is_told_or_changes_nothing(whole, damaged):
    cases = cases_of(whole / "run", COMMANDS)
    codes = damaged.all(cases[:: len(cases) // 600])
    assert len(codes) >= 600 and codes.count(2) > 50


def fresh(streaming, cached=True):
    """A command that trains on data whose cache is there or is not."""

    def train(data, command):
        if not cached:
            shutil.rmtree(data / ".llrflow", ignore_errors=True)
        changes = [f"data.dir={data}", *(["data.memory=1"] if streaming else [])]
        arguments = [part for change in changes for part in ("--set", change)]
        return command("run", data.parent / "spec.yaml", *arguments, "--out", data.parent / "new", "--json")

    return train


def evaluate(data, command):
    run = data.parent / "run"
    return command("evaluate", run, "--attacks", data.parent / "other.yaml", "--json")


ON_DATA = {
    "run": fresh(streaming=False),
    "run without cache": fresh(streaming=False, cached=False),
    "run streaming": fresh(streaming=True),
    "data list": lambda data, command: command("data", "list", "--data-dir", data, "--json"),
    "data show": lambda data, command: command("data", "show", "digits", "--data-dir", data, "--json"),
    "evaluate": evaluate,
    "validate": lambda data, command: command(
        "validate", data.parent / "spec.yaml", "--set", f"data.dir={data}", "--json"
    ),
}


@pytest.fixture
def damaged_data(load, data_dir, tmp_path, command, capsys, write_spec, tiny):
    """Of a data directory, beside which lie a spec and a run whose data it is."""
    whole, place = tmp_path / "whole", tmp_path / "case"
    llrflow.run(load({}), whole / "run")
    stored = whole / "run" / "spec.yaml"
    stored.write_text(stored.read_text().replace(str(data_dir), str(place / "data")))
    shutil.copytree(data_dir, whole / "data")
    write_spec(whole / "spec.yaml", tiny())
    write_spec(whole / "other.yaml", {"pgd": {"type": "pgd", "steps": 3}})
    return Damaging(whole, "data", ON_DATA, place, capsys, command)


def test_a_sample_of_damaged_data_is_told_or_changes_nothing(damaged_data):
    codes = damaged_data.all(cases_of(damaged_data.whole / "data", ON_DATA)[:15])
    assert 2 <= codes.count(2) < 12


@pytest.mark.long
def test_all_damaged_data_is_told_or_changes_nothing(damaged_data):
    cases = cases_of(damaged_data.whole / "data", ON_DATA)
    assert len(cases) > 300
    assert damaged_data.all(cases).count(2) > 50
