"""Changes of colour against Pillow, colorsys and closed forms."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from llrflow.data import color
from llrflow.data.color import ColorJitter

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
PIXELS[:4, :4] = PIXELS[:4, :4] // 3 + 40  # not the whole range, with a crowd of equal levels
PIXELS[5:8, 2:6] = 90
IMAGE = jnp.asarray(PIXELS / 255, jnp.float32)
PICTURE = Image.fromarray(PIXELS)
NARROW = np.clip(PIXELS // 2, 30, 100)  # what auto_contrast and equalize are for
PILLOW = {
    "brightness": (ImageEnhance.Brightness, color.brightness),
    "contrast": (ImageEnhance.Contrast, color.contrast),
    "saturation": (ImageEnhance.Color, color.saturation),
    "sharpness": (ImageEnhance.Sharpness, color.sharpness),
}


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("name", PILLOW)
def test_blends_are_those_of_pillow(name, factor):
    pillow, ours = PILLOW[name]
    expected = np.asarray(pillow(PICTURE).enhance(factor), float)
    got = np.asarray(ours(IMAGE, factor)) * 255
    # Pillow rounds the version it blends with and cuts off the result.
    assert np.abs(got - expected).max() < 1.6 + abs(1 - factor)
    if factor == 1:
        np.testing.assert_allclose(got, PIXELS, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_histogram_operations_are_those_of_pillow(channels):
    for pixels in (PIXELS[..., :channels], NARROW[..., :channels], np.full((4, 4, channels), 77, np.uint8)):
        image, picture = jnp.asarray(pixels / 255, jnp.float32), Image.fromarray(pixels.squeeze())
        for pillow, ours, tolerance in (
            (ImageOps.autocontrast(picture), color.auto_contrast(image), 1.01),  # Pillow cuts off
            (ImageOps.equalize(picture), color.equalize(image), 1e-3),
            (ImageOps.solarize(picture, 64), color.solarize(image, 0.25), 1e-3),
            (ImageOps.posterize(picture, 4), color.posterize(image, 4), 1e-3),
            (picture, color.posterize(image, 8), 1e-3),
            (picture, color.solarize(image, 1.0), 1e-3),
        ):
            expected = np.asarray(pillow, float).reshape(pixels.shape)
            np.testing.assert_allclose(np.asarray(ours) * 255, expected, atol=tolerance)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 1 / 3])
def test_hue_turns_as_in_colorsys(turn):
    got = np.asarray(color.hue(IMAGE, turn)).reshape(-1, 3)
    for pixel, ours in zip(np.asarray(IMAGE, float).reshape(-1, 3), got, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        np.testing.assert_allclose(ours, colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=2e-6)


def test_a_third_of_a_turn_exchanges_the_channels():
    np.testing.assert_allclose(color.hue(IMAGE, 1 / 3), jnp.roll(IMAGE, 1, axis=-1), atol=1e-6)


def test_jitter_draws_factors_from_its_ranges_and_no_others():
    gray = jnp.full((2, 2, 3), 0.25)
    keys = jax.random.split(jax.random.key(0), 400)

    def drawn(**fields):
        alone = ColorJitter(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | fields)
        return np.asarray(jax.vmap(lambda key: alone(gray, key))(keys))

    factors = drawn(brightness=0.6)[:, 0, 0, 0] / 0.25
    assert 0.4 <= factors.min() < 0.42 and 1.58 < factors.max() <= 1.6 and abs(factors.mean() - 1) < 0.06
    for strength in ({"contrast": 0.6}, {"saturation": 0.6}, {"hue": 0.3}, {}):
        np.testing.assert_allclose(drawn(**strength), 0.25, atol=1e-6)  # one gray level has none of them
    assert (drawn(brightness=3.0) > 0).all()  # a factor below 0 would be black
    red = jnp.zeros((1, 1, 3)).at[..., 0].set(1.0)
    turned = jax.vmap(lambda key: ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1)(red, key))(keys)
    hues = np.array([(colorsys.rgb_to_hsv(*map(float, pixel[0, 0]))[0] + 0.5) % 1 - 0.5 for pixel in turned])
    assert -0.1001 < hues.min() < -0.095 and 0.095 < hues.max() < 0.1001


def test_jitter_applies_its_parts_in_the_order_that_it_says():
    key = jax.random.key(4)
    keys = jax.random.split(key, 4)
    factors = [jax.random.uniform(own, minval=0.6, maxval=1.4) for own in keys[:3]]
    expected = color.saturation(color.contrast(color.brightness(IMAGE, factors[0]), factors[1]), factors[2])
    expected = color.hue(expected, jax.random.uniform(keys[3], minval=-0.1, maxval=0.1))
    np.testing.assert_array_equal(ColorJitter()(IMAGE, key), expected)


def test_gray_images_keep_to_brightness_and_contrast():
    gray = IMAGE[..., :1]
    assert (color.hue(gray, 0.3) == gray).all() and (color.saturation(gray, 0.2) == gray).all()
    np.testing.assert_allclose(color.contrast(gray, 0.0), jnp.full_like(gray, gray.mean()), rtol=1e-6)
    assert (color.sharpness(gray[:2], 0.1) == gray[:2]).all()  # too small to have an inside
