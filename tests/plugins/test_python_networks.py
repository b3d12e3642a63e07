"""Networks of Equinox, Flax NNX and plain functions: they train as llrflow's own do."""

import json
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import LlrflowError
from llrflow.program.compiled import Key
from llrflow.program.state import Batch
from llrflow.runs.export import export_model, load_exported
from llrflow.spec.resolve import spec_hash

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
NAMES = {"plain": "plain:network", "equinox": "with_equinox:cnn", "flax": "with_flax:cnn"}


def of_page(name, folder):
    """The path of a file that docs/networks.md writes, in a folder."""
    block = re.search(rf"^    # {re.escape(name)}\n((?:    .*\n|\n)+?)\n*(?=    # |\S)", PAGE, re.MULTILINE)
    path = folder / name
    path.write_text(textwrap.dedent(block[1]))
    return path


@pytest.fixture
def passes(load):
    """passes(changes, steps) -> the state of the network after so many steps on random images."""

    def run(changes, steps):
        program = llrflow.compile(load(changes))
        rng, state = np.random.default_rng(0), program.init()
        for step in range(steps):
            images, labels = rng.integers(0, 256, (64, 8, 8, 1), np.uint8), rng.integers(0, 10, 64, np.int32)
            state, _ = program.train_step(state, Batch(images, labels, np.arange(64, dtype=np.int32)), step)
        return program.devices.fetch(state).model_state["network/state"]

    return run


