"""An exported model: the same logits and gradients without Haiku, and one line for files that are something else."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError
from llrflow.base.files import sha256_file
from llrflow.base.sealed import sealed, unsealed
from llrflow.runs.export import export_model

RESNET = {
    "model": {"type": "resnet", "widths": [4], "norm": "batch"},
    "objective": None,
    "train.steps": 2,
    "evaluate.attacks": None,
}


@pytest.fixture(scope="module")
def normed(load, tmp_path_factory):
    """A run whose network has BatchNorm, and what was exported of it."""
    folder = tmp_path_factory.mktemp("normed") / "run"
    llrflow.run(load(RESNET), folder)
    return folder, export_model(folder)[0]


@pytest.fixture
def exported(finished, tmp_path):
    """A folder with the exported model of the tiny spec."""
    return export_model(finished, tmp_path / "model")[0]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


READ = """
import sys, numpy as np, llrflow
model, images = llrflow.load_exported(sys.argv[1]), np.load(sys.argv[2])
np.save(sys.argv[3], model.logits(images))
loaded = {"haiku", "ray", "orbax"} & set(sys.modules)
assert not loaded, loaded
"""


def test_another_process_gets_the_same_logits_without_haiku(normed, images, tmp_path):
    folder, out = normed
    assert out == folder / "export" and {path.name for path in out.iterdir()} == {
        "logits.stablehlo",
        "weights.npz",
        "model.json",
    }
    np.save(tmp_path / "images.npy", images)
    arguments = [sys.executable, "-c", READ, out, tmp_path / "images.npy", tmp_path / "logits.npy"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logits = llrflow.load_model(folder).logits(images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=1e-6, atol=1e-6)


def test_gradients_attacks_and_any_batch_size(finished, exported, images):
    ours, model = llrflow.load_exported(exported), llrflow.load_model(finished)
    y = np.asarray(model.predict(images))
    for size in (1, 5):
        both = [jax.grad(lambda x, m=m: jnp.sin(m.logits(x)).sum())(images[:size]) for m in (ours, model)]
        np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)
    results = [m.attack(images, y, {"type": "deepfool", "steps": 3}, seed=1) for m in (ours, model)]  # under `vmap`
    np.testing.assert_allclose(results[0].distance, results[1].distance, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(results[0].success, results[1].success)
    line = ours.linearity(images, y, steps=2)  # whose search differentiates what is already differentiated
    assert float(line.gamma.min()) >= 0 and float(jnp.abs(line.delta).max()) <= 0.1501
    gammas = [m.linearity(images, y, line.delta).gamma for m in (ours, model)]
    np.testing.assert_allclose(*gammas, rtol=1e-3, atol=1e-6)
    assert ours.threat == model.threat and ours.classes == 10 and ours.image_shape == (8, 8, 1)


def test_the_record_says_what_it_is(command, finished, tmp_path):
    code, out, err = command("export", finished, "-o", tmp_path / "out", "--checkpoint", 8, "--json")
    shown, evaluation = json.loads(out), json.loads((finished / "evaluation/12.json").read_text())
    assert code == 0 and err == "" and shown.pop("export") == str(tmp_path / "out")
    assert shown == unsealed((tmp_path / "out/model.json").read_bytes(), "model.json")
    assert shown["step"] == 8 and shown["platforms"] == ["cpu", "cuda", "tpu"] and shown["epsilon"] == "0.15"
    assert (
        shown["spec_hash"] == evaluation["spec_hash"]
        and shown["network"] | {"type": "mlp", "widths": [16]} == shown["network"]
    )
    code, out, _ = command("export", finished, "-o", tmp_path / "out")  # over an earlier one
    assert code == 0 and "step 12 of tiny, for cpu, cuda, tpu" in out
    assert llrflow.load_exported(tmp_path / "out").record.network_sha256 == evaluation["network_sha256"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lie(folder, program=b"no program " * 50):
    """A program that is none, with the checksum to match."""

    (folder / "logits.stablehlo").write_bytes(program)
    record = unsealed((folder / "model.json").read_bytes(), "model.json")
    record["files"]["logits.stablehlo"] = sha256_file(folder / "logits.stablehlo")
    (folder / "model.json").write_bytes(sealed(record, "model.json"))


def of_a_later_jax(folder):
    program = (folder / "logits.stablehlo").read_bytes()
    later = re.sub(rb"StableHLO_v1\.\d\d\.", b"StableHLO_v1.99.", program)
    assert later != program and len(later) == len(program)
    lie(folder, later)


DAMAGE = {
    "program": (lambda f: flip(f / "logits.stablehlo"), r"logits\.stablehlo: is not what model\.json describes"),
    "weights": (lambda f: flip(f / "weights.npz"), r"weights\.npz: is not what model\.json describes"),
    "record": (
        lambda f: (f / "model.json").write_text("{}"),
        r"model\.json: name: Field required; it is damaged or of",
    ),
    "newer": (
        lambda f: (f / "model.json").write_text('{"format": 2}'),
        r"model\.json: has format 2, and this version of llrflow reads formats up to 1; install a newer llrflow",
    ),
    "missing": (lambda f: (f / "weights.npz").unlink(), r"weights\.npz: is missing; export the run again"),
    "foreign": (lie, r"logits\.stablehlo: cannot be read by jax"),
    "later": (of_a_later_jax, rf"cannot be read by jax .*: jax {jax.__version__} wrote it; export the run again"),
    "no export": (shutil.rmtree, r"is no exported model; name a folder that `llrflow export` made"),
}


@pytest.mark.parametrize(("harm", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_or_foreign_is_refused_in_one_line(exported, harm, says):
    harm(exported)
    with pytest.raises(CheckpointError, match=says) as caught:
        llrflow.load_exported(exported)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_what_a_killed_export_left_is_removed(finished, tmp_path):
    (tmp_path / ".weights.npz.0a1b2c3d.tmp").write_bytes(b"PK")
    export_model(finished, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"logits.stablehlo", "weights.npz", "model.json"}


def test_a_folder_with_other_files_is_not_written_to(command, finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, out, err = command("export", finished, "-o", tmp_path)
    assert (code, out) == (2, "") and "which is no part of an export; choose an empty or new --out" in err
    assert not (tmp_path / "model.json").exists()
    (tmp_path / "taken/logits.stablehlo").mkdir(parents=True)
    code, out, err = command("export", finished, "-o", tmp_path / "taken")
    assert (code, out, err) == (2, "", f"error: {tmp_path}/taken/logits.stablehlo: Is a directory\n")
