"""A search that learns, in rounds: what Optuna draws, what it is told, and how Tune waits for it."""

import json
import math
import shutil

import pytest

import llrflow
from llrflow.base.errors import DataError, SpecError
from llrflow.data.facts import describe
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.decisions.searchers import LIBRARIES
from llrflow.sweep.space.trials import trials_of
from llrflow.sweep.tracking.outcome import trial_record
from llrflow.sweep.tracking.storage import Storage

LAMBDA = "objective.terms.gamma.weight"
SPACE = {
    "lambda": {"type": "loguniform", "low": 0.01, "high": 1, "path": LAMBDA},
    "mu": {"type": "derived", "path": "objective.terms.slope.weight", "from": LAMBDA, "times": 0.75},
    "optimizer.learning_rate": {"type": "uniform", "low": 0.001, "high": 0.1, "quantum": 0.01},
    "model": {"type": "choice", "values": [{"type": "mlp", "widths": [8]}, {"type": "cnn", "channels": [4]}]},
    "dense": {"type": "integer", "low": 4, "high": 8, "path": "model.dense", "when": {"model.type": "cnn"}},
}


def record(rounds, trial, value, state="finished", masked=()):
    step = trial.rungs[-1] if state == "finished" else trial.rungs[0]
    waiting = trial_record(rounds._spec, rounds._storage, trial)
    return waiting.model_copy(update={"state": state, "step": step, "value": value, "masked": list(masked)})


@pytest.fixture
def rounds(sweeping, tmp_path):
    """rounds(folder, **fields of the sweep block) -> Rounds in a folder of tmp_path."""
    pytest.importorskip("optuna")
    from llrflow.sweep.decisions.rounds import Rounds

    def make(folder="sweep", **fields):
        search = {"type": "optuna", "round": 4, "startup": 8, **fields.pop("search", {})}
        spec = llrflow.load_spec(sweeping(**{"parameters": SPACE, "trials": 40, "search": search, **fields}))
        (tmp_path / folder).mkdir(exist_ok=True)
        return Rounds(spec, Storage(tmp_path / folder))

    return make


def near(trial):
    """A metric that is best at lambda = 0.1; -0.5 in the mean of random draws, with a deviation of 0.06 for 20."""
    return -abs(math.log10(trial.parameters["lambda"]) + 1)


def searched(rounds, value=near, **more):
    """Every trial of the rounds, each worth `value`."""
    records = [record(rounds, trial, value(trial), **more) for trial in rounds.trials]
    while new := rounds.more(records):
        records += [record(rounds, trial, value(trial), **more) for trial in new]
    return rounds.trials


def test_it_finds_what_is_good_and_draws_the_same_again(rounds):
    first, again = (searched(rounds(folder)) for folder in ("a", "b"))
    assert [t.name for t in first] == [t.name for t in again] and [t.number for t in first] == list(range(len(first)))
    assert sum(map(near, first[-20:])) / 20 > -0.35
    other = searched(rounds("c", search={"seed": 1}, trials=4))
    assert other[0].name != first[0].name
    for trial in first:
        shown = trial.parameters
        assert shown["mu"] == pytest.approx(0.75 * shown["lambda"], rel=1e-5) and 0.01 <= shown["lambda"] <= 1
        assert ("dense" in shown) == (trial.spec.model.registered_as[1] == "cnn")
        assert shown["optimizer.learning_rate"] in [0.001, *(round(0.01 * n, 2) for n in range(1, 11))]


def test_where_less_is_better_it_learns_the_opposite(rounds):
    found = searched(rounds(metric="objective"))
    assert sum(map(near, found[-20:])) / 20 < -0.65


def test_masked_and_failed_trials_are_bad_ones(rounds):
    """Whatever their metric says: here trials with a large lambda look best and can never win."""

    def told(folder, **bad):
        found = rounds(folder, parameters={"lambda": SPACE["lambda"]}, trials=60)
        records = []
        while new := found.more(records):
            for trial in new:
                large = trial.parameters["lambda"] > 0.1
                records.append(record(found, trial, trial.parameters["lambda"], **(bad if large else {})))
        return sum(t.parameters["lambda"] > 0.1 for t in found.trials[-30:])

    assert told("honest") > 25
    assert told("masked", masked=["loss_flat"]) < 15
    assert told("failed", state="failed") < 15


