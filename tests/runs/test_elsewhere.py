"""Evaluations on other prepared datasets: which are meant, that they fit, and that nobody takes them for the spec's."""

import json
import shutil

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import DataError
from llrflow.data.importers import import_files
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.data.writer import write_tfds
from llrflow.report.compare import compare
from llrflow.report.page import make_report
from llrflow.runs.elsewhere import class_names, named_data
from llrflow.runs.folder import RunFolder
from llrflow.runs.reevaluate import evaluate_elsewhere


@pytest.fixture(scope="module")
def others(load, tmp_path_factory):
    """A data directory without digits, but with its test images as CIFAR-10-C has them, and what does not fit."""
    folder, place = tmp_path_factory.mktemp("others") / "c", tmp_path_factory.mktemp("others")
    folder.mkdir()
    test = load_split(load().data, "test")
    images = np.asarray(test.images)
    np.save(folder / "labels.npy", np.tile(test.labels, 5))
    np.save(folder / "none.npy", np.tile(images, (5, 1, 1, 1)))
    np.save(
        folder / "bright.npy",
        np.concatenate([np.clip(images.astype(int) + 40 * s, 0, 255) for s in range(5)]).astype(np.uint8),
    )
    import_files("cifar-c", "digits_c", folder, place)
    some = images[:20], test.labels[:20].astype(np.int64)
    write_tfds(
        "wide", place, {"test": (np.zeros((20, 9, 8, 1), np.uint8), some[1])}, classes=10, description="", source={}
    )
    write_tfds("few", place, {"a": (some[0], some[1] % 3), "b": some}, classes=11, description="", source={})
    return place


@pytest.fixture
def moved(copied, others):
    """The finished run, whose own dataset is not there any more."""
    spec = copied / "spec.yaml"
    own = llrflow.load_spec(spec).data.dir
    spec.write_text(spec.read_text().replace(own, str(others)))
    return copied


def test_which_data_is_meant(others):
    data = Data(name="digits", dir=str(others))

    def titles(*wanted):
        return [other.title for other in named_data(wanted, data)]

    severities = [f"severity_{s}" for s in range(1, 6)]
    assert titles("digits_c/none:severity_3") == ["digits_c/none:severity_3"]
    assert titles("digits_c:*") == [f"digits_c/{c}:{s}" for c in ("bright", "none") for s in severities]
    assert titles("digits_c/none:*") == [f"digits_c/none:{s}" for s in severities]
    assert titles("digits_c/*:severity_2", "digits_c/b*:*_2") == [
        "digits_c/bright:severity_2",
        "digits_c/none:severity_2",
    ]
    assert titles("wide", "few:b[:5]") == ["wide:test", "few:b[:5]"]
    labels = {other.label for other in named_data(["few:b[:5]", "few:b[:50%]", "digits_c:*"], data)}
    assert len(labels) == 12 and not any(set(label) & set("/.:[]*") for label in labels)
    for wrong, says in (
        ("digits_c", "digits_c is prepared in several configs; choose from bright, none"),
        ("digits_c/fog:*", "no config 'fog'"),
        ("digits_c/f*:*", r"no config that matches 'f\*'; choose from bright, none"),
        ("digits_c/none:severity_9", "no split 'severity_9'"),
        ("digits_c/none:test*", "matches no split; choose from severity_1"),
        ("few", "names no split, and there is no test; choose from a, b"),
        ("cifar10_c:*", "'cifar10_c' is not prepared"),
    ):
        with pytest.raises(DataError, match=rf"^--on-data: .*{says}"):
            titles(wrong)


