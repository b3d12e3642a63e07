"""Several threats in one evaluation: each as if it were alone, and an image stands if it does within all of them."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

import llrflow
from llrflow.attacks.masking import Flag
from llrflow.report.compare import compare
from llrflow.report.read import read
from llrflow.report.tables import results as results_of
from llrflow.runs import evaluate
from llrflow.runs.folder import RunFolder
from llrflow.runs.printed import print_certificate
from llrflow.runs.reevaluate import attack_share, changed_run, evaluate_run
from llrflow.spec.resolve import make_runs_absolute
from llrflow.spec.source import dump_yaml

L2_ATTACKS = {"ddn": {"type": "ddn", "steps": 5}, "step": {"type": "fgsm"}}
ATTACKS = {"pgd": {"type": "pgd", "steps": 3}, "random_search": {"type": "square", "queries": 5}}
THREATS = {
    "linf": {"norm": "linf", "epsilon": 0.05},
    "small": {"norm": "l2", "epsilon": 0.3, "attacks": L2_ATTACKS},
    "l1": {"norm": "l1", "epsilon": 1.0},
}
BLOCK = {"attacks": ATTACKS, "threats": THREATS, "cascade": True, "checks": {"examples": 0}, "batch_size": 64}


@pytest.fixture(scope="module")
def several(finished, tmp_path_factory):
    """(folder, certificate) of a run that was evaluated within three threats."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("threats") / "run")
    return folder, evaluate_run(folder, attacks=BLOCK).evaluation


def stored(folder):
    """The verdict files of the evaluation within several threats, by attack, as bytes."""
    return {path.name.split(".", 1)[1]: path.read_bytes() for path in folder.glob("evaluation/12-*.*.npz")}


def numbers(record):
    """The certificate without times."""
    found = json.loads(record.model_dump_json())
    for attack in found["attacks"].values():
        del attack["seconds"]
    return {name: value for name, value in found.items() if name not in ("started", "identity")}


def test_the_union_is_what_stands_within_every_threat(several):
    folder, record = several
    arrays = {path.name.split(".", 1)[1][:-4]: dict(np.load(path)) for path in folder.glob("evaluation/12-*.*.npz")}
    correct = arrays["linf.random"]["tried"] > 0
    standing = {}
    for name, own in THREATS.items():
        wrong = [arrays[f"{name}.{attack}"]["wrong"] for attack in own.get("attacks", ATTACKS)]
        standing[name] = correct & ~np.any(wrong, axis=0)
        assert record.threats[name].worst_case.correct == standing[name].sum()
    union = np.all(list(standing.values()), axis=0)
    assert record.worst_case.correct == union.sum() < min(of.sum() for of in standing.values()), "they would be one"
    assert record.worst_case.interval[0] < union.mean() < record.worst_case.interval[1]
    assert list(record.attacks) == [
        *("linf.pgd", "linf.random_search", "small.step", "small.ddn", "l1.pgd", "l1.random_search")
    ]
    # a cascade is one of its threat: what l1 attacks was not thinned out by linf
    assert record.attacks["l1.pgd"].attacked == record.nominal.correct
    assert record.attacks["l1.random_search"].attacked == record.attacks["l1.pgd"].correct
    assert record.classes.accuracy["worst case"] != record.classes.accuracy["l1 worst case"]
    right = sum(a * n for a, n in zip(record.classes.accuracy["worst case"], record.classes.n, strict=True))
    assert right == pytest.approx(union.sum())
    assert record.within == "the union of linf 0.05, l2 0.3, l1 1"


def test_each_threat_is_evaluated_as_if_it_were_alone(several, copied, as_trained):
    spec = llrflow.load_spec(copied / "spec.yaml", {"threat": {"norm": "l1", "epsilon": 1.0}})
    as_trained(copied, dump_yaml(json.loads(spec.model_dump_json())))
    alone = {name: value for name, value in BLOCK.items() if name != "threats"}
    one, record = evaluate_run(copied, attacks=alone).evaluation, several[1]
    for name, made in one.attacks.items():
        theirs = record.attacks[f"l1.{name}"]
        assert made.model_copy(update={"seconds": 0.0}) == theirs.model_copy(update={"seconds": 0.0})
    assert one.worst_case == record.threats["l1"].worst_case
    assert {f"l1.{name}": value for name, value in one.gamma.items()}.items() <= record.gamma.items()


def test_signs_of_masking_are_looked_for_within_every_threat(several, monkeypatch):
    def look(subject, made, report):
        attacks = [attack.registered_as[1] for attack, _ in made]
        return [Flag("sign", subject.threat.norm == "l1", {"epsilon": subject.threat.epsilon}, " ".join(attacks))]

    monkeypatch.setattr(evaluate, "find_flags", look)
    found = evaluate_run(several[0], attacks={**BLOCK, "checks": {"examples": 8}}).evaluation
    assert {name: (flag.measured["epsilon"], flag.meaning) for name, flag in found.flags.items()} == {
        "linf.sign": (0.05, "pgd square"), "small.sign": (0.3, "fgsm ddn"), "l1.sign": (1.0, "pgd square")
    }  # fmt: skip
    assert [flag.name for flag in found.fired] == ["l1.sign"]