@pytest.fixture
def changes(tmp_path):
    """changes(library, more) -> what makes the tiny spec one of a network of the page, with no attacks."""

    def made(library, more):
        call = NAMES[library]
        file = of_page(f"{call.partition(':')[0]}.py", tmp_path)
        model = {"type": "python", "call": call, "arguments": {"width": 8}}
        return {"plugins": [str(file)], "model": model, "evaluate.attacks": {}, **more}

    return made


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["equinox", "flax"])
def test_a_network_learns_under_llr_and_goes_on_after_a_kill_bit_for_bit(
    library, changes, tiny, write_spec, tmp_path, start, wait_for
):
    pytest.importorskip(library)
    more = {"train.steps": 100, "train.log_every": 10, "checkpoint.every": 20, "devices.count": 2}
    spec = write_spec(tmp_path / "spec.yaml", tiny(), changes(library, more))
    killed = tmp_path / "killed"
    process = start(["run", spec, "--out", killed], tmp_path)
    try:
        wait_for(killed / "checkpoints" / "manifests" / "20.json", process)
    finally:
        process.kill()
        process.communicate()
    assert json.loads((killed / "run.json").read_text())["step"] < 100
    again = llrflow.run(llrflow.load_spec(spec), killed)
    llrflow.run(llrflow.load_spec(spec), tmp_path / "whole")
    assert lines(killed) == lines(tmp_path / "whole")
    assert lines(killed)[-1]["loss"] < 0.5 * lines(killed)[0]["loss"]
    assert again.evaluation.nominal.accuracy > 0.85  # with the moving statistics that training left
    models = [llrflow.load_model(folder) for folder in (killed, tmp_path / "whole")]
    for ours, other in zip(*(jax.tree.leaves(model.variables) for model in models), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_plain_function_is_frozen_averaged_decayed_exported_and_a_start(changes, load, tmp_path):
    more = {
        "train.steps": 8,
        "train.freeze": ["hidden/*"],
        "train.ema": 0.5,
        "optimizer": {"type": "adamw", "learning_rate": 0.0, "weight_decay": 0.1, "decayed": "weights"},
    }
    first = tmp_path / "first"
    llrflow.run(load(changes("plain", more)), first)
    model = llrflow.load_model(first, parameters="ema")
    assert model.params["hidden"]["w"].shape == (64, 8)
    folder, record = export_model(first)
    exported = load_exported(folder)
    assert set(exported.weights) == {f"params/{part}/{name}" for part in ("hidden", "logits") for name in "wb"}
    assert record.network["call"] == "plain:network"
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(exported.logits(images), model.logits(images), atol=1e-6)

    begun = {**more, "train.steps": 1, "optimizer.learning_rate": 0.1, "train.ema": None}
    begun["model.start"] = {"run": str(first)}
    llrflow.run(load(changes("plain", begun)), tmp_path / "second")
    second = llrflow.load_model(tmp_path / "second")
    for name in "wb":
        np.testing.assert_array_equal(second.params["hidden"][name], model.params["hidden"][name])
    moved = np.abs(second.params["logits"]["w"] - model.params["logits"]["w"])
    assert 0.05 < moved.max() < 0.2  # a step of Adam, from where the first ended


COUNTING = """
import jax.numpy as jnp

def network(classes, image_shape):
    def init(key):
        return {"w": jnp.zeros((image_shape[0], classes))}, {"seen": jnp.zeros(()), "passes": jnp.zeros((), int)}

    def apply(params, state, images, batch_statistics):
        logits = images.mean((2, 3)) @ params["w"]
        seen = {"seen": images.mean(), "passes": state["passes"] + 1}
        return logits, seen if batch_statistics else state

    return init, apply
"""


def test_a_state_is_that_of_all_devices_after_one_pass_a_step(passes, tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    changes = {"plugins": [str(tmp_path / "counting.py")], "model": {"type": "python", "call": "counting:network"}}
    one, two = (passes({**changes, "devices.count": devices}, 2) for devices in (1, 2))
    assert one["passes"] == two["passes"] == 2
    np.testing.assert_allclose(two["seen"], one["seen"], rtol=1e-6)


def test_a_changed_file_is_another_network(passes, load, tmp_path):
    file, found = tmp_path / "counting.py", {}
    changes = {"plugins": [str(file)], "model": {"type": "python", "call": "counting:network"}}
    for text in (COUNTING, COUNTING.replace("+ 1", "+ 5")):
        file.write_text(text)
        found[spec_hash(load(changes))] = int(passes(changes, 1)["passes"])
    assert list(found.values()) == [1, 5]


WRONG = {
    "returns a dict, no pair of functions; return (init, apply)": ("    return init, apply", "    return {}"),
    "failed at": ("images.mean((2, 3))", "images.mean((2, 7))"),
    "has logits float32[1, 8, 8, 1]; return [1, 10]": ("return logits, seen", "return images, seen"),
    "leaves the state ['network/state']['passes']": ('{"seen": images.mean(), "passes"', '{"passes"'),
    "params that cannot be int32: network/w": ("(image_shape[0], classes)", "(image_shape[0], classes), int"),
    "has 2 arrays at network/w": ('return {"w":', 'return {"network": {"w": jnp.ones(2)}, "w":'),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_a_function_does_wrong_is_one_line(says, load, tmp_path):
    assert COUNTING.count(WRONG[says][0]) == 1
    (tmp_path / "counting.py").write_text(COUNTING.replace(*WRONG[says]))
    changes = {"plugins": [str(tmp_path / "counting.py")], "model": {"type": "python", "call": "counting:network"}}
    with pytest.raises(LlrflowError, match=re.escape(says)) as raised:
        llrflow.compile(load(changes))
    assert "\n" not in str(raised.value) and "counting:network" in str(raised.value)


REFUSED = {
    "is no plugin of this spec": {"plugins": []},
    "did you mean 'network'?": {"model": {"type": "python", "call": "counting:netwrk"}},
    "is no `PLUGIN:function`": {"model": {"type": "python", "call": "network"}},
    "computes in what it was written for": {"train.precision": "bfloat16"},
    "needs statistics of the averaged parameters": {"train.ema": 0.9},
    "which only its passes know to update": {"train.batch_norm.terms": "clean"},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_such_a_network_cannot_have_is_refused(says, load, tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    changes = {"plugins": [str(tmp_path / "counting.py")], "model": {"type": "python", "call": "counting:network"}}
    with pytest.raises(LlrflowError, match=re.escape(says)):
        llrflow.compile(load({**changes, **REFUSED[says]}))


KEEPING = """
import haiku as hk
import jax.numpy as jnp
from llrflow.plugin import Logits, Network, register
@register("model", "keeping")
class Keeping(Network):
    def body(self, h, classes, batch_statistics):
        h = hk.BatchNorm(True, True, 0.9, cross_replica_axis="devices" if batch_statistics else None)(
            h.mean((1, 2)), is_training=batch_statistics
        )
        seen = hk.get_state("seen", (), init=jnp.zeros)
        hk.set_state("seen", seen + 1)
        return Logits(classes)(h)
"""


def test_a_state_beside_batch_norm_is_one_of_its_own(load, tmp_path):
    (tmp_path / "keeping.py").write_text(KEEPING)
    changes = {"plugins": [str(tmp_path / "keeping.py")], "model": {"type": "keeping"}, "train.ema": 0.9}
    with pytest.raises(LlrflowError, match="needs statistics of the averaged parameters"):
        llrflow.compile(load(changes))


def test_the_compiled_program_is_of_the_code_that_was_imported(load, tmp_path):
    file = tmp_path / "counting.py"
    file.write_text(COUNTING)
    spec = load({"plugins": [str(file)], "model": {"type": "python", "call": "counting:network"}})
    program = llrflow.compile(spec)

    def key():
        return Key(program.spec, program.facts, program.devices, ())

    before = key()
    file.write_text(COUNTING.replace("+ 1", "+ 5"))
    assert key() == before
    file.unlink()
    assert key() == before


def test_the_spec_of_the_page(command, repository, data_dir, tmp_path):
    (tmp_path / "specs").symlink_to(repository / "specs")
    of_page("plain.py", tmp_path)
    spec = of_page("plain.yaml", tmp_path)
    code, out, err = command("validate", spec, "--set", f"data.dir={data_dir}")
    assert code == 0, out + err
