"""A trial whose robustness breaks down is told from its looks, and stopped with a reason on record."""

import csv
import json

import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.sweep.decisions.guard import broken_down
from llrflow.sweep.space.trials import trials_of
from llrflow.sweep.tracking.outcome import trial_record
from llrflow.sweep.tracking.storage import Ended, Storage

FGSM = {"pgd": {"type": "pgd", "steps": 10}, "fgsm": {"type": "fgsm"}}


def looks(worst, fgsm=None, nominal=None, gamma=None):
    rows = zip(worst, *(values or [0.9] * len(worst) for values in (fgsm, nominal, gamma)), strict=True)
    keys = ("worst_case.accuracy", "attacks.fgsm.accuracy", "nominal.accuracy", "gamma.pgd.mean")
    return [dict(zip(keys, row, strict=True)) for row in rows]


@pytest.fixture
def rung(sweeping):
    """rung(guard, attacks) -> the rung of a sweep with that guard."""

    def make(guard, attacks=FGSM):
        return llrflow.load_spec(sweeping(rung={"every": 4, "attacks": attacks, "guard": guard})).sweep.rung

    return make


@pytest.mark.parametrize(
    ("guard", "attacks", "seen", "says"),
    [
        ({}, FGSM, looks([0.4, 0.5, 0.2], [0.6, 0.7, 0.95]), "worst-case accuracy 20.00% after 50.00%, attacks.fgsm"),
        ({}, FGSM, looks([0.4, 0.5, 0.26], [0.6, 0.7, 0.95]), None),  # not below half
        ({"share": 0.9}, FGSM, looks([0.4, 0.5, 0.44], [0.6, 0.7, 0.95]), "after 50.00%"),
        ({}, FGSM, looks([0.4, 0.5, 0.2], [0.6, 0.7, 0.3], [0.9, 0.9, 0.9]), None),  # FGSM falls too: forgotten, not CO
        ({}, {"pgd": FGSM["pgd"]}, looks([0.5, 0.2], [0.7, 0.3], [0.9, 0.95]), "nominal.accuracy 95.00%"),
        ({}, {"pgd": FGSM["pgd"]}, looks([0.5, 0.2], [0.7, 0.9], [0.9, 0.1]), None),  # all is lost
        ({}, FGSM, looks([0.1, 0.1, 0.0], [0.1, 0.1, 0.5]), None),  # chance is no robustness
        ({"floor": 0.1}, FGSM, looks([0.1, 0.1, 0.0], [0.1, 0.1, 0.5]), "after 10.00%"),
        ({}, FGSM, looks([0.5]), None),
        ({}, FGSM, looks([0.5, 0.5], gamma=[0.1, 50]), None),  # off unless asked for
        ({"share": None, "gamma": 5}, FGSM, looks([0.5, 0.5, 0.5], gamma=[0.3, 0.1, 1.6]), "gamma.pgd.mean 1.6"),
        ({"share": None, "gamma": 5}, FGSM, looks([0.5, 0.5, 0.5], gamma=[0.3, 0.1, 1.4]), None),
        ({"share": None, "gamma": 5}, FGSM, looks([0.5, 0.0], [0.7, 0.9], gamma=[0.3, 0.3]), None),
        (None, FGSM, looks([0.5, 0.0], [0.7, 0.9], gamma=[0.1, 50]), None),
    ],
)  # fmt: skip
def test_the_rule(guard, attacks, seen, says, rung):
    found = broken_down(rung(guard, attacks), seen)
    assert found is None if says is None else says in found and found.startswith("catastrophic overfitting: ")


def test_a_guard_that_watches_nothing_is_refused(rung):
    with pytest.raises(SpecError, match=r"sweep\.rung\.guard watches nothing"):
        rung({"share": None})
    with pytest.raises(SpecError, match=r"share"):
        rung({"share": 1.5})


def test_under_another_guard_a_trial_goes_on(sweeping, tmp_path):
    from llrflow.data.facts import describe

    rung = {"every": 4, "attacks": FGSM, "guard": {"share": 0.5}}
    spec, other, none = (
        llrflow.load_spec(sweeping(trials=1, rung={**rung, "guard": guard}))
        for guard in ({"share": 0.5}, {"share": 0.4}, None)
    )
    (trial,) = trials_of(spec, describe)
    storage = Storage(tmp_path)
    with storage.owned():
        by = spec.sweep.rung.guard.model_dump()
        storage.end(trial.name, Ended(state="stopped", step=4, by=by, error="catastrophic overfitting: seen"))
    found = trial_record(spec, storage, trial)
    assert (found.state, found.stopped) == ("stopped", "catastrophic overfitting: seen")
    assert [trial_record(s, storage, trial).state for s in (other, none)] == ["waiting"] * 2


@pytest.mark.long
def test_a_trial_that_breaks_down_is_stopped_and_says_so(sweeping, write_spec, tmp_path, llrflow_command, record_of):
    """A real one: the linearity error of the tiny network grows as it learns."""
    rung = {"every": 4, "attacks": FGSM, "guard": {"share": None, "gamma": 1.05, "floor": 0}}
    path = write_spec(tmp_path / "spec.yaml", sweeping(trials=2, rung=rung))
    code, out, err = llrflow_command("sweep", path, "--out", tmp_path / "out", "--strict", cwd=tmp_path)
    record = record_of(tmp_path / "out")
    stopped = [trial for trial in record["trials"] if trial["stopped"]]
    assert code == 0 and stopped, (err, [trial["rungs"] for trial in record["trials"]])
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    for trial in stopped:
        assert trial["state"] == "stopped" and trial["step"] == trial["rungs"][-1]["step"]
        reason = trial["stopped"]
        assert f"trial {trial['number']} stopped at step {trial['step']}: {reason}" in out.replace("\n", " ")
        assert rows[trial["number"]]["stopped"] == reason
        (excluded,) = (c["excluded"] for c in record["configurations"] if trial["number"] in c["trials"])
        assert excluded == f"stopped: {reason}"
        assert not list((tmp_path / "out" / "runs" / trial["run"] / "evaluation").glob(f"{trial['step']}.json"))
    before = json.dumps(record["trials"])
    code, _, err = llrflow_command("sweep", path, "--out", tmp_path / "out", "--resume", cwd=tmp_path)
    assert code == 0 and json.dumps(record_of(tmp_path / "out")["trials"]) == before
