"""`train.accumulate: auto` in a run: the number of parts is found once."""

import jax

import llrflow
from llrflow.runs.folder import RunFolder
from llrflow.runs.pipeline import session
from llrflow.spec.load import load_spec


def test_a_run_that_goes_on_with_more_devices_keeps_its_parts_and_says_so(load, tmp_path, capsys):
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
    record = RunFolder(tmp_path / "run").record()
    record.model_copy(update={"versions": {**record.versions, "jax": "0.1"}}).write(tmp_path / "run" / "run.json")
    assert not record.stretches
    for _ in range(2):  # the second time all is as it was
        with session(more, tmp_path / "run") as resumed:
            assert resumed.program.spec.train.parts == 2 and len(resumed.program.devices) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goes on from step 2 with")]
    assert len(told) == 1 and f"jax {jax.__version__}, before 0.1; 2 device(s)" in told[0]
    with session(more, tmp_path / "run") as resumed:
        resumed.train()
    record = RunFolder(tmp_path / "run").record()
    (stretch,) = record.stretches
    assert (stretch.step, len(stretch.devices), stretch.versions["jax"]) == (2, 2, jax.__version__)
    assert (len(record.devices), record.versions["jax"]) == (1, "0.1")
    assert load_spec(tmp_path / "run" / "spec.yaml").train.accumulate == 2
    assert [line["step"] for line in resumed.folder.metric_lines()] == [4]