def test_the_same_images_elsewhere_give_the_same_verdicts_and_a_record_beside(moved, finished, command):
    own = json.loads((finished / "evaluation/12.json").read_text())
    before = {path.name: path.read_bytes() for path in (moved / "evaluation").iterdir()}
    code, out, err = command("evaluate", moved, "--on-data", "digits_c/*:severity_2", "--json")
    assert code == 0, err
    found = json.loads(out)["evaluations"]
    assert list(found) == ["digits_c/bright:severity_2", "digits_c/none:severity_2"]
    same = found["digits_c/none:severity_2"]
    for key in ("nominal", "worst_case", "classes"):
        assert same[key] == own[key]
    assert same["gamma"]["pgd"]["mean"] == pytest.approx(own["gamma"]["pgd"]["mean"], rel=1e-4)
    assert same["data"] == {"name": "digits_c", "config": "none", "version": "1.0.0", "split": "severity_2"}
    assert found["digits_c/bright:severity_2"]["nominal"] != own["nominal"] and own["data"] is None
    assert {path.name: path.read_bytes() for path in (moved / "evaluation").iterdir() if "@" not in path.name} == before
    assert (moved / "evaluation/12@digits_c+none+severity_2.json").exists()


def test_nobody_takes_it_for_the_specs_own(moved, command, tmp_path):
    evaluate_elsewhere(moved, ["digits_c/bright:*"], attacks="none")
    evaluate_elsewhere(moved, ["digits_c/bright:severity_5"])
    folder = RunFolder(moved)
    own = folder.evaluations()
    assert list(own) == [12] and own[12].data is None and list(folder.last_evaluations()) == [""]
    records = folder.evaluations_elsewhere()
    assert len(records) == 6 and all(record.data.config == "bright" for record in records.values())
    (row,) = json.loads(command("runs", moved, "--json")[1])
    assert row["nominal"] == own[12].nominal.accuracy
    report = make_report([moved])
    tables = {table.name: table for table in report.tables}
    assert len(tables["results-1"].rows) == 1 and "results-2" not in tables
    clean, attacked = tables["elsewhere-1"], tables["elsewhere-2"]
    if len(clean.rows) == 1:
        clean, attacked = attacked, clean
    shares = [record.nominal.accuracy for record in records.values() if not record.attacks]
    assert clean.headings == ["", "images", "tiny, nominal"] and clean.rows[-1][0] == "mean of 5"
    assert clean.rows[-1][-1] == f"{sum(shares) / 5:.2%}" and len(clean.rows) == 6
    (worst,) = (record.worst_case.accuracy for record in records.values() if record.attacks)
    assert attacked.rows == [["digits_c/bright:severity_5", "360", clean.rows[4][-1], f"{worst:.2%}"]]
    other = shutil.copytree(moved, tmp_path / "other")
    found = compare(moved, other)
    assert [e["label"] for e in found["evaluations"]] == [""] and len(found["elsewhere"]) == 6
    assert all(result["mcnemar"]["p_value"] == 1 for e in found["elsewhere"] for result in e["results"].values())
    code, out, _ = command("compare", moved, other)
    assert code == 0 and sum(line.startswith(" digits_c/") for line in out.splitlines()) == 6
    code, out, _ = command("evaluate", moved, "--on-data", "digits_c/bright:*", "--attacks", "none")
    (mean,) = (line for line in out.splitlines() if "mean of 5" in line)
    assert code == 0 and clean.rows[-1][-1] in mean


def test_data_that_does_not_fit_is_one_line(moved, command):
    before = sorted(path.name for path in (moved / "evaluation").iterdir())
    for wanted, says in (
        ("wide", r"wide:test has images \[9, 8, 1\], the run takes \[8, 8, 1\]"),
        ("few:b", "few:b has 11 classes, the run 10"),
    ):
        with pytest.raises(DataError, match=rf"^--on-data: {says}; name a dataset of the same images and classes"):
            evaluate_elsewhere(moved, ["digits_c/none:severity_1", wanted])
    code, out, err = command("evaluate", moved, "--on-data", "wide")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(path.name for path in (moved / "evaluation").iterdir()) == before


def test_names_of_classes_prepare_nothing(tmp_path):
    assert class_names(Data(name="digits", dir=str(tmp_path / "data"))) is None
    assert not (tmp_path / "data").exists()
