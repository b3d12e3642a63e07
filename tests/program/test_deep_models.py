"""Every published model type trains: LLR, whose gradient is reverse-over-forward, on small images."""

from pathlib import Path

import numpy as np
import pytest

import llrflow
from llrflow.components.registry import entries
from llrflow.sweep.space.trials import base_of

SPECS = Path(__file__).parents[2] / "specs" / "models"
VARIANTS = llrflow.load_spec(SPECS / "networks.yaml").sweep.variants
SMALL = {"height": 16, "width": 16, "train": 64, "test": 32}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The spec of a model, by its variant's name, with changes, on one device."""
    directory = str(tmp_path_factory.mktemp("data"))

    def make(name, changes):
        here = {"data.dir": directory, "devices.count": 1}
        return llrflow.load_spec(SPECS / "wide_resnet.yaml", {**VARIANTS[name], **here, **changes})

    return make


def test_every_published_model_has_a_spec():
    spec = llrflow.load_spec(SPECS / "networks.yaml")
    chosen = {llrflow.load_spec(base_of(spec, name)).model.registered_as[1] for name in VARIANTS}
    assert chosen == set(VARIANTS)
    ours = {name for name, entry in entries("model").items() if entry.cls.__module__.startswith("llrflow.")}
    assert chosen == ours - {"mlp", "cnn", "resnet", "python"}


SECOND = ("denoise_resnet", "preact_resnet", "resnet_v1")  # made of what others are made of too


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] if n in SECOND else []) for n in VARIANTS])
def test_the_loss_falls_on_a_fixed_batch(name, synthetic, batch_of):
    # No search, which would double the time to compile: the slope alone has every kind of derivative.
    changes = {"objective.perturbations.llr.steps": 0, "objective.terms.gamma": None, "data.options": SMALL}
    program = llrflow.compile(synthetic(name, changes))
    state, batch, losses = program.init(), batch_of(program, 0), []
    for step in range(20):
        state, metrics = program.train_step(state, batch, step)
        losses.append(float(program.devices.fetch(metrics)["loss"]))
    assert max(losses[-3:]) < 0.9 * losses[0], losses


@pytest.mark.slow
def test_a_published_model_runs_from_spec_to_report(synthetic, tmp_path):
    changes = {"train.steps": 3, "objective.perturbations.llr.steps": 1, "evaluate.attacks.pgd.steps": 1}
    changes |= {"data.options": {"train": 64, "test": 64}, "train.batch_size": 8, "evaluate.batch_size": 64}
    run = llrflow.run(synthetic("wide_resnet", changes), tmp_path / "run")
    assert run.evaluation.n == 64
    logits = llrflow.load_model(run.path).logits
    assert logits(np.full((3, 32, 32, 3), 0.5, np.float32)).shape == (3, 10)
