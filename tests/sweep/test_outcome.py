"""Who wins a sweep, from the records of its trials."""

import datetime

import pytest

from llrflow.runs.folder import RunFolder
from llrflow.sweep.space.trials import sweep_of
from llrflow.sweep.tracking.outcome import finalists, outcome, write
from llrflow.sweep.tracking.records import EscalatedRecord, TrialRecord
from llrflow.sweep.tracking.storage import Storage


def trial(number, value, escalated=None, masked=(), stronger_masked=(), state="finished", configuration=None, seed=0):
    stronger = None
    if escalated is not None:
        stronger = EscalatedRecord(attacks="quick", robust=escalated, masked=list(stronger_masked))
    return TrialRecord(
        number=number,
        configuration=number if configuration is None else configuration,
        seed=seed,
        run=f"run-{number}",
        parameters={"lambda": float(number)},
        state=state,
        step=12,
        steps=12,
        rungs=[],
        value=value,
        nominal=None,
        robust=None,
        gamma=None,
        masked=list(masked),
        escalated=stronger,
        seconds={},
        error=None,
        traceback=None,
    )


@pytest.fixture
def sweep(load, sweeping):
    """sweep(**fields) -> a spec with a sweep."""
    import llrflow

    return lambda **fields: llrflow.load_spec(sweeping(**fields))


def ranked(spec, trials):
    record = outcome(spec, trials, "finished", datetime.datetime.now(datetime.UTC), [])
    return [c.configuration for c in record.configurations], record.best


def test_the_best_by_the_metric_are_attacked_again_and_the_best_of_these_wins(sweep):
    spec = sweep(escalate={"top": 2, "attacks": "quick"})
    found = [
        trial(0, 0.5),
        trial(1, 0.7),
        trial(2, 0.6),
        trial(3, 0.9, masked=["loss_flat"]),
        trial(4, 0.8, state="stopped"),
    ]
    chosen = finalists(sweep_of(spec), found)
    assert [t.number for t in chosen] == [1, 2]
    assert ranked(spec, found) == ([1, 2, 0, 3, 4], 1)
    found[1], found[2] = trial(1, 0.7, escalated=0.3), trial(2, 0.6, escalated=0.4)
    assert [t.number for t in finalists(sweep_of(spec), found)] == [1, 2]  # whatever came of it, no others
    assert ranked(spec, found) == ([2, 1, 0, 3, 4], 2)
    found[2] = trial(2, 0.6, escalated=0.4, stronger_masked=["black_box_wins"])
    assert ranked(spec, found)[1] == 1
    found[1] = trial(1, 0.7, escalated=0.3, stronger_masked=["loss_flat"])
    assert ranked(spec, found)[1] is None, "what was not attacked with the preset cannot win in their place"
    assert finalists(sweep_of(sweep()), found) == []


def test_a_configuration_is_attacked_with_all_its_seeds(sweep, tmp_path):
    spec = sweep(escalate={"top": 1}, seeds=2)
    found = [
        trial(0, 0.6, configuration=0),
        trial(1, 0.4, configuration=0, seed=1),
        trial(2, 0.7, configuration=1),
        trial(3, 0.5, configuration=1, seed=1),
    ]
    assert [t.number for t in finalists(sweep_of(spec), found)] == [2, 3]
    found[2] = trial(2, 0.7, escalated=0.2, configuration=1)
    assert ranked(spec, found) == ([1, 0], 2)
    record = outcome(spec, found, "finished", datetime.datetime.now(datetime.UTC), [])
    assert record.configurations[0].escalated is None  # of one seed only
    for part in found:
        folder = RunFolder(Storage(tmp_path).run(part.run).path)
        folder.path.mkdir(parents=True)
        folder.spec.write_text("llrflow: 1\n")
    write(spec, Storage(tmp_path), record)
    assert "worst case of" not in Storage(tmp_path).best.read_text()
    found[3] = trial(3, 0.5, escalated=0.4, configuration=1, seed=1)
    record = outcome(spec, found, "finished", datetime.datetime.now(datetime.UTC), [])
    assert record.configurations[0].escalated == pytest.approx(0.3)


def test_where_less_is_better_the_stronger_attacks_still_rank_by_accuracy(sweep):
    spec = sweep(metric="objective", escalate={"top": 2})
    found = [trial(0, 1.0, escalated=0.3), trial(1, 2.0, escalated=0.5), trial(2, 3.0)]
    assert [t.number for t in finalists(sweep_of(spec), found)] == [0, 1]
    assert ranked(spec, found) == ([1, 0, 2], 1)
