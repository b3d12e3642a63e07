"""ONNX files: onnxruntime's logits are JAX's for every published network and any number of images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError, LlrflowError, SpecError
from llrflow.components.registry import make
from llrflow.models.network import AXIS
from llrflow.program.onnx_graph import NoRule, onnx_model
from llrflow.program.step import network_of, predict
from llrflow.runs import export_onnx as of_onnx
from llrflow.runs.export import named_weights
from llrflow.runs.export_robustbench import model_info
from llrflow.runs.exports import export_to

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS = {
    "cnn": {"channels": [4], "strides": [2], "dense": 8, "norm": "batch", "activation": "gelu"},
    "resnet": {"widths": [4, 8], "norm": "group", "activation": "elu"},
    "wide_resnet": {"depth": 10, "width": 1, "activation": "silu"},
    "preact_resnet": {"depth": 18, "width": 4},
    "resnet_v1": {"depth": 18, "width": 4, "activation": "relu"},
    "denoise_resnet": {"depth": 18, "width": 4},
    "vit": {"patch": 4, "width": 16, "depth": 1, "heads": 2, "activation": "gelu"},
    "convnext": {"depths": [1, 1], "widths": [4, 8], "patch": 2, "activation": "tanh"},
}


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", NETWORKS)
def test_onnxruntime_computes_a_network_for_any_number_of_images(kind):
    shape, rng = (16, 16, 3), np.random.default_rng(0)
    network = network_of(make("model", {"type": kind, **NETWORKS[kind]}), 10)
    init = jax.vmap(lambda x: network.init(jax.random.key(1), x, True), axis_name=AXIS)
    shapes = jax.eval_shape(init, jnp.zeros((1, 2, *shape)))
    # Every array is random, so that no statistic, scale or offset is one of which nothing can be seen.
    params, state = (
        {
            m: {n: rng.uniform(low, 0.5, a.shape[1:]).astype(np.float32) for n, a in held.items()}
            for m, held in tree.items()
        }
        for tree, low in zip(shapes, (-0.5, 0.1), strict=True)
    )
    weights, whole = named_weights((params, state))

    def logits(weights, images):
        return jax.vmap(lambda image: predict(network, *whole(weights), image[None])[0])(images)

    session = session_of(onnx_model(logits, weights, shape))
    images = rng.random((7, *shape), np.float32)
    ours = np.asarray(jax.jit(lambda x: predict(network, params, state, x))(images))
    assert np.ptp(ours, axis=0).max() > 1e-3  # the images are told apart
    for some in (slice(0, 1), slice(0, 7)):
        (theirs,) = session.run(None, {"images": images[some]})
        np.testing.assert_allclose(theirs, ours[some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sort", jnp.sort),
        ("top_k", lambda h: jax.lax.top_k(h, 2)[0]),
        ("scan", lambda h: jax.lax.scan(lambda c, _: (c * h, None), h, length=2)[0]),
        ("while", lambda h: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, h)),
    ],
)
def test_what_has_no_rule_is_named(name, function):
    with pytest.raises(NoRule, match=f"{name}, for which"):
        onnx_model(lambda weights, x: function(x.mean((1, 2))), {}, (4, 4, 3))


def test_what_has_several_results():
    def logits(weights, x):
        a, b = jnp.split(x.mean((1, 2)), [1], axis=1)
        c, d = jax.lax.optimization_barrier((a, b))
        return c * d + jax.lax.top_k(weights["w"], 2)[0]

    weights, x = {"w": np.array([1.0, 3.0, 2.0], np.float32)}, np.random.default_rng(0).random((5, 4, 4, 3), np.float32)
    (theirs,) = session_of(onnx_model(logits, weights, (4, 4, 3))).run(None, {"images": x})
    np.testing.assert_allclose(theirs, logits(weights, x), rtol=1e-5)


def test_a_run_is_exported_with_what_it_is(finished, command, tmp_path):
    code, out, err = command("export", finished, "--to", "onnx", "--out", tmp_path / "model")
    assert code == 0 and "logits within" in out, err
    record = json.loads((tmp_path / "model/model.json").read_text())
    assert 0 < record["difference"] < 1e-5 and record["certificate"]["n"] == 360
    assert record["class_names"] == [str(digit) for digit in range(10)]
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "model/model.onnx").metadata_props}
    run = json.loads((finished / "run.json").read_text())
    assert told["llrflow.spec_hash"] == run["spec_hash"] and "NHWC" in told["llrflow.preprocessing"]
    accuracy = json.loads(told["llrflow.certificate"])["accuracy"]
    assert accuracy["nominal"] == record["certificate"]["nominal"]["accuracy"] > accuracy["pgd"]


def test_logits_that_differ_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(of_onnx, "_graph_of", lambda model, graph=of_onnx._graph_of: moved(graph(model)))
    with pytest.raises(LlrflowError, match="nothing was written"):
        export_to("onnx", finished, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_certificate_of_other_weights_is_not_told(copied, rewrite, tmp_path, monkeypatch):
    _, record = export_to("stablehlo", copied, tmp_path / "own")
    assert record.certificate["n"] == 360 and record.class_names == tuple(map(str, range(10)))
    rewrite(copied / "evaluation/12.json", network_sha256="0" * 64)
    for form in ("stablehlo", "onnx"):
        assert export_to(form, copied, tmp_path / form)[1].certificate is None

    def broken(*_, **__):
        raise RuntimeError("opset 99\nis not known")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(SpecError, match=r"cannot be read by onnxruntime \S+: opset 99.*; install a newer") as caught:
        export_to("onnx", copied, tmp_path / "none")
    assert "\n" not in str(caught.value)


def moved(model):
    """The model with logits a thousandth higher."""
    last = model.graph.node[-1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e-3), "more"))
    last.op_type = "Add"
    last.input.append("more")
    return model


def test_robustbench_is_told_what_is_known_and_nothing_else(finished, tmp_path):
    with pytest.raises(SpecError, match="no place for digits; its datasets are cifar10"):
        export_to("robustbench", finished, tmp_path / "info")
    spec = llrflow.load_spec(finished / "spec.yaml")
    evaluation = llrflow.runs.folder.RunFolder(finished).evaluations()[12]
    wide = spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"name": "cifar10"}),
            "model": llrflow.load_spec(finished / "spec.yaml", {"model": {"type": "wide_resnet"}}).model,
            "threat": spec.threat.model_copy(update={"epsilon": 8 / 255}),
        }
    )
    nominal, worst = (f"{100 * share.accuracy:.2f}" for share in (evaluation.nominal, evaluation.worst_case))
    known = {
        "additional_data": False, "number_forward_passes": 1, "dataset": "cifar10", "architecture": "WideResNet-28-10",
        "eps": "8/255", "clean_acc": nominal, "reported": worst,
    }  # fmt: skip
    assert model_info(wide, evaluation) == known
    first, *others = evaluation.attacks.values()
    auto = first.model_copy(update={"attack": {"type": "auto_attack"}})
    before = evaluation.model_copy(update={"attacks": {"aa": auto, "other": others[0]}, "cascade": True})
    after = before.model_copy(update={"attacks": {"other": others[0], "aa": auto}})
    assert model_info(wide, before) == {**known, "autoattack_acc": f"{100 * auto.accuracy:.2f}"}
    assert model_info(wide, after) == known  # what the others had left is no accuracy under AutoAttack
    random = auto.model_copy(update={"attack": {"type": "auto_attack", "profile": "rand"}})
    assert model_info(wide, before.model_copy(update={"attacks": {"aa": random}})) == known
    trained = {key: value for key, value in known.items() if key != "additional_data"}
    assert model_info(wide, evaluation, imported=True) == trained
    for field, value in (("norm", "group"), ("stem", "imagenet")):
        other = wide.model_copy(update={"model": wide.model.model_copy(update={field: value})})
        assert "architecture" not in model_info(other, evaluation)
    part = wide.model_copy(update={"data": wide.data.model_copy(update={"test": "test[:1000]"})})
    with pytest.raises(SpecError, match=r"evaluated on 'test\[:1000\]', and RobustBench's accuracies are of 'test'"):
        model_info(part, evaluation)


def test_robustbench_wants_all_test_images(copied, rewrite, tmp_path):
    with pytest.raises(CheckpointError, match="no evaluation of checkpoint 8; make it"):
        export_to("robustbench", copied, tmp_path / "info", 8)
    rewrite(copied / "evaluation/12.json", subset={"of": 400, "stratified": False, "seed": 0})
    with pytest.raises(CheckpointError, match="RobustBench's accuracies are of all"):
        export_to("robustbench", copied, tmp_path / "info")
