"""Methods over seeds: their table, paired tests and picture, and values named by what differs."""

import json
import math
import shutil

import pytest

from llrflow.base.shown import measured, named, telling
from llrflow.report.page import make_report
from llrflow.report.read import read
from llrflow.report.tables import latex, markdown
from llrflow.sweep.tracking.records import SweepRecord

WORST = {"llr": (0.40, 0.44, 0.45), "trades": (0.30, 0.40, 0.38)}


@pytest.fixture
def seeded(swept, studied, rewrite):
    """The sweep's folder with two variants of three seeds, and a third configuration that did not win."""
    record = json.loads((swept / "sweep.json").read_text())
    del record["sha256"]
    trial, configuration = record["trials"][0], record["configurations"][0]
    record |= {"trials": [], "configurations": [], "winners": {"llr": 0, "trades": 1}, "best": 0}
    for number, (variant, values) in enumerate({**WORST, "worse": WORST["trades"]}.items()):
        variant = "llr" if variant == "worse" else variant
        numbers = [3 * number + seed for seed in range(3)]
        weights = {"lambda": float(number)}
        told = {"configuration": number, "variant": variant, "parameters": weights}
        mean, spread = sum(values) / 3, 0.02
        record["configurations"].append({**configuration, **told, "trials": numbers, "mean": mean, "spread": spread})
        for seed, value in enumerate(values):
            run = f"run-{numbers[seed]}"
            record["trials"].append(
                {**trial, **told, "number": numbers[seed], "seed": seed, "run": run, "value": value}
            )
            path = shutil.copytree(studied, swept / "runs" / run) / "evaluation" / "12.json"
            worst = {"accuracy": value, "correct": round(100 * value), "n": 100, "interval": [0.0, 1.0]}
            rewrite(path, worst_case=worst)
    (swept / "sweep.json").write_text(SweepRecord.model_validate(record).model_dump_json())
    return swept


def test_a_report_has_methods_by_attacks_with_deviations_and_paired_tests(seeded):
    report = make_report([seeded])
    tables = {table.name: table for table in report.tables}
    table = tables["sweep-1-methods"]
    made = json.loads((seeded / "runs" / "run-0" / "evaluation" / "12.json").read_text())
    assert table.headings == ["", "n", "nominal", *made["attacks"], "worst case", "test worst_case.accuracy"]
    nominal = f"{made['nominal']['accuracy']:.2%} ± 0.00"
    assert [row[0] for row in table.rows] == ["llr (lambda 0)", "trades (lambda 1)"]
    assert table.rows[0][1:3] == ["3", nominal] and table.rows[0][-2:] == ["43.00% ± 2.65", "43.00% ± 2.00"]
    assert table.rows[1][-2] == "36.00% ± 5.29"
    # Differences 0.10, 0.04, 0.07: mean 0.07, deviation 0.03, t = 0.07 / (0.03 / sqrt(3)) = 7 / sqrt(3) with 2 degrees
    # of freedom, of which the two-sided p is 1 - t / sqrt(t^2 + 2).
    t = 7 / math.sqrt(3)
    p = 1 - t / math.sqrt(t**2 + 2)
    (test,) = tables["sweep-1-tests"].rows
    assert test == ["llr (lambda 0) - trades (lambda 1)", "3", "+0.00", "", "+7.00", f"{p:.2g}"]
    answer = next(line for line in report.answer if line.startswith("Most robust"))
    assert answer.startswith("Most robust over 3 seed(s): llr (lambda 0), 43.00% ± 2.65 in the worst case")
    assert f"next trades (lambda 1), 36.00% ± 5.29 (paired t-test p = {p:.2g}, n = 3)" in answer
    assert not any(name.startswith("results") for name in tables), "one seed does not stand for three"
    assert [run.name for run in read([seeded])[0]] == ["llr, trial 0, seed 0", "trades, trial 3, seed 0"]
    assert "43.00% ± 2.65" in markdown(table) and r"43.00\% $\pm$ 2.65" in latex(table)
    rows = next(picture for picture in report.pictures if picture.name == "sweep-1-methods").rows
    found = [row["value"] for row in rows if row["method"] == "trades (lambda 1)" and row["accuracy"] == "worst case"]
    assert tuple(found) == WORST["trades"]
    configurations = tables["sweep-1-configurations"]
    assert configurations.headings[:2] == ["trials", "worst_case.accuracy"] and "variant" in configurations.headings
    assert configurations.rows[0][:2] == ["0, 1, 2", "43.00% ± 2.00"]


def test_what_lacks_a_seeds_evaluation_or_has_another_is_left_out(seeded, rewrite):
    path = seeded / "runs" / "run-4" / "evaluation" / "12.json"
    rewrite(path, ids_sha256="0" * 64)
    assert len(next(t for t in make_report([seeded]).tables if t.name == "sweep-1-methods").rows) == 1
    shutil.rmtree(path.parent)
    report = make_report([seeded])
    assert len(next(t for t in report.tables if t.name == "sweep-1-methods").rows) == 1
    assert not any(t.name == "sweep-1-tests" for t in report.tables)


def test_values_are_named_by_what_differs():
    at = {"type": "cross_entropy", "at": "clean"}
    llr = {"loss": at, "perturbations": {"llr": {"steps": 2}}, "terms": {"gamma": {"weight": 1}, "slope": {}}}
    pgd = {"loss": {**at, "at": "pgd"}, "perturbations": {"pgd": {"steps": 7}}}
    tell = telling([llr, pgd, llr])
    assert tell(llr) == "loss.at clean, perturbations.llr, terms" and tell(pgd) == "loss.at pgd, perturbations.pgd"
    tell = telling([{"type": "mlp", "widths": [8]}, {"type": "cnn"}])
    assert tell({"type": "mlp", "widths": [8]}) == "type mlp, widths [8]" and tell({"type": "cnn"}) == "type cnn"
    assert telling([llr, {**llr, "terms": {"gamma": {"weight": 4}, "slope": {}}}])(llr) == "terms.gamma.weight 1"
    assert len(telling([{f"a{i}": i for i in range(40)}, {}])({f"a{i}": i for i in range(40)})) == 60
    assert telling([0.5, "x"])(0.123456) == "0.1235"
    assert named({"method": llr, "rate": 0.5}, {"method": telling([llr, pgd])}).endswith("terms, rate 0.5")


def test_accuracies_are_percentages_wherever_they_stand():
    assert measured("attacks.pgd.accuracy", 0.4769) == "47.69%" and measured("objective", 1.23456) == "1.235"
    assert measured("worst_case.accuracy", 0.476852, 0.0312) == "47.69% ± 3.12"
    assert measured("gamma.pgd.mean", 0.5, 0.01234) == "0.5 ± 0.012" and measured("objective", None) == ""
