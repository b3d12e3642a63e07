"""A population: what a member becomes that takes over another, and real sweeps of one on a Ray of their own."""

import json
import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.data.facts import describe
from llrflow.program.inputs import Inputs
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.fork import fork
from llrflow.spec.resolve import spec_hash
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.decisions.population import Population
from llrflow.sweep.space.trials import trials_of
from llrflow.sweep.tracking.outcome import trial_record
from llrflow.sweep.tracking.storage import Storage

GAMMA, SLOPE, RATE = "objective.terms.gamma.weight", "objective.terms.slope.weight", "optimizer.learning_rate"
WARMUP = {"type": "warmup_constant_schedule", "init_value": 0.0, "peak_value": 0.01, "warmup_steps": 6}


@pytest.fixture
def population(sweeping, tmp_path):
    """population(**fields of the sweep block) -> (spec, Storage, Population) of four members, rungs at 4, 8, 12."""

    def make(overrides=None, **fields):
        spec = llrflow.load_spec(sweeping(**{"scheduler": {"type": "pbt"}, **fields}), overrides or {})
        storage = Storage(tmp_path)
        return spec, storage, Population(spec, storage, trials_of(spec, describe))

    return make


def columns(trial):
    """The numbers of a trial's training step by name, [steps] each."""
    inputs = Inputs(trial.spec)
    table = np.stack([inputs.at(step) for step in range(12)])
    return {name: table[:, column] for column, name in enumerate(inputs.names)}


def test_a_member_has_the_other_ones_numbers_up_to_the_step_and_its_own_from_there_on(population):
    _, storage, members = population()
    first, other = members.members[0], members.members[2]
    found = members.take_over(0, 2, 4, {"lambda": 0.5})
    assert found is members.members[0] and found.name not in (first.name, other.name)
    assert found.parameters == {"lambda": 0.5, "mu": 0.375}, "what is derived follows"
    ours, theirs = columns(found), columns(other)
    for name, values in ours.items():
        np.testing.assert_array_equal(values[:4], theirs[name][:4], err_msg=name)
        new = {GAMMA: 0.5, SLOPE: 0.375}.get(name)
        np.testing.assert_array_equal(values[4:], theirs[name][4:] if new is None else np.float32(new), err_msg=name)
    assert members.source(0) == (other.name, 4) and members.settled == 4 and members.source(2) is None

    again = members.take_over(3, 0, 8, {"lambda": 0.25})
    weights = columns(again)[GAMMA]
    lambdas = np.float32([other.parameters["lambda"], 0.5, 0.25])
    np.testing.assert_array_equal(weights, lambdas.repeat(4))
    assert members.source(3) == (found.name, 8)
    line = [(part.step, part.source, part.values["lambda"]) for part in members.lines[3]]
    assert line == [(0, None, other.parameters["lambda"]), (4, 2, 0.5), (8, 0, 0.25)]

    # Another driver finds the same, once it is on record.
    assert storage.lines() == {}
    members.keep()
    later = Population(members._spec, storage, list(members._founders.values()))
    assert {n: trial.name for n, trial in later.members.items()} == {n: t.name for n, t in members.members.items()}


def test_a_schedule_inside_goes_on_where_it_is(population):
    peak = {"rate": {"type": "uniform", "low": 0.005, "high": 0.02, "path": f"{RATE}.peak_value"}}
    _, _, members = population({RATE: WARMUP}, parameters=peak)
    old = members.members[1].parameters["rate"]
    rates = columns(members.take_over(0, 1, 4, {"rate": 0.02}))[RATE]
    np.testing.assert_allclose(rates[:4], old * np.arange(4) / 6, rtol=1e-6)
    np.testing.assert_allclose(rates[4:], 0.02 * np.minimum(np.arange(4, 12) / 6, 1), rtol=1e-6)


def test_a_run_that_is_some_members_already_is_not_made_twice(population):
    _, _, members = population()
    before = dict(members.members)
    assert members.take_over(0, 1, 4, dict(before[1].parameters)) is None, "the same values: the other one's own run"
    assert members.take_over(0, 1, 4, {"lambda": 0.5}) is not None
    assert members.take_over(2, 1, 4, {"lambda": 0.5}) is None, "that is what member 0 does now"
    assert members.members[2] is before[2] and members.lines[2][-1].source is None


