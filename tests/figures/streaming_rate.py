"""Images per second of the streaming pipeline beside a bare OpenCV loop and, where it is installed, Grain.

    python tests/figures/streaming_rate.py DIR [grain]        # `pip install grain` first for the latter

DIR keeps two datasets of JPEG files cut from scikit-learn's photographs: 224 x 224, and 500 x 375 to be resized. The
bare loop decodes bytes that lie in memory and resizes them to 224 x 224, with one thread per core; all take turns.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from llrflow.data.batches import batch_ids
from llrflow.data.examples import of_files
from llrflow.data.pipelines import open_split
from llrflow.data.schema import Data
from llrflow.data.split import Loaded, Request, Split
from llrflow.data.writer import write_tfds

SIDE, BATCH, RECORDS, DISTINCT = 224, 64, 2048, 256
SIZES = {"jpeg_224": (224, 224), "jpeg_500x375": (375, 500)}
WORKERS = len(os.sched_getaffinity(0))


def photographs(height: int, width: int) -> list[bytes]:
    """Random cuts of two photographs as JPEG files of one size."""
    from sklearn.datasets import load_sample_images

    photos, rng, files = [Image.fromarray(image) for image in load_sample_images().images], np.random.default_rng(0), []
    for i in range(DISTINCT):
        wide = min(640, 427 * width / height) * rng.uniform(0.5, 1)
        tall = wide * height / width
        left, top = rng.uniform(0, 640 - wide), rng.uniform(0, 427 - tall)
        box = (left, top, left + wide, top + tall)
        file = io.BytesIO()
        photos[i % 2].resize((width, height), Image.Resampling.BILINEAR, box=box).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def streamed(directory: Path, name: str) -> tuple[Split, list[bytes]]:
    """A streaming split of the photographs, written on first use, and the files in it."""
    height, width = SIZES[name]
    files = photographs(height, width)

    def examples(n: int) -> Any:
        return of_files(n, n * len(files[0]), lambda: ((files[i % DISTINCT], i % 10) for i in range(n)))

    shape = (height, width, 3) if height == width else (None, None, 3)
    splits = {"train": examples(RECORDS), "test": examples(10)}
    write_tfds(name, directory, splits, classes=10, description="", source={}, image_shape=shape)
    size = {} if height == width else {"image_size": SIDE}
    data = Data.model_validate({"name": name, "dir": str(directory), "pipeline": "streaming", **size})
    return open_split(data, "train", 0), files


def bare(files: list[bytes], n: int) -> None:
    """Decode and resize, and do nothing with it."""
    turns = [files[i % DISTINCT] for i in range(n)]

    def some(part: list[bytes]) -> None:
        for content in part:
            cv2.resize(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), (SIDE, SIDE))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(some, (turns[i : i + BATCH] for i in range(0, n, BATCH))))


def ours(split: Split, n: int) -> None:
    """As training reads it."""
    for _ in split.batches(0, range(n // BATCH), BATCH):
        pass


def grain_by(split: Any, n: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Grain's ways with the same reader and decoder: elements in threads, and whole batches in threads."""
    import grain

    ids = np.concatenate([batch_ids(0, step, len(split), BATCH) for step in range(n // BATCH)]).tolist()

    def one(example: int) -> Any:
        records, label = split._records.read([example])
        image = np.empty((SIDE, SIDE, 3), np.uint8)
        split._decode(Request(np.array([example])), example, records[0], image)
        return image, label[0]

    def batch(step: int) -> Any:
        request = Request(np.array(ids[step * BATCH : (step + 1) * BATCH]))
        images, labels = np.empty((BATCH, SIDE, SIDE, 3), np.uint8), np.empty(BATCH, np.int32)
        split._fill(request, Loaded(images, labels, request.ids), slice(0, BATCH))
        return images, labels

    def elements() -> None:
        source = grain.MapDataset.source(ids).map(one).to_iter_dataset(grain.ReadOptions(WORKERS, 2 * BATCH))
        for _ in source.batch(BATCH):
            pass

    def batches() -> None:
        for _ in grain.MapDataset.range(n // BATCH).map(batch).to_iter_dataset(grain.ReadOptions(WORKERS, 2)):
            pass

    yield "grain, elements in threads", elements
    yield "grain, batches in threads", batches


def rates(directory: Path, name: str, n: int, rounds: int, with_grain: bool = False) -> dict[str, Any]:
    """Median ratios of the bare loop's time to each way's, over rounds in which they take turns."""
    split, files = streamed(directory, name)
    ways = {"bare": lambda: bare(files, n), "ours": lambda: ours(split, n)}
    ways |= dict(grain_by(split, n)) if with_grain else {}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first warms up
                wall[way].append(time.perf_counter() - began)
                cpu[way].append(time.process_time() - used)

    def ratios(times: dict[str, list[float]]) -> dict[str, float]:
        pairs = {way: [b / t for b, t in zip(times["bare"], taken, strict=True)] for way, taken in times.items()}
        return {way: round(statistics.median(found), 3) for way, found in pairs.items() if way != "bare"}

    per_second = {way: round(n / statistics.median(taken)) for way, taken in wall.items()}
    found = {"ratio": ratios(wall), "cpu_ratio": ratios(cpu)}
    return {"images": name, "workers": WORKERS, "per_second": per_second, **found}


if __name__ == "__main__":
    for title in SIZES:
        print(json.dumps(rates(Path(sys.argv[1]), title, 1024, 7, "grain" in sys.argv)), flush=True)
