"""Networks that begin with the arrays of another run or of a file, and layers that stay as they are."""

import json
import shutil

import haiku as hk
import jax
import numpy as np
import pytest

import llrflow
from llrflow.components.registry import make
from llrflow.models.head import head_of
from llrflow.models.network import Network
from llrflow.runs.pipeline import session
from llrflow.runs.start import start_of

RESNET = {"type": "resnet", "widths": [4]}
QUICK = {
    "model": RESNET,
    "objective.terms": None,
    "objective.perturbations": None,
    "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "evaluate.attacks": {"fgsm": {"type": "fgsm"}},
    "train.ema": 0.9,
}
TRUNK = ["stem/*", "stage*", "final_norm/*"]


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """A finished run."""
    return llrflow.run(llrflow.load_spec(tiny(), QUICK), tmp_path_factory.mktemp("source") / "run").path


@pytest.fixture
def tuned(load):
    """tuned(start) -> the spec of 50 steps that begin there, with a frozen trunk."""

    def make(start, **changes):
        frozen = {"train.freeze": TRUNK, "train.freeze_statistics": True, "train.steps": 50, "checkpoint.every": 20}
        return load({**QUICK, **frozen, "model": {**RESNET, "start": start}, **changes})

    return make


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_frozen_trunk_stays_bit_for_bit_while_a_new_head_learns(source, tuned, tmp_path):
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    spec = tuned({"run": str(moved), "head": "new"})
    whole = llrflow.run(spec, tmp_path / "whole")
    began, record = llrflow.load_model(source), json.loads((whole.path / "run.json").read_text())["start"]
    assert (record["path"], record["step"], record["head"]) == (str(moved), 12, "logits")
    for parameters in ("raw", "ema"):
        ended = llrflow.load_model(whole.path, parameters=parameters)
        before, after = leaves(began.variables), leaves(ended.variables)
        assert before.keys() == after.keys() and any("mean_ema" in name for name in before)
        for name in before:
            assert (before[name].tobytes() == after[name].tobytes()) == ("logits" not in name), f"{parameters} {name}"
    lines = (whole.path / "metrics.jsonl").read_bytes()
    assert json.loads(lines.splitlines()[-1])["accuracy"] > json.loads(lines.splitlines()[0])["accuracy"]

    with session(spec, tmp_path / "again") as cut:
        cut.train(until=20)
    shutil.rmtree(moved)  # after its first checkpoint a run needs the other one no more
    resumed = llrflow.run(spec, tmp_path / "again")
    assert (resumed.path / "metrics.jsonl").read_bytes() == lines
    assert leaves(llrflow.load_model(resumed.path).variables).keys() == after.keys()
    for name, array in leaves(llrflow.load_model(resumed.path).variables).items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)


def test_a_run_goes_on_from_what_it_began_with_or_not_at_all(source, tuned, tmp_path):
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    spec = tuned({"run": str(moved)})
    with session(spec, tmp_path / "run"):
        pass  # stopped before its first checkpoint
    shutil.rmtree(moved)
    llrflow.run(tuned({"run": str(source)}, **{"train.steps": 1}), moved)
    with pytest.raises(
        llrflow.SpecError, match=r"start.* = '.*source' holds other arrays than this run began with; put"
    ):
        llrflow.run(spec, tmp_path / "run")


