"""`llrflow data prepare`: built-in datasets, TFDS's own builders, and what is missing for them said at once."""

import hashlib
import io
import json
import socket
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from llrflow.base.errors import DataError
from llrflow.data import prepare as module
from llrflow.data.prepare import prepare
from llrflow.data.resident import load_split
from llrflow.data.schema import Data

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class _Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(4, 5, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i, pixels in enumerate(PIXELS):
            yield i, {"image": png(pixels), "label": i % 3}


class LlrPictures(_Pictures):
    """Needs neither network nor TensorFlow."""


class LlrFails(_Pictures):
    def _generate_examples(self):
        raise RuntimeError("first line\nsecond line")


class LlrNeedsTensorflow(_Pictures):
    def _generate_examples(self):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
        yield


CONTENT = b"some bytes"
URL = "https://data.llrflow.invalid/labels.bin"


class LlrDownloads(_Pictures):
    """Reads one file that is published under URL."""

    url_infos = {
        URL: tfds.download.checksums.UrlInfo(
            size=len(CONTENT), checksum=hashlib.sha256(CONTENT).hexdigest(), filename="labels.bin"
        )
    }

    def _split_generators(self, dl_manager):
        assert dl_manager.download(URL).read_bytes() == CONTENT
        return super()._split_generators(dl_manager)


class LlrByHand(_Pictures):
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask\n  the authors."


def block(tmp_path, name):
    return Data(name=name, dir=str(tmp_path))


def test_a_builder_of_tfds_writes_array_records_that_load(tmp_path):
    made, new = prepare(block(tmp_path, "llr_pictures"))
    assert new and made.version == "1.2.0" and made.info()["fileFormat"] == "array_record"
    split = load_split(block(tmp_path, "llr_pictures"), "train")
    order = [next(i for i in range(6) if (PIXELS[i] == image).all()) for image in split.images]
    assert sorted(order) == list(range(6)) and split.labels.tolist() == [i % 3 for i in order]
    again, new = prepare(block(tmp_path, "llr_pictures"))
    assert again == made and not new


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_built_in_datasets_are_prepared_too(tmp_path, name):
    made, new = prepare(block(tmp_path, name))
    assert new and made.directory == tmp_path / name / "1.0.0" and not prepare(block(tmp_path, name))[1]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_without_a_network_files_are_taken_from_the_manual_directory(tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(
        DataError, match=r"llr_downloads: labels\.bin is to be downloaded from data\.llrflow\.invalid, wh"
    ):
        prepare(block(tmp_path, "llr_downloads"))
    assert time.perf_counter() - start < 10
    by_hand = tmp_path / "manual"
    by_hand.mkdir()
    (by_hand / "labels.bin").write_bytes(b"other bytes")
    with pytest.raises(DataError, match=r"TFDS cannot prepare it: .*labels.bin"):
        prepare(block(tmp_path, "llr_downloads"), by_hand)
    (by_hand / "labels.bin").write_bytes(CONTENT)
    assert prepare(block(tmp_path, "llr_downloads"), by_hand)[1]


def test_files_that_are_fetched_by_hand_are_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"fetched by hand: Ask the authors.; put them .* --manual-dir"):
        prepare(block(tmp_path, "llr_by_hand"))
    with pytest.raises(DataError, match=r"--manual-dir: .*nowhere is not a directory"):
        prepare(block(tmp_path, "llr_by_hand"), tmp_path / "nowhere")


def test_tensorflow_is_named_before_anything_is_downloaded(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for name in ("mnist", "cifar10", "llr_needs_tensorflow"):
        with pytest.raises(DataError, match=rf"{name}: .* needs TensorFlow, which is not installed; `pip install tens"):
            prepare(block(tmp_path, name))


def test_what_fails_is_one_line_and_leaves_no_dataset(tmp_path):
    with pytest.raises(DataError, match=r"llr_fails: TFDS cannot prepare it: .*first line") as caught:
        prepare(block(tmp_path, "llr_fails"))
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("dataset_info.json"))


def test_a_name_that_is_in_no_catalogue_gets_a_suggestion(tmp_path):
    with pytest.raises(DataError, match="cifar1O: is no dataset of TFDS's catalogue; did you mean 'cifar10'"):
        prepare(block(tmp_path, "cifar1O"))


def test_the_command_says_what_it_made_and_speaks_json(command, tmp_path):
    small = ["--set", "height=5", "--set", "width=4", "--set", "train=30", "--set", "test=20"]
    code, out, err = command("data", "prepare", "synthetic", *small, "--data-dir", tmp_path, "--json")
    made = json.loads(out)
    assert (code, err) == (0, "") and made["written"] and made["splits"] == {"train": 30, "test": 20}
    assert command("data", "prepare", "synthetic", *small, "--data-dir", tmp_path)[1] == (
        f"synthetic: already prepared in {tmp_path}/synthetic/5x4x3-10-30-20-0/1.0.0\n"
    )
    code, out, err = command("data", "prepare", "synthetic", "--set", "heigth=5", "--data-dir", tmp_path)
    assert (
        code == 2
        and err == "error: --set: options.heigth = 5 is not a field of dataset synthetic; did you mean 'height'?\n"
    )
    code, out, err = command("data", "prepare", "llr_pictures", "--data-dir", tmp_path, "--json")
    assert code == 0 and json.loads(out)["format"] == "array_record"
