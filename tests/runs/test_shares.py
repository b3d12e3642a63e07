"""Evaluations of a part of the images: shares of workers, which add up to the whole, and random subsets of it."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

import llrflow
from llrflow.base.sealed import sealed, unsealed
from llrflow.data.resident import load_split
from llrflow.data.subset import Subset
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.reevaluate import attack_share, evaluate_run
from llrflow.runs.verdicts import Verdicts

ATTACKS = {
    "step": {"type": "fgsm"},  # the run has been evaluated with one of another name, whose random numbers are others
    "pgd": {"type": "pgd", "steps": 5, "restarts": 2},
    "deepfool": {"type": "deepfool", "steps": 3},
}
HOW = {"attacks": {"attacks": ATTACKS, "batch_size": 64, "cascade": True}}


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """The folder of a run that one process evaluated."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("alone") / "run")
    evaluate_run(folder, **HOW)
    return folder


def verdicts(folder):
    """Verdict files of the evaluation with `HOW`, as bytes, by attack."""
    return {path.name.split(".")[1]: path.read_bytes() for path in folder.glob("evaluation/12-*.*.npz")}


def certificate(folder):
    (path,) = folder.glob("evaluation/12-????????.json")
    record = json.loads(path.read_text())
    del record["started"], record["sha256"]
    for attack in record["attacks"].values():
        del attack["seconds"]
    return record


def test_shares_add_up_to_the_files_of_one_process(alone, copied, monkeypatch):
    attack_share(copied, (0, 2), **HOW)
    assert not list(copied.glob("evaluation/12-*")), "a share is no evaluation"
    evaluate_run(copied)  # another evaluation leaves it alone
    first = {path.name: np.load(path) for path in copied.glob("evaluation/shares/0-of-2/*.npz")}
    searched = []
    search = Evaluator._search
    monkeypatch.setattr(
        Evaluator,
        "_search",
        lambda self, under, name, attack, found: (
            searched.append((name, found.candidates & (found.arrays["tried"] == 0)))
            or search(self, under, name, attack, found)
        ),
    )
    for index in range(3):  # another number of workers takes up what the first ones found
        attack_share(copied, (index, 3), **HOW)
    for name in ATTACKS:
        (known,) = (arrays["tried"] > 0 for file, arrays in first.items() if file.endswith(f".{name}.npz"))
        anew = np.sum([new for attack, new in searched if attack == name], axis=0)
        assert known.any() and anew.any() and anew.max() == 1 and not (anew.astype(bool) & known).any()
    searched.clear()
    evaluate_run(copied, **HOW)
    assert not searched and verdicts(copied) == verdicts(alone) and len(verdicts(alone)) == 4
    assert certificate(copied) == certificate(alone)
    assert not (copied / "evaluation" / "shares").exists()


def test_a_subset_has_the_verdicts_of_the_whole_and_more_images_take_them_up(alone, copied, monkeypatch):
    few = evaluate_run(copied, stop_after=50, **HOW).evaluation
    assert (few.n, few.subset.of, few.described) == (50, 360, "50 of 360 test images, random, seed 0")
    assert few.attacks["pgd"].n == few.classes.n[0] + sum(few.classes.n[1:]) == few.worst_case.n == 50
    whole = {name: np.load(path) for path in alone.glob("evaluation/12-*.*.npz") for name in [path.name.split(".")[1]]}
    before = verdicts(copied)
    for path in copied.glob("evaluation/12-*.*.npz"):
        mine, all_of = np.load(path), whole[path.name.split(".")[1]]
        assert len(mine["ids"]) == 50
        for field in ("wrong", "predicted", "tried", "label", "clean"):
            np.testing.assert_array_equal(mine[field], all_of[field][mine["ids"]])
        np.testing.assert_allclose(mine["loss"], all_of["loss"][mine["ids"]], rtol=1e-5)  # from a start keyed by id
    known = []
    take_up = Verdicts._take_up
    monkeypatch.setattr(
        Verdicts,
        "_take_up",
        lambda self, source: (take_up(self, source), known.append(np.count_nonzero(self.arrays["tried"])))[0],
    )
    more = evaluate_run(copied, stop_after=100, **HOW).evaluation
    assert max(known) > 30 and more.n == 100 and len(verdicts(copied)) == len(before)
    assert len(list(copied.glob("evaluation/12-????????.json"))) == 2, "the smaller one is still there"
    rest = evaluate_run(copied, **HOW).evaluation
    assert rest.subset is None and rest.model_dump(include={"worst_case", "classes"}) == llrflow_record(alone)


def llrflow_record(folder):
    record = certificate(folder)
    classes = record["classes"]
    classes["taken"] = {
        name: {int(true): {int(other): n for other, n in row.items()} for true, row in rows.items()}
        for name, rows in classes["taken"].items()
    }
    record["worst_case"]["interval"] = tuple(record["worst_case"]["interval"])
    return {"worst_case": record["worst_case"], "classes": classes}


def test_which_images_a_subset_has(load):
    split = load_split(load().data, "test")
    drawn = Subset(count=100).ids(split)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all() and drawn.max() > 300
    assert set(drawn) < set(Subset(count=200).ids(split)) and set(drawn) != set(Subset(count=100, seed=1).ids(split))
    np.testing.assert_array_equal(Subset(count=360).ids(split), np.arange(360))
    fair = Subset(count=47, stratified=True)
    counts, sizes = Counter(split.labels[fair.ids(split)].tolist()), Counter(split.labels.tolist())
    assert sum(counts.values()) == 47
    assert all(abs(counts[label] - 47 * n / 360) < 1 for label, n in sizes.items())
    rarest = Subset(count=9, stratified=True).ids(split)
    assert len(rarest) == 9 and max(Counter(split.labels[rarest].tolist()).values()) == 1


def test_a_spec_may_ask_for_a_subset(load, tmp_path, command):
    changes = {"evaluate.images": {"count": 40, "stratified": True, "seed": 3}, "train.steps": 4}
    words = "40 of 360 test images, random by class, seed 3"
    folders = []
    for seed, devices in ((0, 1), (1, 2)):
        spec = load({**changes, "seed": seed, "devices.count": devices})
        folders.append(tmp_path / f"{seed}")
        assert llrflow.run(spec, folders[-1]).evaluation.described == words
    (hashes,) = [{json.loads((f / "evaluation/4.json").read_text())["ids_sha256"] for f in folders}]
    assert len(hashes) == 1, "the images depend on neither seed nor devices"
    _, out, _ = command("compare", *folders)
    assert f"A {words}" in out and "no paired test" not in out
    other = shutil.copytree(folders[0], tmp_path / "other")
    code, out, err = command("evaluate", other, "--stop-after", "20")
    assert code == 0 and out.startswith("20 of 360 test images, random by class, seed 3, linf"), err
    (path,) = other.glob("evaluation/4-????????.json")
    (other / "evaluation/4.json").write_bytes(sealed(unsealed(path.read_bytes(), path.name), "4.json"))
    path.unlink()
    _, out, _ = command("compare", other, folders[1])
    assert "no paired test: they were evaluated on different test images" in out
    _, out, _ = command("runs", tmp_path, "--markdown")
    assert f"({words})" in out and "(20 of 360 test images" in out
    with pytest.raises(llrflow.SpecError, match=r"evaluate.images = 361, but there are 360 test images; ask for fewer"):
        llrflow.run(load({"evaluate.images": 361}), tmp_path / "never")
    assert not (tmp_path / "never").exists()