def test_a_member_whose_founder_is_another_one_now_begins_anew(population, sweeping):
    _, storage, members = population()
    members.take_over(0, 2, 4, {"lambda": 0.5})
    members.keep()
    wider = llrflow.load_spec(sweeping(scheduler={"type": "pbt"}, search={"type": "random", "seed": 1}))
    other = Population(wider, storage, trials_of(wider, describe))
    assert other.settled == 0 and all(len(line) == 1 for line in other.lines.values())


def test_the_record_tells_what_a_member_went_through(population):
    spec, storage, members = population()
    members.take_over(0, 2, 4, {"lambda": 0.5})
    members.keep()
    line = trial_record(spec, storage, members.members[0]).line
    assert [part.source for part in line] == [None, 2] and line[1].run == members.members[0].name


@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_decisions_depend_on_the_seed_and_the_decision_alone(kind, population):
    from llrflow.sweep.decisions.population_schedulers import Takeovers

    spec, _, members = population(scheduler={"type": kind})
    takeovers = Takeovers(spec.sweep, members, lambda trial: {}, print)

    def draws(decision):
        with takeovers.seeded(decision):
            return random.random(), np.random.uniform()

    outside = random.getstate()
    assert draws(1) == draws(1) != draws(2)
    assert random.getstate() == outside
    scheduler = spec.sweep.scheduler.population_scheduler(takeovers)
    assert scheduler._synch and scheduler._perturbation_interval == 1


class OfTune:
    """A trial as Tune's scheduler sees it, waiting."""

    status, checkpoint = "PAUSED", "kept"
    temporary_state = SimpleNamespace(saving_to=None)

    def __init__(self, number, parameters):
        self.config = {"trial": {"number": number, "values": {"lambda": parameters["lambda"]}}}
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)
        self.experiment_tag = self.trial_id = str(number)
        self.last_result = {"training_iteration": 0}

    def is_finished(self):
        return self.status == "TERMINATED"

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag

    def set_config(self, config):
        self.config = config


@pytest.mark.parametrize("ends", ["on_trial_complete", "on_trial_error"])
def test_the_others_do_not_wait_for_a_member_that_has_ended(ends, population):
    from llrflow.sweep.decisions.population_schedulers import Takeovers

    spec, storage, members = population()
    takeovers = Takeovers(
        spec.sweep, members, lambda t: {"number": t.number, "values": t.parameters}, lambda line: None
    )
    scheduler = spec.sweep.scheduler.population_scheduler(takeovers)
    scheduler.set_search_properties("worst_case.accuracy", "max")
    trials = [OfTune(n, members.members[n].parameters) for n in range(4)]
    controller = SimpleNamespace(
        search_alg=None, get_trials=lambda: trials, get_live_trials=lambda: [t for t in trials if not t.is_finished()]
    )
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    trials[3].status = "RUNNING"
    for number in range(3):
        look = {"training_iteration": 1, "worst_case.accuracy": number / 10, "rung": 1, "step": 4}
        assert scheduler.on_trial_result(controller, trials[number], look) in ("PAUSE", "NOOP")
    trials[3].status = "PENDING"  # it has never reported
    assert scheduler.choose_trial_to_run(controller) is trials[3]
    trials[3].status = "RUNNING"
    getattr(scheduler, ends)(controller, trials[3], *([{}] if ends == "on_trial_complete" else []))
    trials[3].status = "TERMINATED"
    assert scheduler.choose_trial_to_run(controller) in trials[:3], "a decision was made, and they go on"
    line = storage.lines()[0]
    assert [(part.step, part.source) for part in line] == [(0, None), (4, 2)], "the worst took over the best"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seeds": 2}, "sweep.seeds = 2, but members of scheduler pbt take over each other's weights"),
        ({"search": {"type": "optuna"}}, "waits for more trials than a round of optuna has"),
        ({"parameters": {RATE: {"type": "grid", "values": [0.1, 0.2]}}}, "gives every value to every draw"),
        (
            {"parameters": {RATE: {"type": "choice", "values": [0.1, 0.2], "when": {"model.type": "mlp"}}}},
            "has no place with scheduler pbt",
        ),
        (
            {"parameters": {RATE: {"type": "choice", "values": [0.1, 0.2]}}, "scheduler": {"type": "pb2"}},
            "has no place in pb2's model of the gains",
        ),
        (
            {"parameters": {"mu": {"type": "derived", "path": SLOPE, "from": GAMMA}}},
            "has nothing that scheduler pbt could change",
        ),
        (
            {"parameters": {"train.batch_size": {"type": "choice", "values": [32, 64]}}},
            "train.batch_size is no number that may change while a trial trains",
        ),
        (
            {"parameters": {"threat.epsilon": {"type": "uniform", "low": 0.1, "high": 0.2}}},
            "threat.epsilon is no number that may change while a trial trains",
        ),
        ({"trials": 1}, "scheduler pbt has one member"),
    ],
)
def test_bad_input(fields, says, sweeping):
    with pytest.raises(SpecError) as caught:
        spec = llrflow.load_spec(sweeping(**{"scheduler": {"type": "pbt"}, **fields}))
        check_trials(spec, trials_of(spec, describe), describe)
    assert says in str(caught.value)


