"""How long it takes to bring real images in, and to open them again."""

import time
from pathlib import Path

import pytest

from llrflow.data.block import Data
from llrflow.data.importers import import_idx
from llrflow.data.resident import load_split


@pytest.mark.slow
@pytest.mark.alone
def test_fashion_mnist_is_imported_in_a_minute_and_opened_in_a_second(fashion_mnist: Path, tmp_path: Path) -> None:
    data, began = Data(name="fashion_mnist", dir=str(tmp_path)), time.perf_counter()
    import_idx("fashion_mnist", fashion_mnist, tmp_path)
    assert time.perf_counter() - began <= 60
    load_split(data, "train")
    began = time.perf_counter()
    load_split(data, "train")
    assert time.perf_counter() - began <= 1
