"""RandAugment's geometry against Pillow and closed forms; which operations it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from llrflow.components.registry import make
from llrflow.data import color, rand_augment
from llrflow.data.augment import augment
from llrflow.data.rand_augment import ALL, RandAugment, operations

SQUARE = jax.random.uniform(jax.random.key(0), (11, 11, 3))
OBLONG = jax.random.uniform(jax.random.key(1), (12, 17, 1))


def pillow(image, coefficients):
    """Output (x, y) takes the input at (a x + b y + c, d x + e y + f), in corners' coordinates."""
    channel = Image.fromarray(np.asarray(image[..., 0], np.float32))
    size = (image.shape[1], image.shape[0])
    return np.asarray(channel.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


def rotation(degrees, width, height):
    angle = np.deg2rad(degrees)
    c, s, x, y = np.cos(angle), np.sin(angle), width / 2, height / 2
    return (c, -s, x - c * x + s * y, s, c, y - s * x - c * y)


@pytest.mark.parametrize(
    ("ours", "coefficients"),
    [
        (functools.partial(rand_augment.rotate, degrees=25.0), rotation(25, 17, 12)),
        (functools.partial(rand_augment.rotate, degrees=-10.0), rotation(-10, 17, 12)),
        (functools.partial(rand_augment.shear_x, amount=0.3), (1, 0.3, 0, 0, 1, 0)),
        (functools.partial(rand_augment.shear_y, amount=-0.2), (1, 0, 0, -0.2, 1, 0)),
        (functools.partial(rand_augment.translate, down=2.5, right=0.0), (1, 0, 0, 0, 1, -2.5)),
        (functools.partial(rand_augment.translate, down=0.0, right=-3.25), (1, 0, 3.25, 0, 1, 0)),
    ],
)
def test_geometry_is_that_of_pillow(ours, coefficients):
    got, expected = np.asarray(ours(OBLONG))[..., 0], pillow(OBLONG, coefficients)
    # Pillow repeats the outermost pixels for half a pixel, where ours fade to black: compare what lies inside.
    inside = (
        pillow(jnp.ones_like(OBLONG).at[0].set(0).at[-1].set(0).at[:, 0].set(0).at[:, -1].set(0), coefficients) == 1
    )
    assert inside.sum() > 60
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-5)
    outside = (expected == 0) & (pillow(jnp.ones_like(OBLONG), coefficients) == 0)
    assert (got[outside] < 0.51).all()


def test_a_quarter_turn_and_whole_pixels_are_exact():
    np.testing.assert_allclose(rand_augment.rotate(SQUARE, 90.0), jnp.rot90(SQUARE), atol=1e-5)
    moved = np.zeros_like(SQUARE)
    moved[2:, 3:] = SQUARE[:-2, :-3]
    np.testing.assert_allclose(rand_augment.translate(SQUARE, 2.0, 3.0), moved, atol=1e-6)


def test_without_magnitude_nothing_with_a_strength_does_anything():
    free = set(ALL) - {"auto_contrast", "equalize"}
    coarse = jnp.rint(SQUARE * 255) / 255  # posterize to 8 bits rounds
    for name, operation in operations(0, 11, 11).items():
        if name in free:
            np.testing.assert_allclose(operation(coarse, jnp.float32(1)), coarse, atol=1e-5, err_msg=name)


def test_the_strongest_magnitude_has_the_published_ranges():
    strong = operations(30, 11, 11)
    one, sign = SQUARE, jnp.float32(-1)
    expected = {
        "rotate": rand_augment.rotate(one, -30.0),
        "shear_x": rand_augment.shear_x(one, -0.3),
        "shear_y": rand_augment.shear_y(one, -0.3),
        "translate_x": rand_augment.translate(one, 0.0, -11 * 150 / 331),
        "translate_y": rand_augment.translate(one, -11 * 150 / 331, 0.0),
        "color": color.saturation(one, 0.1),
        "contrast": color.contrast(one, 0.1),
        "brightness": color.brightness(one, 0.1),
        "sharpness": color.sharpness(one, 0.1),
        "solarize": 1 - one,
        "posterize": color.posterize(one, 4),
        "identity": one,
        "auto_contrast": color.auto_contrast(one),
        "equalize": color.equalize(one),
    }
    assert set(expected) == set(strong) == set(ALL)
    for name, image in expected.items():
        np.testing.assert_allclose(strong[name](one, sign), image, atol=1e-6, err_msg=name)