def test_a_fork_is_the_run_up_to_the_step(load, tmp_path):
    source = tmp_path / "source"
    llrflow.run(load({"evaluate.attacks.pgd": None, "checkpoint.keep": 3}), source)
    spec = load(
        {"evaluate.attacks.pgd": None, "checkpoint.keep": 3, GAMMA: {"type": "piecewise", "pieces": {0: 0.2, 8: 0.7}}}
    )
    digest = spec_hash(llrflow.compile(spec).spec)
    fork(RunFolder(source), Checkpoints(source / "checkpoints"), 8, spec, digest, tmp_path / "fork")
    record = RunFolder(tmp_path / "fork").record()
    assert record.step == 8 and record.forked.step == 8 and record.forked.run == "source" and record.seconds == {}
    lines = [line["step"] for line in RunFolder(tmp_path / "fork").metric_lines()]
    assert lines == [4, 8] and not (tmp_path / "fork" / "evaluation").exists()
    went_on = llrflow.run(spec, tmp_path / "fork")
    alone = llrflow.run(spec, tmp_path / "alone")
    assert (tmp_path / "fork" / "metrics.jsonl").read_text() == (tmp_path / "alone" / "metrics.jsonl").read_text()
    assert went_on.evaluation.network_sha256 == alone.evaluation.network_sha256
    assert alone.record.forked is None
    with pytest.raises(FileNotFoundError):
        fork(RunFolder(source), Checkpoints(source / "checkpoints"), 7, spec, digest, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def assert_replayed(trial, folder, tmp_path):
    """Its spec alone, from step 0, gives the same numbers."""
    mine = folder / "runs" / trial["run"]
    again = llrflow.run(llrflow.load_spec(mine / "spec.yaml"), tmp_path / trial["run"])
    assert (mine / "metrics.jsonl").read_text() == (again.path / "metrics.jsonl").read_text()
    ours = json.loads((mine / "evaluation" / f"{trial['steps']}.json").read_text())
    assert ours["network_sha256"] == again.evaluation.network_sha256


@pytest.fixture(scope="module")
def bred(sweeping, write_spec, tmp_path_factory, llrflow_command, record_of):
    """(folder, its record, standard error) of a population of four that decides at steps 4 and 8 of 12."""
    path = tmp_path_factory.mktemp("bred") / "spec.yaml"
    block = {"scheduler": {"type": "pbt"}, "trackers": {"tensorboard": {}}}
    write_spec(path, sweeping(**block), {"evaluate.attacks.pgd": None})
    code, _, err = llrflow_command("sweep", path, "--out", path.parent / "out", cwd=path.parent)
    assert code == 0, err
    return path.parent / "out", record_of(path.parent / "out"), err


@pytest.mark.long
def test_weights_are_copied_and_on_record(bred, tmp_path):
    folder, record, err = bred
    assert [(trial["state"], trial["step"]) for trial in record["trials"]] == [("finished", 12)] * 4
    heirs = [trial for trial in record["trials"] if len(trial["line"]) > 1]
    assert heirs and all(part["step"] in (4, 8) for trial in heirs for part in trial["line"][1:])
    for trial in heirs:
        last, before = trial["line"][-1], trial["line"][-2]
        assert f"trial {trial['number']} takes over trial {last['source']} at step {last['step']}, with lambda" in err
        run, source = (folder / "runs" / name for name in (trial["run"], before["run"]))
        assert json.loads((run / "run.json").read_text())["forked"] == {"run": before["run"], "step": last["step"]}
        logged = [[line for line in RunFolder(f).metric_lines() if line["step"] <= last["step"]] for f in (run, source)]
        assert logged[0] == logged[1] != []
        assert [look["step"] for look in trial["rungs"]] == [4, 8, 12]
        assert_replayed(trial, folder, tmp_path)  # its weights are those that its own spec leads to
    assert not (folder / "pinned").exists()


@pytest.mark.long
def test_trackers_are_shown_each_run_that_a_member_was(bred, events_in):
    folder, record, _ = bred
    for trial in record["trials"]:
        numbers, parameters, _ = events_in(folder / "tensorboard" / trial["run"])
        assert parameters["lambda"] == trial["parameters"]["lambda"]
        looks = [(step, value) for step, tag, value in numbers if tag == "gamma.pgd.mean"]
        own = [look for look in trial["rungs"] if look["step"] > trial["line"][-1]["step"]]
        assert looks == [(look["step"], look["gamma.pgd.mean"]) for look in own]


@pytest.mark.long
def test_the_best_member_is_a_spec_of_its_own_and_members_share_the_compiled_step(bred):
    folder, record, _ = bred
    best = record["trials"][record["best"]]
    assert best["value"] == max(trial["value"] for trial in record["trials"])
    program = llrflow.compile(llrflow.load_spec(folder / "best.yaml", {"devices.count": 1}))
    assert best["run"] == f"tiny-{spec_hash(program.spec)}"
    for worker in record["workers"]:
        assert set(worker["step_compilations"].values()) <= {1}


@pytest.mark.long
def test_a_killed_driver_changes_nothing(sweeping, write_spec, start, tmp_path, llrflow_command, record_of):
    changes = {"evaluate.attacks.pgd": None, "train.steps": 60, "sweep.rung.every": 10}
    path = write_spec(tmp_path / "spec.yaml", sweeping(scheduler={"type": "pbt"}), changes)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(["sweep", path, "--out", killed], tmp_path)
    try:
        end = time.monotonic() + 200
        while not any(line[-1].step >= 20 for line in Storage(killed).lines().values()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    for folder, arguments in ((killed, ["--resume"]), (whole, [])):
        code, _, err = llrflow_command("sweep", path, "--out", folder, *arguments, cwd=tmp_path)
        assert code == 0, err
    ours, theirs = record_of(killed), record_of(whole)
    for mine, other in zip(ours["trials"], theirs["trials"], strict=True):
        assert {**mine, "seconds": None} == {**other, "seconds": None}
        lines = [(folder / "runs" / mine["run"] / "metrics.jsonl").read_text() for folder in (killed, whole)]
        assert lines[0] == lines[1]


@pytest.mark.long
def test_a_lost_checkpoint_is_trained_again(bred, write_spec, sweeping, tmp_path, llrflow_command, record_of):
    folder, record, _ = bred
    copy = shutil.copytree(folder, tmp_path / "copy")
    heir = next(trial for trial in record["trials"] if len(trial["line"]) > 1)
    shutil.rmtree(copy / "runs" / heir["run"])
    path = write_spec(tmp_path / "spec.yaml", sweeping(scheduler={"type": "pbt"}), {"evaluate.attacks.pgd": None})
    code, _, err = llrflow_command("sweep", path, "--out", copy, "--resume", cwd=tmp_path)
    assert code == 0, err
    mine = record_of(copy)["trials"][heir["number"]]
    assert mine["run"] == heir["run"] and mine["state"] == "finished" and mine["value"] == heir["value"]


@pytest.mark.long
def test_population_bandits(sweeping, write_spec, tmp_path, llrflow_command, record_of):
    path = write_spec(tmp_path / "spec.yaml", sweeping(scheduler={"type": "pb2"}), {"evaluate.attacks.pgd": None})
    code, _, err = llrflow_command("sweep", path, "--out", tmp_path / "out", cwd=tmp_path)
    assert code == 0, err
    trials = record_of(tmp_path / "out")["trials"]
    assert {trial["state"] for trial in trials} == {"finished"}
    heirs = [trial for trial in trials if len(trial["line"]) > 1]
    assert heirs and all(0.01 <= trial["parameters"]["lambda"] <= 1 for trial in heirs)
    assert_replayed(heirs[0], tmp_path / "out", tmp_path)
