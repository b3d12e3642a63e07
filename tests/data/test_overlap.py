"""Training on test images is told, whatever the split expressions look like."""

import json

import pytest

import llrflow
from llrflow.data.facts import describe
from llrflow.data.schema import Data
from llrflow.data.well_known import describe_or_known
from llrflow.report.page import make_report


@pytest.mark.parametrize(
    ("train", "test", "both"),
    [
        ("train", "test", 0),
        ("train[:80%]", "train[80%:]", 0),
        ("train+test", "test", 360),
        ("test", "test", 360),
        ("train[:100]", "train[90:]", 10),
        ("train[-5:]+train[:5]", "train[:7]+train[1435:]", 7),
        ("train+test[:10]+test[5:20]", "test", 20),
    ],
)
def test_common_rows_are_counted_once(data_dir, train, test, both):
    assert describe(Data(name="digits", dir=str(data_dir), train=train, test=test)).trained_on_test == both


def test_datasets_that_are_not_here_are_told_too(tmp_path):
    known = describe_or_known(Data(name="cifar10", dir=str(tmp_path), train="train+test[50%:]"))
    assert known.source == "table" and known.trained_on_test == 5000
    assert describe_or_known(Data(name="cifar10", dir=str(tmp_path))).warning is None


def test_every_place_tells(command, tiny, write_spec, tmp_path):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"data.train": "train+test[:36]", "evaluate.attacks": {}})
    words = "trained on test images: 36 of 360, so accuracies on them say nothing of new images"
    for verb in ("validate", "plan"):
        code, out, err = command(verb, spec)
        assert code == 0 and f"warning: {words}\n" in out, err
        assert words in json.loads(command(verb, spec, "--json")[1])["warnings"]
    code, out, err = command("run", spec, "--out", tmp_path / "run")
    assert code == 0 and f"warning: {words}\n" in err and words in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trained_on_test"] == 36
    report = make_report([tmp_path / "run"])
    assert f"tiny was {words}." in report.answer
    assert (
        next(table for table in report.tables if table.name == "results-1").rows[0][0]
        == "tiny (trained on test images)"
    )
    assert json.loads(command("runs", tmp_path, "--json")[1])[0]["trained_on_test"] == 36
    assert "(trained on test" in command("runs", tmp_path)[1]


def test_other_runs_are_not_marked(load):
    assert llrflow.compile(load()).facts.warning is None
