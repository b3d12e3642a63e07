"""Somebody's weights as a run folder, without PyTorch: files of every format, what does not fit, what is refused."""

import io
import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import llrflow
from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.sealed import unsealed
from llrflow.runs.export import export_model
from llrflow.runs.importing import import_model, known_layouts
from llrflow.runs.reevaluate import evaluate_run
from llrflow.weights.layout import Layout
from llrflow.weights.read import _chosen, read_weights
from llrflow.weights.safetensors import safetensors_bytes

MODEL = {"type": "wide_resnet", "depth": 10, "width": 1, "mean": [0.5], "std": [0.25]}


@pytest.fixture(scope="module")
def spec(tiny, write_spec, tmp_path_factory):
    """Path of the spec of a small wide residual network on digits, with momentum and averaged parameters."""
    changed = {"model": MODEL, "objective": None, "train.ema": 0.9}
    changed["evaluate.attacks"] = {"fgsm": {"type": "fgsm"}}
    return write_spec(tmp_path_factory.mktemp("spec") / "wrn.yaml", tiny(), changed)


def wide_resnet():
    """The state_dict of RobustBench's WideResNet-10-1, of random numbers."""
    rng, weights = np.random.default_rng(0), {}

    def conv(name, out, into, size):
        weights[f"{name}.weight"] = rng.normal(0, (2 / (into * size**2)) ** 0.5, (out, into, size, size))

    def norm(name, channels):
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.3, 0.3), ("running_mean", -0.3, 0.3)):
            weights[f"{name}.{part}"] = rng.uniform(low, high, channels)
        weights[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels)
        weights[f"{name}.num_batches_tracked"] = np.int64(7) * np.ones((), np.int64)

    conv("conv1", 16, 1, 3)
    for block, (into, out) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
        at = f"block{block}.layer.0"
        norm(f"{at}.bn1", into)
        conv(f"{at}.conv1", out, into, 3)
        norm(f"{at}.bn2", out)
        conv(f"{at}.conv2", out, out, 3)
        if into != out:
            conv(f"{at}.convShortcut", out, into, 1)
    norm("bn1", 64)
    weights |= {"fc.weight": rng.normal(0, 0.1, (10, 64)), "fc.bias": rng.normal(0, 0.1, 10)}
    return {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in weights.items()}