def test_an_exported_model_is_the_start_that_its_run_is(source, tuned, tmp_path):
    from llrflow.runs.export import export_model

    folder, _ = export_model(source, tmp_path / "export")
    of_run, of_file = (start_of(llrflow.compile(tuned(start)), None, False)
                       for start in ({"run": str(source)}, {"npz": str(folder / "weights.npz")}))  # fmt: skip
    assert of_run.record.sha256 == of_file.record.sha256
    with np.load(folder / "weights.npz") as file:
        averages = {name: file[name] for name in file.files if not name.endswith(("/hidden", "/counter"))}
    np.savez(tmp_path / "averages.npz", **averages)
    program = llrflow.compile(tuned({"npz": str(tmp_path / "averages.npz")}))
    state = start_of(program, None, False).into(program.devices.fetch(program.init()))
    for name, held in of_run.model_state.items():
        np.testing.assert_array_equal(state.model_state[name]["average"], held["average"])
        hidden = state.model_state[name]["hidden"] / (1 - 0.9 ** float(state.model_state[name]["counter"]))
        np.testing.assert_array_equal(hidden, held["average"])  # what Haiku makes the next average of


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {**RESNET, "widths": [8]}},
         r"start = '.*run' does not fit resnet: .*logits/w is \[4, 10\], wanted \[8, 10\]; .*and 18 more; name one of"),
        ({"model": {**RESNET, "blocks": 2}}, r"missing: stage0_block1_conv1/w \[3, 3, 4, 4\], .*and \d+ more"),
        ({"model": {**RESNET, "norm": "none"}},
         r"missing: stage0.*conv1/b \[4\], .*; not in this network: final_norm/offset \[1, 1, 1, 4\]"),
        ({"data.name": "synthetic", "data.options": {"height": 8, "width": 8, "channels": 1, "classes": 7}},
         r"logits/b is \[10\], wanted \[7\]; logits/w is \[4, 10\], wanted \[4, 7\]; set `head: new`, which"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_listed(source, load, changes, says):
    changes = {**QUICK, **changes}
    spec = load({**changes, "model": {**changes["model"], "start": {"run": str(source)}}})
    with pytest.raises(llrflow.SpecError, match=says) as caught:
        start_of(llrflow.compile(spec), None, False)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_is_no_start(source, tuned, tmp_path):
    with session(tuned({"run": str(source)}), tmp_path / "cut") as cut:
        cut.train(until=20)
    with pytest.raises(
        llrflow.SpecError, match=r"start\.run = '.*cut' is a run that is interrupted, at step 20 of 50; f"
    ):
        llrflow.run(tuned({"run": str(tmp_path / "cut")}), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    (tmp_path / "other.npz").write_bytes(b"text")
    with pytest.raises(llrflow.SpecError, match=r"start\.npz = '.*other.npz' cannot be read"):
        llrflow.run(tuned({"npz": str(tmp_path / "other.npz")}), tmp_path / "run")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(llrflow.SpecError, match=r"holds weights \(float64\); name its arrays params/MODULE/NAME"):
        llrflow.run(tuned({"npz": str(tmp_path / "other.npz")}), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.freeze": ["stm/*"]}, r"train\.freeze.*'stm/\*' matches no parameter; did you mean 'stem/\*'\?"),
        ({"train.freeze": ["stem/v"]}, r"'stem/v' matches no parameter; did you mean 'stem/w'\?"),
        ({"train.freeze": ["*"]}, r"train\.freeze freezes all 11 parameters; leave out those to train"),
        ({"train.freeze": ["stem/*"]}, r"freeze_statistics = True, but no layer with moving .*; delete it, or freeze"),
        ({"train.freeze": []}, r"train\.freeze_statistics = True, but nothing is frozen; say what"),
        ({"model.start": {"head": "new"}}, r"model\.start needs one of `run` and `npz`; give the folder"),
        ({"model.start": {"npz": "a", "checkpoint": 3}}, r"model\.start\.checkpoint = 3 is of a run, .*; delete it"),
    ],
)
def test_what_cannot_be_frozen_or_begun_with_is_refused(load, changes, says):
    base = {**QUICK, "train.freeze": TRUNK, "train.freeze_statistics": True}
    with pytest.raises(llrflow.SpecError, match=says):
        llrflow.compile(load({**base, **changes}))


@pytest.mark.parametrize(("name", "head"), [("mlp", "linear_2"), ("cnn", "linear_1"), ("resnet", "logits")])
def test_the_head_is_the_layer_that_makes_the_logits(name, head):
    assert (
        head_of(make("model", {"type": name, **({"widths": [10, 10]} if name == "mlp" else {})}), 10, (8, 8, 1)) == head
    )


def test_the_head_of_a_network_that_goes_on_after_its_layers():
    class Scaled(Network):
        def body(self, h, classes, batch_statistics):
            h = hk.Linear(classes, name="before")(hk.Flatten()(h))
            return hk.Linear(classes, name="last")(h) / 2.0

    assert head_of(Scaled(), 10, (8, 8, 1)) == "last"
