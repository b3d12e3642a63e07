import io
import zipfile

import numpy as np
import pytest

from llrflow.base.errors import DataError
from llrflow.data.importers import import_files
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), np.uint8)
LABELS = np.arange(12) % 3
SOUND = {
    "train_images": PIXELS,
    "train_labels": LABELS,
    "test_images": PIXELS[:4],
    "test_labels": LABELS[:4],
}
KERAS = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}


def write(path, **changes):
    arrays = {name: array for name, array in (SOUND | changes).items() if array is not None}
    np.savez_compressed(path, other=PIXELS, **arrays)
    return path


@pytest.mark.parametrize("convention", ["medmnist", "keras"])
def test_images_and_labels_are_kept_whatever_they_are_called(tmp_path, convention):
    arrays = SOUND if convention == "medmnist" else {KERAS[name]: array for name, array in SOUND.items()}
    np.savez(tmp_path / "a.npz", val_images=PIXELS[:1].astype(float), **arrays)
    source = tmp_path if convention == "keras" else tmp_path / "a.npz"
    report = import_files("npz", "n", source, tmp_path / "data")
    assert (
        report.counts == {"train": 12, "test": 4}
        and report.image_shape == (5, 4, 3)
        and list(report.files) == ["a.npz"]
    )
    for split, n in (("train", 12), ("test", 4)):
        got = load_split(Data(name="n", dir=str(tmp_path / "data")), split)
        np.testing.assert_array_equal(got.images, PIXELS[:n])
        np.testing.assert_array_equal(got.labels, LABELS[:n])


def test_gray_images_and_labels_in_a_column_are_taken(tmp_path):
    gray = {"train_images": PIXELS[..., 0], "test_images": PIXELS[:4, ..., :1]}
    columns = {"train_labels": LABELS[:, None].astype(np.uint8), "test_labels": LABELS[:4, None]}
    import_files("npz", "n", write(tmp_path / "a.npz", **gray, **columns), tmp_path)
    got = load_split(Data(name="n", dir=str(tmp_path)), "train")
    np.testing.assert_array_equal(got.images, PIXELS[..., :1])
    np.testing.assert_array_equal(got.labels, LABELS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_labels": LABELS[:-1]}, "has 11 train_labels for 12 train_images"),
        ({"test_labels": LABELS[:4] + 1}, "test labels: has label 3, but the training labels are 0..2"),
        ({"test_labels": LABELS[:4] - 1}, "test labels: has label"),
        ({"train_labels": LABELS - 1}, "train labels: has label -1"),
        ({"train_labels": LABELS * 1000}, "labels run up to 2000, but no example is labelled 1, 2, 3"),
        ({"train_labels": LABELS * 0}, "has one class only"),
        ({"train_labels": LABELS.astype(float)}, r"train_labels is float64\[12\]"),
        ({"train_labels": LABELS.astype(object)}, "cannot be read: array train_labels: holds Python objects"),
        ({"train_images": PIXELS / 255}, "train_images is float64; store pixels as uint8"),
        ({"train_images": PIXELS.transpose(0, 3, 1, 2)}, r"train_images has the shape \[12, 3, 5, 4\]"),
        ({"train_images": PIXELS[:0], "train_labels": LABELS[:0]}, r"train_images has the shape \[0,"),
        ({"test_images": PIXELS[:4, :3]}, r"images to test are \[3, 4, 3\], those to train on \[5, 4, 3\]"),
        ({"test_images": None}, "has no array test_images; it holds .*test_labels"),
        (dict.fromkeys(SOUND), "holds other; name its arrays train_images, .* or x_train"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, changes, says):
    with pytest.raises(DataError, match=says) as caught:
        import_files("npz", "n", write(tmp_path / "a.npz", **changes), tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    whole = path.read_bytes()
    middle, inside = len(whole) // 2, whole.index(b"train_images") + 200
    single = io.BytesIO()
    np.save(single, PIXELS)
    for content, says in (
        (whole[:middle], "no intact .npz file"),
        (whole[:inside] + bytes([whole[inside] ^ 255]) + whole[inside + 1 :], "array train_images: "),
        (b"", "no intact .npz file"),
        (b"\x80\x04N.", "no intact .npz file"),
        (single.getvalue(), "no intact .npz file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            import_files("npz", "n", path, tmp_path / "data")
        assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()
    with zipfile.ZipFile(path, "w") as archive:
        for name in SOUND:
            archive.writestr(f"{name}.npy", "text")
    with pytest.raises(DataError, match="array train_images: "):
        import_files("npz", "n", path, tmp_path / "data")
    write(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"holds 2 \.npz files; give one"):
        import_files("npz", "n", tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match="is neither a file nor a directory"):
        import_files("npz", "n", tmp_path / "nowhere", tmp_path / "data")
