"""`llrflow compare`: what differs between two runs, and McNemar's test on the images that both were evaluated on."""

import json
import math
import shutil

import numpy as np
import pytest

import llrflow
from llrflow.data.resident import load_split
from llrflow.report.compare import compare, mcnemar
from llrflow.runs.reevaluate import evaluate_run

CASCADE = {
    "cascade": True,
    "attacks": {
        "fgsm": {"type": "fgsm"},
        "near": {"type": "deepfool", "steps": 3},
        "parts": {"type": "auto_attack", "profile": "rand"},
    },
}


@pytest.fixture(scope="module")
def pair(load, tmp_path_factory):
    """Two finished runs that differ in their seeds, the first with a cascade of attacks besides."""
    folders = [tmp_path_factory.mktemp("pair") / name for name in "ab"]
    for seed, folder in enumerate(folders):
        llrflow.run(load({"seed": seed}), folder)
    evaluate_run(folders[0], attacks=CASCADE)
    return folders


@pytest.fixture
def copies(pair, tmp_path):
    """Copies of both, for the test to harm."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 9), (9, 1), (7, 7), (30, 12)])
def test_the_p_value_is_the_binomial_tail(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True, True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, True, False])
    n, least = only_a + only_b, min(only_a, only_b)
    tail = 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    expected = {"only_a": only_a, "only_b": only_b, "p_value": pytest.approx(min(tail, 1.0), rel=1e-12)}
    assert mcnemar(a, b) == expected


def test_two_seeds(pair, load):
    found = compare(*pair)
    assert found["spec"] == {"seed": {"a": 0, "b": 1}}
    assert (found["data"], found["versions"], found["git"]) == ({}, {}, {})
    assert found["training"]["forward_equivalents"] == {"a": 14, "b": 14}
    assert found["training"]["step"] == {"a": 12, "b": 12} and set(found["training"]["seconds"]["a"]) > {"train"}
    (evaluation,) = found["evaluations"]
    assert evaluation["unpaired"] is None and evaluation["label"] == "" and evaluation["attacks"] == {}
    assert list(evaluation["results"]) == ["nominal", "fgsm", "pgd", "worst case"]
    assert evaluation["gamma"].keys() == {"random", "fgsm", "pgd"}
    split = load_split(load().data, "test")
    images, labels = split.images.astype(np.float32) / 255, split.labels
    right = [np.asarray(llrflow.load_model(folder).predict(images) == labels) for folder in pair]
    assert evaluation["results"]["nominal"]["mcnemar"] == mcnemar(*right)
    for name, result in evaluation["results"].items():
        test, shares = result["mcnemar"], [result[side]["accuracy"] for side in "ab"]
        assert test["only_a"] - test["only_b"] == round((shares[0] - shares[1]) * len(labels)), name
        assert test["only_a"] and test["only_b"]
    for name in ("fgsm", "pgd"):  # without a cascade: correct, and not changed by this attack
        kept = []
        for folder, correct in zip(pair, right, strict=True):
            with np.load(folder / f"evaluation/12.{name}.npz") as stored:
                kept.append(correct & ~stored["wrong"])
        assert evaluation["results"][name]["mcnemar"] == mcnemar(*kept)
    (missing,) = found["missing"]
    assert missing.startswith(f"{pair[1]} has no evaluation -") and "llrflow evaluate" in missing


def test_classes_side_by_side(pair, copies, command, rewrite):
    found = compare(*pair)["evaluations"][0]["classes"]
    records = [json.loads((folder / "evaluation/12.json").read_text())["classes"] for folder in pair]
    assert list(found["accuracy"]) == records[0]["names"]
    for at, name in enumerate(records[0]["names"]):
        for situation in ("nominal", "worst case"):
            shares = {side: made["accuracy"][situation][at] for side, made in zip("ab", records, strict=True)}
            assert found["accuracy"][name][situation] == shares
    for side, made in zip("ab", records, strict=True):
        wrong = sum(n for y, row in made["taken"]["worst case"].items() for p, n in row.items() if p != y)
        assert sum(pair[side] for pair in found["taken"]) == wrong > 0
    first = found["taken"][0]
    assert max(first["a"], first["b"]) == max(max(pair["a"], pair["b"]) for pair in found["taken"])
    lines = [line.split() for line in command("compare", *pair)[1].splitlines()]
    assert [first["class"], "for", first["taken_for"], str(first["a"]), str(first["b"])] in lines
    path = copies[1] / "evaluation/12.json"
    rewrite(path, classes=None)
    assert compare(*copies)["evaluations"][0]["classes"] is None
    assert "nothing by class" in command("compare", *copies)[1]


def test_a_cascade_with_stages_and_a_minimum_norm_attack(pair):
    whole, cascade = sorted(compare(pair[0], pair[0])["evaluations"], key=lambda e: e["label"])
    assert cascade["label"].startswith("-") and cascade["unpaired"] is None  # its counts are those of the certificate
    assert cascade["results"].keys() == {"nominal", "fgsm", "near", "parts", "worst case"}
    for evaluation in (whole, cascade):
        assert all(r["mcnemar"] == {"only_a": 0, "only_b": 0, "p_value": 1.0} for r in evaluation["results"].values())


def test_other_test_images_are_not_paired(copies, rewrite):
    spec = copies[1] / "spec.yaml"
    spec.write_text(spec.read_text().replace("test: test", "test: test[:200]"))
    rewrite(copies[1] / "evaluation/12.json", ids_sha256="0" * 64)
    found = compare(*copies)
    (evaluation,) = found["evaluations"]
    assert found["spec"]["data.test"] == {"a": "test", "b": "test[:200]"} and evaluation["n"] == {"a": 360, "b": 360}
    assert evaluation["unpaired"] == "they were evaluated on different test images"
    assert not any("mcnemar" in result for result in evaluation["results"].values())


def test_only_what_was_attacked_alike_is_tested(copies, rewrite):
    path = copies[1] / "evaluation" / "12.json"
    record = json.loads(path.read_text())
    del record["sha256"]

    def compared(**changes):
        rewrite(path, **{**record, **changes})
        (evaluation,) = (e for e in compare(*copies)["evaluations"] if not e["label"])
        return evaluation["unpaired"], {n for n, result in evaluation["results"].items() if "mcnemar" in result}

    assert compared() == (None, {"nominal", "fgsm", "pgd", "worst case"})
    told, tested = compared(threat={**record["threat"], "epsilon": 0.05})
    assert "different threat models" in told and tested == {"nominal"}
    stronger = {**record["attacks"], "pgd": {**record["attacks"]["pgd"], "attack": {"type": "pgd", "steps": 50}}}
    told, tested = compared(attacks=stronger)
    assert "worst cases" in told and tested == {"nominal", "fgsm", "pgd"}


def test_what_is_missing_is_named_with_its_remedy(command, copies, rewrite):
    a, b = copies
    verdicts = b / "evaluation/12.pgd.npz"
    with np.load(verdicts) as stored:
        arrays = dict(stored)
    changed = {**arrays, "wrong": ~arrays["wrong"]}
    np.savez(verdicts, **changed)
    (evaluation,) = compare(a, b)["evaluations"]
    assert "verdicts of pgd that are not those of the certificate" in evaluation["unpaired"]
    verdicts.write_bytes(b"PK half")
    code, out, _ = command("compare", a, b)
    assert code == 0 and f"no paired test: {verdicts}: is missing or damaged; llrflow evaluate {b}" in out
    (b / "evaluation/12.json").unlink()
    code, out, _ = command("compare", a, b)
    assert code == 0 and f"missing: {b} has no evaluation of step 12: llrflow evaluate {b}" in out
    record = b / "run.json"
    rewrite(record, state="interrupted")
    assert (
        f"missing: {b} is interrupted at step 12 of 12: llrflow run {b}/spec.yaml --out {b}"
        in command("compare", a, b)[1]
    )
    record.unlink()
    code, out, err = command("compare", a, b)
    assert (code, out) == (2, "") and err == f"error: {b}: is not a run folder; name one that `llrflow run` made\n"


def test_what_is_printed(command, pair, monkeypatch):
    monkeypatch.chdir(pair[0].parent)
    other = f"../{pair[1].parent.name}/b"
    found = json.loads(command("compare", "a", other, "--json")[1])
    assert found == {**compare(*pair), "a": "a", "b": other, "missing": found["missing"]}
    code, out, err = command("compare", "a", other)
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    pgd = found["evaluations"][0]["results"]["pgd"]
    wide = max(len(line) for line in out.splitlines() if not line.startswith("missing"))  # that has a path
    assert (code, err) == (0, "") and rows["seed"] == ["seed", "0", "1"] and wide <= 100
    shown = [line.split() for line in out.splitlines() if line.split()[:1] == ["pgd"] and "%" in line]
    test = pgd["mcnemar"]
    assert shown == [
        [
            "pgd",
            *(f"{pgd[side]['accuracy']:.2%}" for side in "ab"),
            f"{pgd['b']['accuracy'] - pgd['a']['accuracy']:+.2%}",
            *(str(test[name]) for name in ("only_a", "only_b")),
            f"{test['p_value']:.3g}",
        ]
    ]