def test_what_was_drawn_stays_when_the_sweep_grows(rounds, tmp_path):
    few = searched(rounds(trials=10))
    drawn = json.loads((tmp_path / "sweep" / "draws.json").read_text())["draws"]
    assert len(drawn) == 10 and drawn[0][LAMBDA] == few[0].parameters["lambda"]
    wider = {**SPACE, "threat.epsilon": {"type": "uniform", "low": 0.1, "high": 0.2}}
    wider["lambda"] = {**SPACE["lambda"], "low": 0.2}  # some of what was drawn is outside now
    many = rounds(trials=14, parameters=wider)
    assert [t.name for t in many.trials] == [t.name for t in few] and many.left == 4
    new = searched(many)[len(few) :]
    assert len(new) == 4 and all("threat.epsilon" in t.parameters and t.parameters["lambda"] >= 0.2 for t in new)
    assert [t.name for t in searched(rounds("whole", trials=14))][:10] == [t.name for t in few]
    (tmp_path / "sweep" / "draws.json").write_text("{")
    with pytest.raises(DataError, match=r"draws\.json.*delete it"):
        rounds()


def test_stopped_trials_teach_what_they_reached(rounds):
    found = searched(rounds(), state="stopped")
    assert sum(map(near, found[-20:])) / 20 > -0.35


def test_tune_waits_for_a_round(rounds):
    from llrflow.sweep.decisions.rounds import Queue

    later = [[{"name": "c"}], []]
    queue = Queue([{"name": "a"}, {"name": "b"}], lambda: later.pop(0))
    assert [queue.suggest(i) for i in "012"] == [{"trial": {"name": "a"}}, {"trial": {"name": "b"}}, None]
    queue.on_trial_complete("0")
    assert queue.suggest("3") is None
    queue.on_trial_complete("1", error=True)
    assert queue.suggest("4") == {"trial": {"name": "c"}}
    queue.on_trial_complete("4")
    assert queue.suggest("5") == Queue.FINISHED

    def wrong():
        raise SpecError("here", "is wrong", "mend it")

    failing = Queue([], wrong)
    assert failing.suggest("0") == Queue.FINISHED and isinstance(failing.problem, SpecError)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"search": {"type": "random", "round": 3}}, r"sweep\.search\.round has no effect on random"),
        (
            {"parameters": {LAMBDA: {"type": "grid", "values": [1]}}},
            r"domain grid\) .*nothing to learn from; use choice",
        ),
        ({"scheduler": "hyperband"}, "waits for more trials than a round of optuna has; use asha"),
        ({"trials": None}, "has no `trials`"),
        ({"search": {"type": "optuna", "sampler": "x"}}, "is not a field of search"),
    ],
)
def test_wrong_blocks(fields, says, sweeping):
    with pytest.raises(SpecError, match=says):
        llrflow.load_spec(sweeping(**{"search": {"type": "optuna"}, **fields}))


def test_without_optuna_it_says_what_to_install(sweeping, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spec = llrflow.load_spec(sweeping(search={"type": "optuna"}))
    trials = trials_of(spec, describe)
    assert len(trials) == 4, "what it costs is known without it"
    with pytest.raises(SpecError, match=r"sweep\.search: needs optuna; pip install 'llrflow\[optuna\]'"):
        check_trials(spec, trials, describe)


@pytest.mark.long
@pytest.mark.parametrize(
    "search",
    [
        {"type": "optuna", "startup": 2},
        {"type": "hyperopt", "arguments": {"n_initial_points": 2}},
        {"type": "bayesopt", "arguments": {"random_search_steps": 2}},
        {"type": "nevergrad"},
        {"type": "bohb"},
    ],
    ids=lambda search: search["type"],
)
def test_a_sweep_in_rounds_is_resumed_with_the_same_trials(
    search, sweeping, write_spec, tmp_path, llrflow_command, record_of
):
    for module in LIBRARIES[search["type"]].modules:
        pytest.importorskip(module)
    spec = sweeping(trials=5, search={**search, "round": 2}, scheduler="asha")
    path = write_spec(tmp_path / "spec.yaml", spec, {"evaluate.attacks.pgd": None})
    folder = tmp_path / "out"
    code, _, err = llrflow_command("sweep", path, "--out", folder, "--json", cwd=tmp_path)
    assert code == 0, err
    whole = record_of(folder)
    assert whole["state"] == "finished" and len(whole["trials"]) == 5 and whole["best"] is not None
    times = {run: (folder / "runs" / run / "metrics.jsonl").stat().st_mtime_ns for run in
             [t["run"] for t in whole["trials"]]}  # fmt: skip
    lost = whole["trials"][1]["run"]  # as if it had never been run
    shutil.rmtree(folder / "runs" / lost)
    (folder / "ended" / f"{lost}.json").unlink(missing_ok=True)
    code, _, err = llrflow_command(
        "sweep", path, "--out", folder, "--resume", "--json", "--set", "sweep.trials=7", cwd=tmp_path
    )
    assert code == 0, err
    again = record_of(folder)
    assert [t["run"] for t in again["trials"]][:5] == [t["run"] for t in whole["trials"]] and len(again["trials"]) == 7
    assert again["trials"][1]["rungs"][0] == whole["trials"][1]["rungs"][0]
    for run, time in times.items():
        assert run == lost or (folder / "runs" / run / "metrics.jsonl").stat().st_mtime_ns == time
