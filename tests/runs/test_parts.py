"""`train.accumulate: auto` in a run: the number of parts is found once."""

import llrflow
from llrflow.runs.pipeline import session
from llrflow.spec.load import load_spec


def test_a_run_that_goes_on_with_more_devices_keeps_its_parts(load, tmp_path):
    plain = {"objective.terms": None, "objective.perturbations": None, "evaluate.attacks": {}}
    changes = {**plain, "train.steps": 4, "train.accumulate": "auto"}
    # More than all parameters and half of the batch take, less than the whole does.
    spec = load({**changes, "devices.count": 1, "devices.memory": 60_000})
    with session(spec, tmp_path / "run") as cut:
        assert cut.program.spec.train.parts == 2
        cut.train(until=2)
    assert load_spec(tmp_path / "run" / "spec.yaml").train.accumulate == 2
    more = load({**changes, "devices.count": 2, "devices.memory": 60_000})
    assert llrflow.compile(more).spec.train.parts == 1
    with session(more, tmp_path / "run") as resumed:
        assert resumed.program.spec.train.parts == 2 and len(resumed.program.devices) == 2
        resumed.train()
    assert load_spec(tmp_path / "run" / "spec.yaml").train.accumulate == 2
    assert [line["step"] for line in resumed.folder.metric_lines()] == [4]