@pytest.mark.parametrize("devices", [1, 2])
def test_shares_and_devices_make_the_same_certificate(several, copied, devices):
    if devices == 1:
        for index in range(2):
            attack_share(copied, (index, 2), attacks=BLOCK)
    record = evaluate_run(copied, attacks=BLOCK, devices=devices).evaluation
    assert numbers(record) == numbers(several[1])
    if devices == 1:
        assert stored(copied) == stored(several[0])


def test_attacks_of_a_command_are_made_within_every_threat_of_the_spec(copied, as_trained):
    spec = llrflow.load_spec(copied / "spec.yaml", {"evaluate.threats": {n: THREATS[n] for n in ("linf", "small")}})
    as_trained(copied, dump_yaml(json.loads(spec.model_dump_json())))
    _, changed, _ = changed_run(RunFolder(copied), ATTACKS, None)
    made = changed.evaluate.by_threat(changed.threat)
    assert [(under.name, list(under.attacks)) for under in made] == [("linf", list(ATTACKS)), ("small", list(ATTACKS))]
    _, changed, _ = changed_run(RunFolder(copied), BLOCK, None)
    assert list(changed.evaluate.threats) == list(THREATS) and changed.evaluate.threats["small"].attacks


def test_console_compare_and_report_show_every_threat(several, copied):
    folder, record = several
    evaluate_run(copied, attacks=BLOCK)
    compared = next(made for made in compare(folder, copied)["evaluations"] if made["label"])
    results = compared["results"]
    assert list(results) == list(record.shares) and list(results)[-2:] == ["l1 worst case", "worst case"]
    assert all(share["mcnemar"]["p_value"] == 1.0 for share in results.values()) and compared["unpaired"] is None
    larger = {**THREATS, "l1": {"norm": "l1", "epsilon": 2.0}}
    other = evaluate_run(copied, attacks={**BLOCK, "threats": larger}).evaluation
    assert other.attacked_within != record.attacked_within
    tables = [table for table in results_of(read([folder])[0]) if table.headings[-2] == "l1 worst case"]
    assert len(tables) == 1 and record.within in tables[0].title and len(tables[0].rows[0]) == len(record.shares) + 1
    with io.StringIO() as text:
        print_certificate(record, "title", Console(file=text, width=120))
        lines = text.getvalue().splitlines()
    (line,) = [line for line in lines if "small worst case" in line]
    assert f"{record.threats['small'].worst_case.accuracy:.2%}" in line


L2 = {"norm": "l2", "epsilon": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threats": {"l2": L2}}, "evaluate.threats has one threat; give several"),
        (
            {"threats": {"l2": L2, "l1": {"norm": "l1", "epsilon": 9}}, "attacks.cw": {"type": "carlini_wagner"}},
            r"evaluate.attacks.cw \(attack carlini_wagner\) knows no l1 .* or give evaluate.threats.l1 `attacks`",
        ),
        (
            {"threats": {"l2": L2, "big": {**L2, "attacks": {"d": {"type": "carlini_wagner_linf"}}}}},
            "evaluate.threats.big.attacks.d .* knows no l2 threat",
        ),
        (
            {"threats": {"l2": L2, "big": {**L2, "attacks": {"random": {"type": "fgsm"}}}}},
            r"evaluate.threats.big.attacks.random = 'random' is the name of the noise control",
        ),
        ({"threats": {"l2": L2, "a.b": L2}}, "evaluate.threats"),
        ({"threats": {"l2": L2, "linf": {"epsilon": 8}}}, "evaluate.threats.linf.epsilon = 8.0 is larger than"),
        ({"threats": {"l2": L2, "big": {**L2, "epsilom": 3}}}, "evaluate.threats.big.epsilom"),
    ],
    ids=range(7),
)
def test_what_makes_no_sense_is_one_line(load, changes, message):
    with pytest.raises(llrflow.SpecError, match=message):
        load({f"evaluate.{name}": value for name, value in changes.items()})


def test_a_spec_without_threats_is_the_spec_that_it_was(load):
    assert "threats" not in load().evaluate.model_dump()
    spec = load({"evaluate.threats": THREATS, "evaluate.attacks": ATTACKS})
    found = spec.evaluate.forwards(spec.threat, 10)
    own = sum(a.forwards(spec.threat, 10) for a in spec.evaluate.threats["small"].attacks.values())
    shared = sum(a.forwards(spec.threat, 10) for a in spec.evaluate.attacks.values())
    assert found == 1 + 2 * shared + own


def test_a_transfer_within_a_threat_is_stored_by_absolute_path(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transfer = {"t": {"type": "transfer", "run": "runs/other"}}
    own = {"linf": {"norm": "linf", "epsilon": 0.1}, "l2": {"norm": "l2", "epsilon": 0.5, "attacks": transfer}}
    spec = load({"evaluate.attacks": transfer, "evaluate.threats": own})
    data = json.loads(spec.model_dump_json())["evaluate"]
    make_runs_absolute(spec, whole := {"evaluate": data})
    stored = whole["evaluate"]["attacks"], whole["evaluate"]["threats"]["l2"]["attacks"]
    assert [attacks["t"]["run"] for attacks in stored] == [str(tmp_path / "runs/other")] * 2
