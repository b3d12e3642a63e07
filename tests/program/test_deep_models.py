"""Every published model type trains: LLR, whose gradient is reverse-over-forward, on images of CIFAR-10's size.

preact_resnet is resnet_v2 with other defaults.
"""

import numpy as np
import pytest

import llrflow

MODELS = {
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet_v1": {"depth": 18, "width": 2, "stem": "imagenet", "norm": "group"},
    "resnet_v2": {"depth": 18, "width": 2, "stem": "imagenet", "zero_init_residual": True},
    "denoise_resnet": {"depth": 18, "width": 2, "stem": "imagenet"},
    "convnext": {"depths": [1, 1], "widths": [8, 16]},
    "vit": {"patch": 8, "width": 16, "depth": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The spec of a model on the made-up images, on one device; LLR at a perturbation of `search` steps."""
    directory = str(tmp_path_factory.mktemp("data"))

    def make(name, steps=20, search=0):
        terms = {"slope": {"type": "gradient_inner_product", "at": "llr", "weight": 0.1}}
        if search:
            terms["gamma"] = {"type": "local_linearity", "at": "llr", "weight": 0.1}
        return {
            "llrflow": 1,
            "name": "deep",
            "data": {"name": "synthetic", "dir": directory},
            "model": {"type": name, **MODELS[name]},
            "threat": {"norm": "linf", "epsilon": "8/255"},
            "objective": {"perturbations": {"llr": {"maximize": "local_linearity", "steps": search}}, "terms": terms},
            "optimizer": {"type": "adam", "learning_rate": 0.003},
            "train": {"steps": steps, "batch_size": 16},
            "evaluate": {"attacks": {"pgd": {"type": "pgd", "steps": 1}}, "checks": {"examples": 0}},
            "devices": {"count": 1},
        }

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_on_a_fixed_batch(name, synthetic, batch_of):
    program = llrflow.compile(llrflow.load_spec(synthetic(name)))
    state, batch, losses = program.init(), batch_of(program, 0), []
    for step in range(20):
        state, metrics = program.train_step(state, batch, step)
        losses.append(float(program.devices.fetch(metrics)["loss"]))
    assert max(losses[-3:]) < 0.9 * losses[0], losses


@pytest.mark.slow
def test_a_published_model_runs_from_spec_to_report(synthetic, tmp_path):
    run = llrflow.run(llrflow.load_spec(synthetic("wide_resnet", steps=3, search=1)), tmp_path / "run")
    assert run.evaluation.n == 512
    logits = llrflow.load_model(run.path).logits
    assert logits(np.full((3, 32, 32, 3), 0.5, np.float32)).shape == (3, 10)
