"""MixUp and CutMix against the papers' formulas, draw by draw, and the choice between several ways of mixing."""

import zlib

import jax
import numpy as np
import pytest

from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.data.mix import mix
from llrflow.data.schema import Data

N, SHAPE = 400, (8, 6, 3)
IMAGES, PARTNERS = (np.asarray(jax.random.uniform(jax.random.key(k), (N, *SHAPE))) for k in (1, 2))
KEYS = jax.random.split(jax.random.key(0), N)
LABELS, OTHERS = np.random.default_rng(0).integers(0, 5, (2, N))
HOT = np.eye(5)
MIXUP, CUTMIX = {"type": "mixup", "alpha": 1}, {"type": "cutmix", "alpha": 5}


def mixed(named, rows=slice(None)):
    ways = Data(name="digits", mix=named).mix
    run = jax.jit(lambda *batch: mix(*batch, mixings=ways, classes=5))
    return run(IMAGES[rows], LABELS[rows], PARTNERS[rows], OTHERS[rows], KEYS[rows])


@pytest.fixture(scope="module")
def alone():
    """What each way makes of all examples where it is the only one, and no way."""
    return {"none": (IMAGES, HOT[LABELS]), "m": mixed({"m": MIXUP}), "c": mixed({"c": CUTMIX})}


def streams(name):
    """The keys that the way of that name draws from."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.split(key)[1], zlib.crc32(name.encode())))(KEYS)


def test_mixup_is_the_convex_combination_of_images_and_labels(alone):
    images, labels = alone["m"]
    share = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.beta(key, 1.0, 1.0)))(streams("m")))
    s = share[:, None, None, None]
    np.testing.assert_allclose(images, s * IMAGES + (1 - s) * PARTNERS, atol=1e-6)
    np.testing.assert_allclose(labels, share[:, None] * HOT[LABELS] + (1 - share[:, None]) * HOT[OTHERS], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_of_the_beta_distribution(alpha):
    mixup, pixel = make("mixing", {"type": "mixup", "alpha": alpha}), np.zeros((1, 1, 1), np.float32)
    _, share = jax.jit(jax.vmap(lambda key: mixup(pixel, pixel, key)))(KEYS)
    assert abs(share.mean() - 0.5) < 0.09  # 4 standard deviations for 0.2, 6 for 1
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def rand_bbox(height, width, share, row, column):
    """The authors' function of that name, its draws given."""
    cut = np.sqrt(1.0 - share)
    cut_h, cut_w = int(height * cut), int(width * cut)
    top, bottom = np.clip([row - cut_h // 2, row + cut_h // 2], 0, height)
    left, right = np.clip([column - cut_w // 2, column + cut_w // 2], 0, width)
    return slice(top, bottom), slice(left, right)


def test_cutmix_is_the_authors_rectangle_and_its_share_that_of_the_pixels(alone):
    @jax.jit
    @jax.vmap
    def draws(key):
        draw, place = jax.random.split(key)
        centre = [jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(place), SHAPE[:2], strict=True)]
        return jax.random.beta(draw, 5.0, 5.0), *centre

    images, labels = map(np.asarray, alone["c"])
    sizes = set()
    for i, (share, row, column) in enumerate(zip(*map(np.asarray, draws(streams("c"))), strict=True)):
        box, expected = rand_bbox(*SHAPE[:2], share, row, column), IMAGES[i].copy()
        expected[box] = PARTNERS[i][box]
        np.testing.assert_array_equal(images[i], expected)
        pasted = expected[box][..., 0].size / (SHAPE[0] * SHAPE[1])
        np.testing.assert_allclose(labels[i], (1 - pasted) * HOT[LABELS[i]] + pasted * HOT[OTHERS[i]], atol=1e-6)
        sizes.add(pasted)
    assert len(sizes) > 6 and max(sizes) >= 0.5


def test_every_way_has_its_probability_and_the_rest_is_left_alone(alone):
    both = {"m": MIXUP | {"p": 0.5}, "c": CUTMIX | {"p": 0.3}}
    images, labels = mixed(both)
    assert abs(np.sum(labels, axis=1) - 1).max() < 1e-6
    rows = {name: (images == made).all((1, 2, 3)) & (labels == label).all(1) for name, (made, label) in alone.items()}
    assert np.all(rows["m"] | rows["c"] | rows["none"])
    for name, p in {"m": 0.5, "c": 0.3, "none": 0.2}.items():
        assert abs(float(np.mean(rows[name])) - p) < 0.08, name  # 3 standard deviations and more
    some = np.array([7, 300, 3])
    for few, whole in zip(mixed(both, some), (images, labels), strict=True):
        np.testing.assert_array_equal(few, whole[some])  # wherever an example stands


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.mix": {"a": {"type": "mixup"}, "b": {"type": "cutmix"}}}, r"data\.mix has probabilities that sum to 2"),
        ({"data.mix": {"a": {"type": "mixup", "alpha": 0}}}, r"data\.mix\.a\.alpha = 0"),
        ({"data.mix": {"a": {"type": "mixup", "p": 1.5}}}, r"data\.mix\.a\.p = 1\.5"),
        ({"data.mix": {"a": {"type": "mixupp"}}}, "did you mean 'mixup'"),
        ({"objective.perturbations": {"mix": {"steps": 1}}}, "is the name of another random stream"),
    ],
)
def test_wrong_ways_are_refused(load, changes, says):
    with pytest.raises(SpecError, match=says):
        load(changes)


@pytest.mark.parametrize("field", ["objective.loss", "objective.terms.gamma", "objective.perturbations.llr.maximize"])
def test_a_target_needs_one_label(load, field):
    aimed = {"type": "margin", "target": "random"} | ({} if field.endswith("maximize") else {"at": "llr"})
    load({field: aimed})
    where = field.replace(".", r"\.")
    says = rf"{where} \(term margin\) needs one label per example, .*; leave out its `target`, or data\.mix"
    with pytest.raises(SpecError, match=says):
        load({field: aimed, "data.mix": {"m": {"type": "mixup"}}})
