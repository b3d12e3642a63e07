"""Folders of images in ImageNet's layout."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from llrflow.base.errors import DataError
from llrflow.data import folder as folders
from llrflow.data.facts import describe
from llrflow.data.images import decode
from llrflow.data.importers import import_files
from llrflow.data.reader import Records, open_dataset
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

CLASSES = ["n01 cat", "n02", "n10"]


def picture(place, seed, size=(9, 7), mode="RGB", **options):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(place, **options)


@pytest.fixture
def source(tmp_path):
    """train: 3 classes of 4 images, val: 2 each, JPEG and PNG of several sizes."""
    root = tmp_path / "source"
    for split, n in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                file = root / split / name / f"img_{9 - i}.{'JPEG' if i % 2 else 'png'}"
                picture(file, 100 * label + i, (9 + i, 7 + label))
    (root / "train" / CLASSES[0] / ".DS_Store").write_text("no image")
    return root


def all_files(root, split):
    """(path, label) in the order that is promised."""
    for label, name in enumerate(CLASSES):
        for path in sorted((root / split / name).iterdir()):
            if not path.name.startswith("."):
                yield path, label


def one_size(root):
    for path in root.rglob("img*"):
        with Image.open(path) as image:
            image.resize((8, 6)).save(path)


def test_files_are_stored_byte_by_byte_in_order_with_class_names(source, tmp_path):
    seen = []
    report = import_files("folder", "f", source, tmp_path, lambda *done: seen.append(done))
    assert report.written and report.counts == {"train": 12, "test": 6} and report.image_shape == (None, None, 3)
    assert report.class_names == CLASSES and report.label_counts == {"train": [4] * 3, "test": [2] * 3}
    assert seen[-1] == (18, 18) and report.corrupt == [] and set(report.files) == {"train/", "val/"}
    dataset = open_dataset(Data(name="f", dir=str(tmp_path)))
    assert dataset.class_names == tuple(CLASSES) and dataset.image_shape == (None, None, 3)
    for split, stored in (("train", "train"), ("val", "test")):
        files = list(all_files(source, split))
        images, labels = Records(dataset, stored).read(range(len(files)))
        assert images == [path.read_bytes() for path, _ in files] and labels.tolist() == [label for _, label in files]


def test_images_of_one_size_are_read_as_any_other_dataset(source, tmp_path):
    one_size(source)
    assert import_files("folder", "f", source, tmp_path).image_shape == (6, 8, 3)
    data = Data(name="f", dir=str(tmp_path))
    assert describe(data).image_shape == (6, 8, 3)
    expected = [np.asarray(Image.open(path)) for path, _ in all_files(source, "train")]
    np.testing.assert_array_equal(load_split(data, "train").images, expected)


def test_images_of_many_sizes_need_the_size_to_train_on(source, tmp_path):
    import_files("folder", "f", source, tmp_path)
    with pytest.raises(DataError, match=r"data\.image_size: is missing: the images of f vary in size; set it"):
        describe(Data(name="f", dir=str(tmp_path)))
    data = Data(name="f", dir=str(tmp_path), image_size=5)
    assert describe(data).image_shape == (5, 5, 3) and load_split(data, "train").images.shape == (12, 5, 5, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_images_of_other_colour_modes_come_out_with_three_channels(source, tmp_path, mode):
    one_size(source)
    odd = source / "train" / CLASSES[1] / f"img_6.{'JPEG' if mode == 'CMYK' else 'png'}"
    picture(odd, 5, (8, 6), mode)
    import_files("folder", "f", source, tmp_path)
    row = [path for path, _ in all_files(source, "train")].index(odd)
    got = load_split(Data(name="f", dir=str(tmp_path)), "train").images[row]
    with Image.open(odd) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_gray_images_alone_keep_one_channel(source, tmp_path):
    one_size(source)
    for i, path in enumerate(source.rglob("img*")):
        picture(path, i, (8, 6), "L")
    assert import_files("folder", "f", source, tmp_path).image_shape == (6, 8, 1)
    assert load_split(Data(name="f", dir=str(tmp_path)), "test").images.shape == (6, 6, 8, 1)


def test_importing_twice_keeps_the_first_and_other_content_is_refused(source, tmp_path):
    first = import_files("folder", "f", source, tmp_path)
    again = import_files("folder", "f", source, tmp_path)
    assert not again.written and again.counts == first.counts and again.files == first.files
    picture(source / "val" / CLASSES[0] / "img_9.png", 77)
    with pytest.raises(DataError, match="'f' with other content exists"):
        import_files("folder", "f", source, tmp_path)


def without(path):
    def apply(root):
        shutil.rmtree(root / path)

    return apply


def make(path, content=b"x"):
    def apply(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return apply


REFUSED = {
    "class missing in validation": (without("val/n02"), "val: has no folder for class n02; both splits need"),
    "class missing in training": (without("train/n10"), "train: has no folder for class n10"),
    "empty class": (lambda r: [p.unlink() for p in (r / "val/n02").iterdir()], "val/n02: holds no image"),
    "no validation": (without("val"), "has no folder test, val, validation, valid; it holds train"),
    "no training": (without("train"), "has no train; it holds val"),
    "image outside": (make("val/img.png"), r"val/img\.png: lies outside the folders of classes"),
    "no image": (make("train/n02/notes.txt"), r"train/n02/notes\.txt: cannot be read: is neither a JPEG nor a PNG"),
    "folder in a class": (
        make("val/n02/more/x.png"),
        "val/n02/more: is a folder among images; move its images",
    ),
    "flat test alone": (lambda r: (without("val")(r), make("test/img.png")(r)), r"test/img\.png: lies outside"),
    "nothing": (make("train/n10/img_8.JPEG", b""), r"n10/img_8\.JPEG: cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_not_sound_are_refused_before_anything_is_written(source, tmp_path, case):
    damage, says = REFUSED[case]
    damage(source)
    with pytest.raises(DataError, match=says) as caught:
        import_files("folder", "f", source, tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def damage(path):
    """Cut an image at its end: its header is sound, and only decoding shows it."""
    content = path.read_bytes()
    path.write_bytes(content[:-60])


@pytest.mark.parametrize("name", ["img_9.png", "img_8.JPEG"])
def test_a_corrupt_image_is_named_and_leaves_nothing(source, tmp_path, name):
    damage(source / "val" / "n10" / name)
    with pytest.raises(DataError, match=rf"val/n10/{name}: cannot be read: .*allow a share .* --max-corrupt"):
        import_files("folder", "f", source, tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").rglob("*") if p.is_file()] == ["write.lock"]


def test_corrupt_images_up_to_a_share_are_left_out_and_counted(source, tmp_path):
    damage(source / "train" / "n02" / "img_8.JPEG")
    (source / "val" / "n02" / "img_9.png").write_text("no image")
    report = import_files("folder", "f", source, tmp_path, options={"max_corrupt": 2 / 18})
    assert report.counts == {"train": 11, "test": 5} and report.label_counts["train"] == [4, 3, 4]
    assert sorted(line.split(":")[0] for line in report.corrupt) == ["train/n02/img_8.JPEG", "val/n02/img_9.png"]
    stored = json.loads((tmp_path / "f/1.0.0/llrflow_source.json").read_text())
    assert stored["corrupt"] == report.corrupt and stored["folders"] == {"train": "train", "test": "val"}
    dataset = open_dataset(Data(name="f", dir=str(tmp_path)))
    kept = [p.read_bytes() for p, _ in all_files(source, "train") if p.name != "img_8.JPEG" or "n02" not in str(p)]
    assert Records(dataset, "train").read(range(11))[0] == kept
    assert not import_files("folder", "f", source, tmp_path, options={"max_corrupt": 0.2}).written
    damage(source / "train" / "n10" / "img_8.JPEG")
    with pytest.raises(DataError, match=r"number 3 of 18 images; --max-corrupt 0\.12 allows 2"):
        import_files("folder", "g", source, tmp_path, options={"max_corrupt": 0.12})
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(source, tmp_path, share):
    with pytest.raises(DataError, match=r"--max-corrupt: .* is no share below 1"):
        import_files("folder", "f", source, tmp_path, options={"max_corrupt": share})


def test_sixteen_bit_images_are_corrupt(source, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(source / "train/n02/img_9.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        import_files("folder", "f", source, tmp_path)


MEMORY = """
import resource, sys
from pathlib import Path
from llrflow.data import folder, writer
from llrflow.data.importers import import_files
folder._CHUNK, writer._BATCH_BYTES = 8, 2**22
import tensorflow_datasets, array_record.python.array_record_module, PIL.Image
import_files("folder", "warm", Path(sys.argv[1]), Path(sys.argv[3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_files("folder", "f", Path(sys.argv[2]), Path(sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    for name, n in (("few", 10), ("many", 150)):
        for split in ("train", "test"):
            for label in "ab":
                (tmp_path / name / split / label).mkdir(parents=True)
                for i in range(n):
                    picture(tmp_path / name / split / label / f"{i}.png", i, (400, 400))
    out = [sys.executable, "-c", MEMORY, tmp_path / "few", tmp_path / "many", tmp_path / "data"]
    grown = int(subprocess.run(out, capture_output=True, text=True, check=True).stdout)
    total = sum(path.stat().st_size for path in (tmp_path / "many").rglob("*.png")) // 2**20
    assert total > 250 and grown < 100, f"{grown} MiB more for {total} MiB of images"


def test_the_names_that_the_module_relies_on_are_there(source):
    assert folders.HELD_OUT[0] == "test"  # a folder called test goes before val
    shutil.copytree(source / "val", source / "test")
    assert folders._split_folders(source)[0]["test"] == source / "test"
    path = next(all_files(source, "val"))[0]
    assert decode(path.read_bytes(), 3).shape[-1] == 3


def test_a_flat_test_folder_is_passed_over_and_the_choice_is_told(source, tmp_path, command):
    (source / "test").mkdir()
    picture(source / "test" / "ILSVRC2012_test_1.JPEG", 1)
    arguments = ("data", "import", "f", "--format", "folder", "--from", source, "--data-dir", tmp_path / "data")
    code, out, err = command(*arguments)
    assert code == 0 and "  the split test is val/" in out.splitlines(), err
    assert "  test/ was left out: it has no folders of classes" in out.splitlines() and "  test: 6 examples" in out
    shutil.rmtree(source / "test")
    shutil.copytree(source / "val", source / "test")
    report = import_files("folder", "g", source, tmp_path / "data")
    assert report.notes == ["the split test is test/", "val/ was left out: it is another folder of held-out images"]


def test_an_orientation_is_told_and_not_applied(source, tmp_path):
    one_size(source)
    path = source / "train" / "n02" / "img_8.JPEG"
    exif = Image.Exif()
    for orientation, told in ((1, 0), (6, 1)):
        exif[0x0112] = orientation
        picture(path, 3, (8, 6), exif=exif)
        report = import_files("folder", f"f{orientation}", source, tmp_path)
        notes = [note for note in report.notes if "EXIF" in note]
        says = "1 image(s) have an EXIF orientation, which is not applied: train/n02/img_8.JPEG; turn"
        assert len(notes) == told and all(note.startswith(says) for note in notes)
    row = [found for found, _ in all_files(source, "train")].index(path)
    with Image.open(path) as image:
        stored = load_split(Data(name="f6", dir=str(tmp_path)), "train").images[row]
        np.testing.assert_array_equal(stored, np.asarray(image))