def test_every_operation_is_drawn_about_as_often_with_either_sign():
    keys = jax.random.split(jax.random.key(3), 1500)
    chosen = ("solarize", "brightness", "identity")
    layer = RandAugment(layers=1, magnitude=15, operations=chosen)
    out = np.asarray(jax.jit(jax.vmap(lambda key: layer(SQUARE, key)))(keys))
    table = operations(15, 11, 11)
    found = []
    for name in chosen:
        for sign in (1.0, -1.0):
            same = np.abs(out - np.asarray(table[name](SQUARE, jnp.float32(sign)))).max((1, 2, 3)) < 1e-6
            found.append(same.mean())
    solarized, _, brighter, darker, same, _ = found
    assert all(abs(share - 1 / 3) < 0.05 for share in (solarized, brighter + darker, same))
    assert abs(brighter - darker) < 0.06 and solarized + brighter + darker + same == pytest.approx(1)


def test_two_layers_are_two_single_ones():
    chosen = ("solarize", "brightness")
    layer, key = RandAugment(layers=2, magnitude=15, operations=chosen), jax.random.key(8)
    table, once = operations(15, 11, 11), []
    for own in jax.random.split(key, 2):
        which, side = jax.random.split(own)
        sign = 1.0 if jax.random.bernoulli(side) else -1.0
        once.append((chosen[int(jax.random.randint(which, (), 0, 2))], sign))
    expected = SQUARE
    for name, sign in once:
        expected = table[name](expected, jnp.float32(sign))
    np.testing.assert_allclose(layer(SQUARE, key), expected, atol=1e-6)


NEW = [
    {"type": "random_resized_crop"},
    {"type": "color_jitter", "brightness": 0.8, "hue": 0.5},
    {"type": "cutout", "size": 4},
    {"type": "rand_augment", "magnitude": 30},
]


@pytest.mark.parametrize("shape", [(9, 8, 3), (9, 8, 1)])
@pytest.mark.parametrize("config", NEW, ids=lambda config: config["type"])
def test_results_stay_in_range_follow_the_key_and_do_not_depend_on_the_batch(config, shape):
    parts = {"own": make("augmentation", config)}
    run = jax.jit(lambda images, keys: augment(images, keys, parts))
    images = jax.random.uniform(jax.random.key(5), (64, *shape))
    images = images.at[0].set(0.0).at[1].set(1.0).at[2].set(images[3])
    keys = jax.random.split(jax.random.key(6), 64).at[2].set(jax.random.split(jax.random.key(6), 64)[3])
    out = np.asarray(run(images, keys))
    assert out.shape == images.shape and out.dtype == np.float32 and np.isfinite(out).all()
    assert out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(out[2], out[3])  # the same image and key
    rows = np.array([40, 3, 7, 0])
    alone = np.asarray(run(jnp.tile(images[rows], (16, 1, 1, 1)), jnp.tile(keys[rows], 16)))[:4]
    np.testing.assert_allclose(alone, out[rows], atol=1e-6)
    other = np.asarray(run(images, jax.random.split(jax.random.key(7), 64)))
    assert np.abs(out - other).max((1, 2, 3)).astype(bool).sum() > 32


def test_places_are_computed_in_float32_on_every_device():
    layer = make("augmentation", {"type": "rand_augment"})
    program = jax.jit(lambda image, key: augment(image, key, {"own": layer})).lower(
        SQUARE[None], jax.random.split(jax.random.key(0), 1)
    )
    products = [line for line in program.as_text().splitlines() if "stablehlo.dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)
