"""Random resized crop against Pillow's resize of a box; cutout against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.data.crops import Cutout, RandomResizedCrop, resized_window

IMAGE = jax.random.uniform(jax.random.key(0), (20, 14, 3))
KEYS = jax.random.split(jax.random.key(1), 3000)


@pytest.mark.parametrize("box", [(0, 0, 20, 14), (2.5, 3.25, 9.5, 6.75), (10, 4, 10, 10), (0, 0, 20, 5)])
def test_a_window_is_resized_as_pillow_does(box):
    top, left, tall, wide = box
    got = np.asarray(resized_window(IMAGE, *map(jnp.float32, box)))
    for c in range(3):
        channel = Image.fromarray(np.asarray(IMAGE[..., c], np.float32), mode=None)
        corners = (left, top, left + wide, top + tall)
        expected = channel.resize((14, 20), Image.Resampling.BILINEAR, box=corners)
        np.testing.assert_allclose(got[..., c], np.asarray(expected), atol=1e-5)
    if box == (0, 0, 20, 14):
        np.testing.assert_allclose(got, IMAGE, atol=1e-6)


def windows(crop, height=20, width=14):
    return np.asarray(jnp.stack(jax.jit(jax.vmap(lambda key: jnp.stack(crop.window(height, width, key))))(KEYS)))


def test_windows_have_the_areas_and_ratios_asked_for_and_lie_inside():
    top, left, tall, wide = windows(RandomResizedCrop(scale=(0.2, 0.5), ratio=(0.5, 1.5))).T
    area, ratio = tall * wide / 280, wide / tall
    assert 0.1999 < area.min() < 0.203 and 0.497 < area.max() < 0.5001
    assert 0.4999 < ratio.min() < 0.51 and 1.46 < ratio.max() < 1.5001
    assert top.min() >= 0 and left.min() >= 0 and (top + tall).max() <= 20.001 and (left + wide).max() <= 14.001
    assert top.min() < 0.05 and (top + tall).max() > 19.95 and (left + wide).max() > 13.95  # up to every edge
    assert abs(np.log(ratio).mean() - (np.log(0.5) + np.log(1.5)) / 2) < 0.05  # uniform in the logarithm


def test_where_no_window_fits_the_largest_centred_one_is_taken():
    whole = windows(RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    np.testing.assert_allclose(whole, [[3, 0, 14, 14]] * len(whole), atol=1e-5)
    tall = windows(RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.5, 0.5)))
    np.testing.assert_allclose(tall, [[0, 2, 20, 10]] * len(tall), atol=1e-5)


def test_the_whole_image_is_left_as_it_is():
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.7, 0.7))
    np.testing.assert_allclose(crop(IMAGE, jax.random.key(2)), IMAGE, atol=1e-5)


@pytest.mark.parametrize(("size", "fill"), [(4, 0.0), (5, 0.5), (1, 1.0), (50, 0.25)])
def test_cutout_fills_one_square_around_a_pixel_cut_at_the_border(size, fill):
    cutout = Cutout(size=size, fill=fill)
    seen = set()
    for image in np.asarray(jax.jit(jax.vmap(lambda key: cutout(IMAGE + 2, key)))(KEYS[:400])):
        filled = (image == fill).all(-1)
        assert ((image == np.asarray(IMAGE + 2)).all(-1) == ~filled).all()
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        assert filled.sum() == len(rows) * len(columns)  # a rectangle
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
        for inside, n in ((rows, 20), (columns, 14)):
            assert len(inside) == size or (len(inside) < size and (inside[0] == 0 or inside[-1] == n - 1))
            assert len(inside) >= min(size // 2, n)  # its centre is inside
        seen.add((rows[0], columns[0], len(rows), len(columns)))
    assert len(seen) > 100 or size == 50


def test_the_centre_of_the_square_is_any_pixel():
    places = {
        tuple(np.argwhere((image == 0).all(-1))[0])
        for image in np.asarray(jax.vmap(lambda key: Cutout(size=1)(IMAGE + 1, key))(KEYS))
    }
    assert places == {(row, column) for row in range(20) for column in range(14)}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "random_resized_crop", "scale": [0.5, 0.2]}, "0 < smallest <= largest <= 1 in `scale`"),
        ({"type": "random_resized_crop", "scale": [0.5, 1.2]}, "0 < smallest <= largest <= 1 in `scale`"),
        ({"type": "random_resized_crop", "scale": [0.5]}, "scale"),
        ({"type": "random_resized_crop", "ratio": [0, 1]}, "0 < smallest <= largest in `ratio`"),
        ({"type": "cutout", "size": 0}, "size = 0"),
        ({"type": "cutout", "fill": 2.0}, "fill = 2"),
        ({"type": "color_jitter", "hue": 0.7}, "hue = 0.7"),
        ({"type": "rand_augment", "operations": ["rotat"]}, "operations"),
        ({"type": "rand_augment", "operations": []}, "operations"),
        ({"type": "rand_augment", "operations": ["rotate", "rotate"]}, "names an operation twice"),
        ({"type": "rand_augment", "magnitude": 31}, "magnitude = 31"),
    ],
)
def test_wrong_configurations_are_refused(config, says):
    with pytest.raises(SpecError, match=says) as caught:
        make("augmentation", config)
    assert "\n" not in str(caught.value)