def logits(weights, images):
    """What PyTorch computes of it: channels first, as many zeros on either side."""

    def conv(x, name, stride, around):
        w = weights[f"{name}.weight"]
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(around, around)] * 2)

    def activated(x, name):
        scale, bias, mean, var = (
            weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return jax.nn.relu((x - mean) / np.sqrt(var + 1e-5) * scale + bias)

    x = conv((images.transpose(0, 3, 1, 2) - 0.5) / 0.25, "conv1", 1, 1)
    for block, stride in ((1, 1), (2, 2), (3, 2)):
        at = f"block{block}.layer.0"
        out = activated(x, f"{at}.bn1")
        x = conv(out, f"{at}.convShortcut", stride, 0) if block > 1 else x
        x = x + conv(activated(conv(out, f"{at}.conv1", stride, 1), f"{at}.bn2"), f"{at}.conv2", 1, 1)
    return np.asarray(activated(x, "bn1").mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"])


@pytest.fixture(scope="module")
def weights():
    return wide_resnet()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "wrn.safetensors"
    path.write_bytes(safetensors_bytes({f"module.{n}": a for n, a in weights.items()}, {"format": "pt"}))
    return path


@pytest.fixture(scope="module")
def run(file, spec, tmp_path_factory):
    """A run folder that was imported, and evaluated."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    import_model(file, spec, folder)
    evaluate_run(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((5, 8, 8, 1), np.float32)


def test_the_network_is_theirs(run, weights, images):
    right = logits(weights, images)
    assert np.ptp(right) > 0.5
    np.testing.assert_allclose(llrflow.load_model(run).logits(images), right, atol=1e-4)


def test_the_folder_says_where_it_comes_from(run, file, spec, command):
    record = unsealed((run / "run.json").read_bytes(), "run.json")
    imported = record["imported"]
    assert (record["state"], record["step"], record["steps"], imported["path"]) == ("finished", 0, 0, str(file))
    assert imported["layout"] == "RobustBench WideResNet"
    assert imported["set"] == {"model.padding": "torch", "model.activation": "relu"}
    code, out, _ = command("runs", run, "--json")
    (row,) = json.loads(out)["runs"] if isinstance(json.loads(out), dict) else json.loads(out)
    assert row["state"] == "imported" and row["evaluated"] == 0 and row["nominal"] is not None
    code, out, _ = command("tail", run)
    assert code == 0 and f"imported from {file}" in out
    code, _, err = command("report", run, "-o", run.parent / "page.html")
    assert code == 0 and "was not trained here: it was imported from" in err


def test_others_begin_with_it_and_it_is_exported_but_not_trained_over(run, spec, images, load, command, tmp_path):
    before = (run / "run.json").read_bytes()
    stored = ["run", run / "spec.yaml", "--out", run]
    code, _, err = command(*stored)
    assert code == 2 and "holds a network that was imported from" in err and "model.start.run=" in err
    assert (run / "run.json").read_bytes() == before
    model = llrflow.load_model(run)
    folder, _ = export_model(run, tmp_path / "export")
    np.testing.assert_allclose(llrflow.load_exported(folder).logits(images), model.logits(images), atol=1e-5)
    block = {**MODEL, "padding": "torch", "activation": "relu", "start": {"run": str(run)}}
    few = {"model": block, "objective": None, "train.steps": 1, "evaluate.attacks": None}
    few["optimizer"] = {"type": "sgd", "learning_rate": 0.0}
    trained = llrflow.run(load(few), tmp_path / "trained")
    began = llrflow.load_model(trained.path)
    np.testing.assert_array_equal(began.params["logits"]["w"], model.params["logits"]["w"])


def test_our_own_export_comes_back(run, spec, images, tmp_path):
    folder, _ = export_model(run, tmp_path / "export")
    fields = {"model.padding": "torch", "model.activation": "relu"}
    record = import_model(folder / "weights.npz", spec, tmp_path / "back", changes=fields)
    assert record.imported.layout == "llrflow"
    both = (llrflow.load_model(f).logits(images) for f in (run, tmp_path / "back"))
    np.testing.assert_array_equal(*both)
    held = read_weights(folder / "weights.npz")
    np.savez(tmp_path / "double.npz", **{n: a.astype(np.float64) for n, a in held.items()})
    import_model(tmp_path / "double.npz", spec, tmp_path / "double", changes=fields)
    again = llrflow.load_model(tmp_path / "double")
    assert {a.dtype for a in jax.tree.leaves(again.params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(again.logits(images), llrflow.load_model(run).logits(images))
    np.savez(tmp_path / "text.npz", **{**held, "params/logits/b": held["params/logits/b"].astype(str)})
    with pytest.raises(CheckpointError, match=r"params/logits/b holds <U32, no numbers"):
        import_model(tmp_path / "text.npz", spec, tmp_path / "text", changes=fields)


def haiku_file(path, weights):
    """DeepMind's names and format, of the arrays of RobustBench's."""
    layouts, params, state = known_layouts(), {}, {}
    ours = layouts["RobustBench WideResNet"].names
    assert ours.keys() == layouts["DeepMind WideResNet (Haiku)"].names.keys()
    norms = {"weight": "scale", "bias": "offset"}
    for name, array in weights.items():
        base, _, leaf = name.rpartition(".")
        if base.startswith("block"):
            block, _, _, part = base.split(".")
            part = {"convShortcut": "shortcut"}.get(
                part
            ) or f"{part[:-1].replace('bn', 'batchnorm')}_{int(part[-1]) - 1}"
            base = f"resnet_lay_{int(block[5:]) - 1}_block_0/~/{part}"
        else:
            base = {"conv1": "init_conv", "bn1": "batchnorm", "fc": "logits"}[base]
        module = f"wide_res_net/~/{base}"
        if leaf.startswith("running"):
            held = {"average": array[None, None, None], "counter": np.int32(5), "hidden": array[None, None, None]}
            state[f"{module}/~/{leaf[8:]}_ema"] = held
        elif array.ndim == 4:
            params[module] = {"w": array.transpose(2, 3, 1, 0)}
        elif array.ndim == 2:
            params.setdefault(module, {})["w"] = array.T
        elif "batchnorm" in module and array.ndim:
            params.setdefault(module, {})[norms[leaf]] = array[None, None, None]
        elif array.ndim:
            params.setdefault(module, {})["b"] = array
    content = np.empty(2, object)
    content[:] = [params, state]
    np.save(path, content, allow_pickle=True)


def test_haiku_parameters_as_deepmind_published_them(weights, spec, images, tmp_path):
    haiku_file(tmp_path / "params.npy", weights)
    changes = {"model.activation": "relu", "model.padding": "torch"}  # to compare with the same reference
    record = import_model(tmp_path / "params.npy", spec, tmp_path / "run", changes=changes)
    assert record.imported.layout == "DeepMind WideResNet (Haiku)"
    found = llrflow.load_model(tmp_path / "run").logits(images)
    np.testing.assert_allclose(found, logits(weights, images), atol=1e-4)


def torch_file(path, held, extra=None, claim=None, order="little"):
    """A file as `torch.save` writes it, of arrays; `claim` is (offset, size, stride) of each in its storage."""
    fake, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    storages = []

    class Storage:
        pass

    class FloatStorage:
        pass

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("it was run")

    for made, module in ((FloatStorage, "torch"), (_rebuild_tensor_v2, "torch._utils")):
        made.__module__, made.__qualname__ = module, made.__name__
    fake.FloatStorage, utils._rebuild_tensor_v2 = FloatStorage, _rebuild_tensor_v2

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            storage = Storage()
            storage.key, storage.array = str(len(storages)), self.array
            storages.append(storage)
            whole = 0, self.array.shape, tuple(step // 4 for step in self.array.strides)
            return _rebuild_tensor_v2, (storage, *(claim or whole), False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return "storage", FloatStorage, thing.key, "cpu", thing.array.size
            return None

    buffer = io.BytesIO()
    floats = {n: Tensor(a) for n, a in held.items() if a.dtype == np.float32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", fake)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(buffer, 2).dump({"state_dict": floats, "epoch": 3, **(extra or {})})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", buffer.getvalue())
        archive.writestr("net/byteorder", order)
        for storage in storages:
            archive.writestr(f"net/data/{storage.key}", storage.array.tobytes())


def test_pytorchs_format_is_read_without_it(weights, tmp_path):
    torch_file(tmp_path / "wrn.pt", weights)
    found = read_weights(tmp_path / "wrn.pt")
    floats = {n: a for n, a in weights.items() if a.dtype == np.float32}
    assert found.keys() == floats.keys()
    for name, array in floats.items():
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


@pytest.mark.parametrize(
    "claim", [(0, (4, 3), (3, 1)), (1, (10,), (1,)), (0, (2, 5), (6, 1)), (0, (10**6,), (0,)), (-1, (3,), (1,))]
)
def test_a_tensor_that_leaves_its_storage_is_refused(claim, tmp_path):
    torch_file(tmp_path / "a.pt", {"b": np.arange(10, dtype=np.float32)}, claim=claim)
    with pytest.raises(CheckpointError, match=r"larger than its storage|of something else than a storage"):
        read_weights(tmp_path / "a.pt")


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_a_pickle_that_runs_code_is_refused_in_one_line(spec, weights, tmp_path, command):
    victim = tmp_path / "ran"
    torch_file(tmp_path / "evil.pt", weights, {"model": Runs(victim)})
    content = np.empty(1, object)
    content[0] = {"w": Runs(victim)}
    np.save(tmp_path / "evil.npy", content, allow_pickle=True)
    np.savez(tmp_path / "evil.npz", a=content)
    for name, says in (
        ("evil.pt", "asks for __builtin__.exec, which could run any program: nothing was run"),
        ("evil.npy", "asks for builtins.exec, which could run any program: nothing was run"),
        ("evil.npz", "Python objects"),
    ):
        code, out, err = command("import-model", tmp_path / name, "--model", spec, "--out", tmp_path / "run")
        assert code == 2 and out == "" and says in err and err.count("\n") == 1, err
    assert not victim.exists() and not (tmp_path / "run").exists()


def flip(content, at, by=1):
    return content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]


def test_damaged_files_are_one_line(file, weights, tmp_path):
    torch_file(tmp_path / "wrn.pt", weights)
    haiku_file(tmp_path / "wrn.npy", weights)
    rng = np.random.default_rng(0)
    for suffix, path in ((".safetensors", file), (".pt", tmp_path / "wrn.pt"), (".npy", tmp_path / "wrn.npy")):
        whole = path.read_bytes()
        cuts = [whole[: int(n)] for n in rng.integers(0, len(whole) - 1, 10)]
        flips = [flip(whole, int(n), 255) for n in rng.integers(0, min(len(whole), 3000), 30)]
        for content in (*cuts, *flips, b""):
            (tmp_path / f"bad{suffix}").write_bytes(content)
            try:
                read_weights(tmp_path / f"bad{suffix}")
            except CheckpointError as error:
                assert "\n" not in str(error)
    assert read_weights(file)["module.fc.bias"].shape == (10,)


def refused(path, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [9, 9], "data_offsets": [0, 0]}, r"a has 0 bytes, and its shape is \[9, 9\] of F32"),
        ({"shape": [1]}, r"a has 8 bytes, and its shape is \[1\] of F32"),
        ({"data_offsets": [4, 12]}, r"its arrays leave a gap or overlap at byte 4"),
        ({"shape": [3], "data_offsets": [0, 12]}, r"its arrays leave a gap or overlap at byte 8"),
        ({"dtype": "F8_E4M3"}, r"a is of type 'F8_E4M3', and what is read is BF16, BOOL, F16, F32"),
    ],
)
def test_safetensors_whose_header_is_not_of_its_bytes(change, says, tmp_path):
    content = safetensors_bytes({n: np.arange(2, dtype=np.float32) for n in "ab"}, {})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["a"].update(change)
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(path, says)
    path.write_bytes(content + b"more")
    refused(path, r"its arrays have 16 of its 20 bytes")


def test_a_torch_file_is_as_it_was_written(weights, tmp_path, monkeypatch):
    path, array = tmp_path / "a.pt", np.arange(100, dtype=np.float32)
    torch_file(path, {"a": array})
    whole = path.read_bytes()
    path.write_bytes(flip(whole, whole.index(array.tobytes()) + 200))
    refused(path, r"net/data/0 is damaged: its CRC-32")
    torch_file(path, {"a": array})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in "xy":
            archive.writestr(name, bytes(3000))
    assert len(read_weights(path)["a"]) == 100
    monkeypatch.setattr("llrflow.weights.torch_file.budget_of", lambda size: 5000)
    refused(path, r"unpack to more than 5000")
    torch_file(path, {"a": array}, order="little" * 3)
    refused(path, r"of another byte order")


def test_a_file_is_open_once_however_many_arrays_it_has(tmp_path):
    many = {f"a{n}": np.full(3, n, np.float32) for n in range(40)}
    torch_file(tmp_path / "a.pt", many)
    write(tmp_path / "a.safetensors", many)
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = [read_weights(tmp_path / name) for name in ("a.pt", "a.safetensors")]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    assert all((arrays[name] == many[name]).all() for arrays in found for name in many)


def test_haiku_names_that_would_hide_each_other_are_refused(tmp_path):
    content = np.empty(2, object)
    content[:] = [{"a/~/b": {"w": np.zeros(2)}}, {"a/b": {"w": np.ones(2)}}]
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    refused(tmp_path / "a.npy", r"two of its arrays have the name a/b/w")


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_a_pipe_is_refused(suffix, tmp_path):
    os.mkfifo(tmp_path / f"a{suffix}")
    refused(tmp_path / f"a{suffix}", r"cannot be read: Is no regular file")


def test_of_a_checkpoint_the_network_is_taken_or_asked_for(tmp_path):
    nets = {f"net{n}": {"w": np.zeros(n + 1, np.float32), "b": np.zeros(1, np.float32)} for n in range(2)}
    step = {"step": np.zeros(1, np.float32)}
    for held in ({"model": nets["net0"], "net": nets["net1"], **step}, {"backbone": nets["net0"], **step}, nets):
        with pytest.raises(
            CheckpointError, match=r"holds arrays under (model, net|backbone|net0, net1); choose with --key"
        ):
            _chosen(tmp_path / "a.pt", held, None)
        assert _chosen(tmp_path / "a.pt", held, next(iter(held))) == nets["net0"]
    whole = {**nets["net1"], **step, "extra": step}
    assert _chosen(tmp_path / "a.pt", whole, None).keys() == {"w", "b", "step"}
    assert _chosen(tmp_path / "a.pt", {"model": nets["net1"], **step}, None) == nets["net1"]


def write(path, arrays):
    path.write_bytes(safetensors_bytes(arrays, {}))
    return path


def test_what_does_not_fit_is_listed_both_ways(weights, spec, tmp_path, file):
    other = {n: a for n, a in weights.items() if n not in ("fc.bias", "block2.layer.0.conv1.weight")}
    other |= {"fc.weight": np.zeros((100, 64), np.float32), "extra.weight": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        import_model(write(tmp_path / "a.safetensors", other), spec, tmp_path / "run")
    for says in (
        "does not fit wide_resnet by the names of RobustBench WideResNet: fc.weight is [100, 64], wanted [10, 64]; ",
        "missing: fc.bias [10], block2.layer.0.conv1.weight [32, 16, 3, 3]; not in this network: extra.weight [3]; ",
    ):
        assert says in str(caught.value)
    with pytest.raises(
        CheckpointError, match=r"is of no layout known for wide_resnet: it holds a.b, a.c; say with --map"
    ):
        write(tmp_path / "b.safetensors", {"a.b": np.zeros(3, np.float32), "a.c": np.zeros(3, np.float32)})
        import_model(tmp_path / "b.safetensors", spec, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"bn1.weight holds numbers that are not finite"):
        broken = {**weights, "bn1.weight": np.full(64, np.nan, np.float32)}
        import_model(write(tmp_path / "c.safetensors", broken), spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_file_does_not_tell_the_spec_must(file, weights, spec, tmp_path, tiny, write_spec):
    bare = {"model": {"type": "wide_resnet", "depth": 10, "width": 1}, "objective": None}
    asked = write_spec(tmp_path / "bare.yaml", tiny(), bare)
    with pytest.raises(SpecError, match=r"bare.yaml:\d+:\d+: model.mean is not told by .*\[0\] and \[1\] for nothing"):
        import_model(file, asked, tmp_path / "run")
    for names in (("mu", "sigma"), ("mean", "std")):
        own = {f"model.normalize.{name}": np.array([value]) for name, value in zip(names, (0.5, 0.25), strict=True)}
        held = {f"model.{n}": a for n, a in weights.items()} | {n: a.astype(np.float32) for n, a in own.items()}
        record = import_model(write(tmp_path / "n.safetensors", held), asked, tmp_path / names[0])
        assert record.imported.set["model.mean"] == [0.5] and record.imported.set["model.std"] == [0.25]
    three = held | {"model.normalize.mean": np.full(3, 0.5, np.float32)}
    with pytest.raises(SpecError, match=r"model.mean = \[0.5, 0.5\], but .* holds \[0.5, 0.5, 0.5\]; delete it"):
        path = write(tmp_path / "three.safetensors", three)
        import_model(path, spec, tmp_path / "run", changes={"model.mean": [0.5, 0.5]})
    with pytest.raises(SpecError, match=r"model.std = \[2.0\], but .*n.safetensors holds \[0.25\]; delete it"):
        import_model(tmp_path / "n.safetensors", spec, tmp_path / "run", changes={"model.std": [2.0]})


def test_a_map_names_what_is_not_known(tiny, write_spec, images, tmp_path):
    rng = np.random.default_rng(0)
    c, w, v = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 1, 3, 3), (6, 3 * 8 * 8), (10, 6)))
    arrays = {"feature.0.weight": c, "feature.0.bias": c[:, 0, 0, 0], "first.weight": w, "first.bias": w[:, 0]}
    arrays |= {"last.weight": v, "last.bias": v[:, 0], "step": np.zeros((), np.int64)}
    model = {
        "type": "cnn",
        "channels": [3],
        "dense": 6,
        "activation": "relu",
        "padding": "torch",
        "mean": [0],
        "std": [1],
    }
    spec = write_spec(tmp_path / "cnn.yaml", tiny(), {"model": model})
    names = {"conv2_d": "feature.0", "linear": {"name": "first", "flattened": [3, 8, 8]}, "linear_1": "last"}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"names": names, "ignores": ["st*p"]}))
    path = write(tmp_path / "cnn.safetensors", arrays)
    import_model(path, spec, tmp_path / "run", mapping=tmp_path / "map.yaml")
    h = jax.lax.conv_general_dilated(images.transpose(0, 3, 1, 2), c, (1, 1), [(1, 1)] * 2)
    h = jax.nn.relu(h + c[:, 0, 0, 0][:, None, None]).reshape(len(images), -1)
    right = jax.nn.relu(h @ w.T + w[:, 0]) @ v.T + v[:, 0]
    np.testing.assert_allclose(llrflow.load_model(tmp_path / "run").logits(images), right, rtol=1e-4, atol=1e-4)
    for wrong, says in (
        ("names: {conv2_d: feature.0}\nmodles: [cnn]\n", r"map.yaml:2:1: modles"),
        ("names: {linear: last, linear_1: last}", r"calls linear/b and linear_1/b by one name, last.bias"),
        ("names: {'{m}': 'l{m+1}'}", r"map.yaml: \{m\+1\} for .*: '.*' is no number; correct `names`"),
        ("names: {'linear_{n}': 'last.{m}'}", r"map.yaml:1:\d+: names .*last.\{m\} has \{m\}, which"),
        ("names: {'lin{1}': last}", r"map.yaml:1:\d+: names .*\{1\} is no field"),
        ("names: {linear: {name: first, flattened: [3, 8, 7]}}", r"flattened features 3 x 8 x 7 are 168; correct"),
        ("names: {linear: {name: first, flattened: [-3, -8, 8]}}", r"map.yaml:1:\d+: names.linear"),
    ):
        (tmp_path / "map.yaml").write_text(wrong)
        with pytest.raises(SpecError, match=says):
            import_model(path, spec, tmp_path / "other", mapping=tmp_path / "map.yaml")


def test_a_layout_reads_both_ways():
    layout = Layout.model_validate(
        {"names": {"a{n}/b": {"name": "x.{n+1}", "flattened": [3, 2, 4]}, "a{n}/{m}": "{m}.{n}"}}
    )
    params = {"a0/b": {"w": np.arange(72.0).reshape(24, 3)}, "a7/c": {"w": np.arange(54.0).reshape(3, 3, 2, 3)}}
    first, second = layout.named(params, {})
    assert (first.there, second.there) == ("x.1.weight", "c.7.weight")
    for one in (first, second):
        ours = params[one.module][one.name].astype(np.float32)
        theirs = layout.out_of(ours, one)
        assert theirs.shape == layout.shape_there(one) and theirs.shape[0] == 3
        np.testing.assert_array_equal(layout.into(theirs, one), ours)
    whole = layout.out_of(params["a0/b"]["w"], first).reshape(3, 3, 2, 4)
    assert whole[1, 2, 1, 3] == params["a0/b"]["w"].reshape(2, 4, 3, 3)[1, 3, 2, 1]


BAD = {
    "no file": (["absent.pt"], r"absent.pt: cannot be read: No such file or directory"),
    "other format": (["spec.txt"], r"spec.txt: is of no format that is read; give a file that ends in .bin, "),
    "no zip": (["empty.pt"], r"empty.pt: is no file of torch.save, or one of a version before 1.6; load it there"),
    "unknown key": (["wrn.safetensors", "--key", "ema"], r"--key: wrn.safetensors holds no arrays under 'ema'"),
    "no spec": (["wrn.safetensors", "--model", "absent.yaml"], r"absent.yaml"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(arguments, says, file, spec, command, tmp_path):
    shutil.copy(file, tmp_path / "cwd")
    for name in ("spec.txt", "empty.pt"):
        (tmp_path / "cwd" / name).write_text("x")
    code, out, err = command("import-model", "--model", spec, "--out", "run", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_a_folder_that_holds_a_run_is_left_alone(run, file, spec):
    with pytest.raises(SpecError, match=r"holds a run already; choose an empty or a new folder as --out"):
        import_model(file, spec, run)


def test_without_pytorch_the_export_to_it_names_the_extra(run, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = command("export", run, "--to", "torch", "-o", tmp_path / "out")
    assert (code, out, err) == (2, "", "error: --to torch: needs PyTorch; pip install 'llrflow[torch]'\n")
    assert not (tmp_path / "out").exists()
