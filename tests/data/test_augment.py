import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.data.augment import Flip, PadCrop, augment

IMAGES = jax.random.uniform(jax.random.key(1), (32, 8, 8, 3))
KEYS = jax.random.split(jax.random.key(0), 32)
SHIFT_AND_FLIP = {"crop": PadCrop(pad=2), "flip": Flip()}


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_crop_cuts_a_window_out_of_the_padded_image(mode):
    image = np.asarray(IMAGES[0])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=mode)
    windows = {padded[r : r + 8, c : c + 8].tobytes(): (r, c) for r in range(5) for c in range(5)}
    keys = jax.random.split(jax.random.key(3), 300)
    cut = np.asarray(jax.vmap(lambda key: PadCrop(pad=2, mode=mode)(IMAGES[0], key))(keys))
    places = {windows[window.tobytes()] for window in cut}
    assert places == set(windows.values())  # every shift happens, the largest included


def test_flip_mirrors_left_to_right_with_the_probability_given():
    for p in (0.0, 0.5, 1.0):
        keys = jax.random.split(jax.random.key(5), 2000)
        out = jax.vmap(lambda key, p=p: Flip(p=p)(IMAGES[0], key))(keys)
        mirrored = (out == IMAGES[0, :, ::-1]).all((1, 2, 3))
        untouched = (out == IMAGES[0]).all((1, 2, 3))
        assert (mirrored ^ untouched).all()
        assert abs(mirrored.mean() - p) < 0.05  # 4.5 standard deviations at p = 0.5


def test_augment_keeps_shape_range_and_repeats_with_the_same_keys():
    once = augment(IMAGES, KEYS, SHIFT_AND_FLIP)
    assert once.shape == IMAGES.shape and once.min() >= 0 and once.max() <= 1
    assert (once != IMAGES).any()
    assert (once == jax.jit(lambda x, k: augment(x, k, SHIFT_AND_FLIP))(IMAGES, KEYS)).all()
    assert (augment(IMAGES, KEYS, {}) == IMAGES).all()
    other = augment(IMAGES, jax.random.split(jax.random.key(9), 32), SHIFT_AND_FLIP)
    assert ((once != other).any((1, 2, 3))).sum() > 16


def test_an_example_does_not_depend_on_its_batch_mates():
    batch = augment(IMAGES, KEYS, SHIFT_AND_FLIP)
    rows = jnp.array([7, 3, 30])
    assert (augment(IMAGES[rows], KEYS[rows], SHIFT_AND_FLIP) == batch[rows]).all()


def test_streams_are_independent_between_examples_and_names():
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    out = np.asarray(augment(same, KEYS, {"crop": PadCrop(pad=2)}))
    assert len({image.tobytes() for image in out}) > 10
    flips = [np.asarray(augment(same, KEYS, {name: Flip()}) == same).all((1, 2, 3)) for name in ("flip", "mirror")]
    assert 0 < (flips[0] != flips[1]).sum() < 32


def test_another_augmentation_does_not_change_the_stream_of_a_name():
    alone = augment(IMAGES, KEYS, {"flip": Flip()})
    without_effect = {"none": Flip(p=0.0), "flip": Flip(), "last": Flip(p=0.0)}
    assert (augment(IMAGES, KEYS, without_effect) == alone).all()
    assert (alone != IMAGES).any()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "pad_crop", "pad": 0}, "pad = 0"),
        ({"type": "pad_crop", "mode": "edge"}, "mode = 'edge'"),
        ({"type": "flip", "p": 1.5}, "p = 1.5"),
        ({"type": "flipp"}, "did you mean 'flip'"),
    ],
)
def test_wrong_configurations_are_refused(config, says):
    with pytest.raises(SpecError, match=says):
        make("augmentation", config)
