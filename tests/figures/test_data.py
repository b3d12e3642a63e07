"""How long it takes to bring real images in, to open them again, and to read batches of them."""

import statistics
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from streaming_rate import BATCH, RECORDS, rates, streamed

from llrflow.data.importers import import_idx
from llrflow.data.pipelines import open_split
from llrflow.data.resident import load_split
from llrflow.data.schema import Data
from llrflow.data.writer import write_tfds

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_fashion_mnist_is_imported_in_a_minute_and_opened_in_a_second(fashion_mnist: Path, tmp_path: Path) -> None:
    data, began = Data(name="fashion_mnist", dir=str(tmp_path)), time.perf_counter()
    import_idx("fashion_mnist", fashion_mnist, tmp_path)
    assert time.perf_counter() - began <= 60
    load_split(data, "train")
    began = time.perf_counter()
    load_split(data, "train")
    assert time.perf_counter() - began <= 1


def test_resident_images_of_cifar_are_opened_in_a_second_and_a_batch_takes_five_milliseconds(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    splits = {"train": (images, np.arange(50_000) % 10), "test": (images[:10], np.arange(10))}
    write_tfds("like_cifar", tmp_path, splits, classes=10, description="", source={})
    data = Data(name="like_cifar", dir=str(tmp_path))
    load_split(data, "train")
    began = time.perf_counter()
    split = load_split(data, "train")
    opened = time.perf_counter() - began
    batches, times = split.batches(0, range(400), 256), []
    for _ in range(400):
        began = time.perf_counter()
        next(batches)
        times.append(time.perf_counter() - began)
    print(
        f"opened in {opened:.3f} s, a batch takes {1e3 * statistics.mean(times):.2f} ms (most {1e3 * max(times):.2f})"
    )
    assert opened <= 1
    assert statistics.mean(times) <= 0.005


def test_a_batch_with_extra_images_takes_six_milliseconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("like_cifar", 50_000), ("generated", 50_000)):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        splits = {"train": (images, np.arange(count) % 10), "test": (images[:10], np.arange(10))}
        write_tfds(name, tmp_path, splits, classes=10, description="", source={})
    data = Data.model_validate(
        {"name": "like_cifar", "dir": str(tmp_path), "extra": {"name": "generated", "share": 0.7}}
    )
    batches, times = open_split(data, "train", 0).batches(0, range(700), 256), []  # more than an epoch of each set
    for _ in range(700):
        began = time.perf_counter()
        next(batches)
        times.append(time.perf_counter() - began)
    print(f"a batch takes {1e3 * statistics.mean(times):.2f} ms (most {1e3 * max(times):.2f})")
    assert statistics.mean(times) <= 0.006


@pytest.mark.parametrize(("name", "least"), [("jpeg_224", 0.85), ("jpeg_500x375", 0.8)])
def test_streaming_is_nearly_as_fast_as_a_bare_loop_of_opencv(tmp_path: Path, name: str, least: float) -> None:
    found = rates(tmp_path, name, 1024, 5)
    print(found)
    assert found["ratio"]["ours"] >= least


def test_memory_is_flat_over_twenty_thousand_streamed_images(tmp_path: Path) -> None:
    split, _ = streamed(tmp_path, "jpeg_224")
    process, resident = psutil.Process(), []
    for step, _ in enumerate(split.batches(0, range(20_480 // BATCH), BATCH)):
        if step >= RECORDS // BATCH:  # after an epoch
            resident.append(process.memory_info().rss)
    print(
        f"MiB: {resident[0] >> 20} after {RECORDS} images, {resident[-1] >> 20} at the end, most {max(resident) >> 20}"
    )
    assert statistics.median(resident[-32:]) - statistics.median(resident[:32]) <= 2**24
