import io

import numpy as np
import pytest
from PIL import Image

from llrflow.data.crops import TRIES, RandomResizedCrop
from llrflow.data.images import CorruptImage, decode_into, decode_window
from llrflow.data.windows import OriginalCrop, centre


def picture(height, width, mode="RGB"):
    """A smooth picture with some detail."""
    rows, columns = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns), np.sin(4 * rows * columns)]
    return Image.fromarray(np.rint(127 + 100 * np.stack(waves, -1)).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(mode, kind, options, channels):
    content = encoded(picture(30, 41, mode), kind, **options)
    out = np.zeros((30, 41, channels), np.uint8)
    decode_into(content, out)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(out, expected.reshape(out.shape))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(20, 31), (64, 40), (150, 260), (1200, 900)])
def test_a_window_is_what_pillow_cuts_and_resizes(kind, size):
    content, out = encoded(picture(*size), kind), np.zeros((32, 32, 3), np.uint8)
    decode_window(content, out, centre)
    top, left, tall, wide = centre(*size)
    assert tall == wide == min(size) * 0.875 and 2 * top + tall == size[0] and 2 * left + wide == size[1]
    box = (left, top, left + wide, top + tall)
    whole = Image.open(io.BytesIO(content))
    expected = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR, box=box), float)
    assert np.abs(out - expected).mean() < 2.5  # of 255: whole pixels, and another filter


def test_a_window_of_a_large_original_keeps_its_detail():
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::40] = stripes[:, 1::40] = stripes[:, 2::40] = 255  # lost where the whole image shrinks to 32 pixels
    out = np.zeros((32, 32, 3), np.uint8)
    decode_window(encoded(Image.fromarray(stripes), "PNG"), out, lambda height, width: (0, 0, 64, 64))
    assert out.max() > 250 and out.min() == 0


@pytest.mark.parametrize("content", [b"", b"no image", encoded(picture(60, 60))[:400]], ids=["empty", "text", "half"])
def test_what_cannot_be_decoded_is_corrupt(content):
    for decode in (decode_into, lambda content, out: decode_window(content, out, centre)):
        with pytest.raises(CorruptImage):
            decode(content, np.zeros((60, 60, 3), np.uint8))


def test_an_image_of_another_size_is_corrupt():
    for kind in ("JPEG", "PNG"):
        with pytest.raises(CorruptImage, match="is 8 x 9, not 9 x 8"):
            decode_into(encoded(picture(8, 9), kind), np.zeros((9, 8, 3), np.uint8))


def test_host_windows_are_uniform_keyed_and_follow_the_augmentations_rule():
    crop = RandomResizedCrop(scale=(0.2, 0.5), ratio=(0.5, 1.5))
    of = OriginalCrop("crop", crop).window
    found = np.array([of(1, 2, example)(300, 200) for example in range(4000)])
    top, left, tall, wide = found.T
    area, ratio = tall * wide / 60_000, wide / tall
    assert 0.2 <= area.min() < 0.203 and 0.497 < area.max() < 0.5 and 0.5 <= ratio.min() < 0.51
    assert top.min() >= 0 and left.min() >= 0 and (top + tall).max() <= 300 and (left + wide).max() <= 200
    assert abs(area.mean() - 0.35) < 0.01 and abs(top.mean() / (300 - tall).mean() - 0.5) < 0.02
    assert len(np.unique(found, axis=0)) == 4000
    ones = {of(1, 2, 3)(300, 200), of(9, 2, 3)(300, 200), of(1, 9, 3)(300, 200), of(1, 2, 9)(300, 200)}
    ones.add(OriginalCrop("other", crop).window(1, 2, 3)(300, 200))
    assert len(ones) == 5 and of(1, 2, 3)(300, 200) in ones


def test_the_windows_are_pinned():
    # A change here changes the numbers of every run on images that vary in size: say so in the changelog.
    found = OriginalCrop("crop", RandomResizedCrop()).window(0, 0, 0)(375, 500)
    np.testing.assert_allclose(found, (75.83144888836, 197.49693748825, 297.25171534684, 294.38015798662), rtol=1e-9)


def test_the_rule_for_windows_is_one_for_numpy_and_jax():
    import jax.numpy as jnp

    crop, draws = RandomResizedCrop(), np.random.default_rng(0).random((200, 2 * TRIES + 2))
    for areas, ratios, places in ((d[:TRIES], d[TRIES:-2], d[-2:]) for d in draws):
        host = crop.window_of(90, 60, areas, ratios, places, np)
        device = crop.window_of(90, 60, *(jnp.asarray(d, jnp.float32) for d in (areas, ratios, places)), jnp)
        np.testing.assert_allclose(np.array(device), np.array(host), atol=1e-3)
