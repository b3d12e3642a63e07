"""`llrflow data show`: counts, classes and a picture of what training sees."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from llrflow.components.registry import make
from llrflow.data.augment import augment
from llrflow.data.gallery import _CELL, _GAP, _TEXT, augmented, draw_grid, sample
from llrflow.data.importers import import_files
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.method.keys import example_keys, purpose_key


def cell(picture, columns, i, shape):
    """The pixels of image i of a grid, brought back to its own size."""
    left, top = _GAP + i % columns * (_CELL + _GAP), _GAP + i // columns * (_CELL + _GAP + _TEXT)
    scale = _CELL / max(shape[:2])
    box = picture[top : top + round(shape[0] * scale), left : left + round(shape[1] * scale)]
    return box[:: round(scale), :: round(scale)][: shape[0], : shape[1]]


def test_counts_and_names_are_those_of_the_split(data_dir):
    data = Data(name="digits", dir=str(data_dir))
    split = load_split(data, "test[10:110]")
    found = sample(data, "test[10:110]", 7)
    assert found.n == 100 and found.histogram == np.bincount(split.labels, minlength=10).tolist()
    assert found.ids[0] == 0 and found.ids[-1] == 99 and len(found.ids) == 7
    np.testing.assert_array_equal(found.images, split.images[found.ids])
    assert found.labels == split.labels[found.ids].tolist() and found.class_names == tuple("0123456789")
    assert sample(data, "test[:3]", 7).ids == [0, 1, 2] and sample(data, "test", 0).images == []


def test_the_grid_shows_every_pixel():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    encoded = draw_grid([*images], list("abcde"))
    pixels, columns = np.asarray(Image.open(io.BytesIO(encoded))), 3
    assert pixels.shape == (2 * (_CELL + _GAP + _TEXT) + _GAP, columns * (_CELL + _GAP) + _GAP, 3)
    for i in range(5):
        np.testing.assert_array_equal(cell(pixels, columns, i, (8, 8)), images[i])
    titles = pixels[_GAP + _CELL : _GAP + _CELL + _TEXT, :_CELL]
    assert (titles < 100).any()  # something is written there


def test_the_picture_is_that_of_the_first_training_step(command, data_dir, tiny, write_spec, tmp_path):
    mapping = tiny()
    mapping["data"]["augment"] = {"crop": {"type": "pad_crop", "pad": 2}, "flip": {"type": "flip"}}
    spec = write_spec(tmp_path / "spec.yaml", mapping | {"seed": 3})
    arguments = ["data", "show", "digits", "--data-dir", data_dir, "--examples", 4, "--json"]
    outs = []
    for extra in ([], ["--augment", spec]):
        code, out, err = command(*arguments, "--out", tmp_path / "grid.png", *extra)
        assert code == 0 and err == "" and json.loads(out)["out"] == str(tmp_path / "grid.png")
        outs.append(np.asarray(Image.open(io.BytesIO((tmp_path / "grid.png").read_bytes()))))
    split, ids = (
        load_split(Data(name="digits", dir=str(data_dir)), "train"),
        [s["id"] for s in json.loads(out)["shown"]],
    )
    keys = example_keys(jax.random.fold_in(purpose_key(3, "augment"), 0), jnp.array(ids))
    parts = {name: make("augmentation", part) for name, part in mapping["data"]["augment"].items()}
    expected = augment(split.images[ids].astype(np.float32) / 255, keys, parts)
    assert (np.asarray(expected) != split.images[ids] / 255).any()
    for i in range(4):
        np.testing.assert_array_equal(cell(outs[0], 3, i, (8, 8))[..., :1], split.images[ids[i]])
        np.testing.assert_array_equal(cell(outs[1], 3, i, (8, 8))[..., :1], np.rint(255 * expected[i]))


def test_images_of_many_sizes_are_shown(command, tmp_path):
    for split in ("train", "val"):
        for k, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(k + 1):
                Image.new("RGB", (300 + i, 200 + 50 * k), (0, 0, 200)).save(tmp_path / split / name / f"{i}.jpg")
    import_files("folder", "f", tmp_path, tmp_path)
    code, out, err = command(
        "data", "show", "f", "--split", "test", "--data-dir", tmp_path, "--out", tmp_path / "g.png"
    )
    assert (code, err) == (0, "")
    assert out.startswith(
        "f test: 3 examples, ? x ? x 3, 2 classes\n  ant        1  ####################\n  bee        2  ###"
    )
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width == 2 * (_CELL + _GAP) + _GAP
    found = sample(Data(name="f", dir=str(tmp_path)), "test", 3)
    same = augmented(found, lambda images, ids: images)
    assert all((one == other).all() for one, other in zip(same, found.images, strict=True))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--augment", "x.yaml"], "--augment: changes the picture, and none is drawn; add --out"),
        (["--out", "no/where.png"], "--out: no/where.png has no parent folder; create"),
        (["--out", "a.png", "--examples", 0], "--out: draws no example"),
        (["--split", "validation"], "has no split 'validation'; choose from test, train"),
        (["--config", "x"], "data.config"),
    ],
)
def test_wrong_arguments_are_one_line(command, data_dir, arguments, says):
    code, out, err = command("data", "show", "digits", "--data-dir", data_dir, *arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and out == ""
