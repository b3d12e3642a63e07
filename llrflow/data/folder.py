"""Folders of images in ImageNet's layout: <split>/<class>/<image>.jpg."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from llrflow.base.errors import DataError
from llrflow.base.files import open_regular, read_regular
from llrflow.base.validation import listing
from llrflow.data.examples import Examples, of_files
from llrflow.data.images import CorruptImage, Header, allowed_corrupt, decode, header_of
from llrflow.data.importing import ImportReport, check_name, store
from llrflow.data.metadata import content_of
from llrflow.data.writer import VERSION, Progress

HELD_OUT = ("test", "val", "validation", "valid")
"""Folders that may hold the images to evaluate on; the first that has folders of classes becomes the split `test`."""

_CHUNK = 64


@dataclass
class _Corrupt:
    """The images that cannot be read so far, and when there are too many of them; those that are read as they lie."""

    share: float
    total: int = 0
    found: dict[str, str] = field(default_factory=dict)
    turned: list[Path] = field(default_factory=list)
    """Images that can be read and whose metadata asks to turn them."""

    def add(self, path: Path, problem: str) -> None:
        """Take note of one; DataError when that is more than the share allows."""
        self.found[str(path)] = problem
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        allowed = allowed_corrupt(self.share, self.total)
        if len(self.found) > allowed:
            if self.share == 0:
                fix = "replace or delete it, or allow a share of such images with --max-corrupt"
                raise DataError(shown, f"cannot be read: {problem}", fix)
            got = f"cannot be read: {problem}; it is number {len(self.found)} of {self.total} images"
            raise DataError(shown, got, f"--max-corrupt {self.share:g} allows {allowed}")


@dataclass
class _Split:
    """One split's files by class, in the order in which they are written."""

    folder: Path
    files: list[list[str]]
    corrupt: _Corrupt
    size: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def paths(self, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
        """Every file that is not known to be corrupt, with its class."""
        for label, names in enumerate(self.files):
            for name in names:
                path = self.folder / classes[label] / name
                if str(path) not in self.corrupt.found:
                    yield path, label

    def examples(self, classes: Sequence[str], channels: int) -> Examples:
        """The split as examples, each decoded on the way to see that it can be."""

        def check(item: tuple[Path, int]) -> bytes | CorruptImage:
            try:
                content = read_regular(item[0])
                decode(content, channels)
            except CorruptImage as error:
                return error
            except OSError as error:
                return CorruptImage(error.strerror or str(error))
            return content

        def read() -> Iterator[tuple[bytes, int]]:
            self.counts = np.zeros(len(classes), np.int64)
            rest = self.paths(classes)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                while items := list(islice(rest, _CHUNK)):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # Pillow's, on odd metadata
                        contents = list(pool.map(check, items))
                    for (path, label), content in zip(items, contents, strict=True):
                        if isinstance(content, CorruptImage):
                            self.corrupt.add(path, str(content))
                            continue
                        self.counts[label] += 1
                        yield content, label

        return of_files(sum(map(len, self.files)), self.size, read)


def import_folder(
    name: str, source: Path, data_dir: Path, progress: Progress | None = None, *, max_corrupt: float = 0.0
) -> ImportReport:
    """Import the JPEG and PNG files of `train/` and of `test/`, `val/` or `validation/`, one folder a class.

    Of the latter it is the first that has folders of classes: ImageNet's own `test/` has none. Files are stored as they
    are, in the order of their names; class k is the k-th folder of `train` by name. Gray images among colour ones are
    decoded to three channels. An EXIF orientation is not applied, as in torchvision's `ImageFolder`, and reported.
    Images that cannot be decoded are left out as long as they are at most the share `max_corrupt` of all, and named.
    Raises DataError naming the folder or file.
    """
    check_name(name)
    if not 0 <= max_corrupt < 1:
        raise DataError("--max-corrupt", f"{max_corrupt:g} is no share below 1", "give for example 0.001")
    folders, notes = _split_folders(source)
    classes, held_out = (_class_folders(folders[split]) for split in ("train", "test"))
    _check_classes(folders, classes, held_out)
    corrupt = _Corrupt(max_corrupt)
    splits = {s: _Split(f, [_files(f / c) for c in classes], corrupt) for s, f in folders.items()}
    corrupt.total = sum(len(names) for split in splits.values() for names in split.files)
    shape = _scan(splits, classes)
    examples = {s: split.examples(classes, shape[-1]) for s, split in splits.items()}
    written = store(
        name,
        data_dir,
        examples,
        file_format="folder",
        classes=classes,
        source=lambda: {"folders": {s: f.name for s, f in folders.items()}, "corrupt": _named(source, corrupt)},
        description=f"Imported from folders of images: {listing(f.name for f in folders.values())}.",
        progress=progress,
        image_shape=shape,
    )
    directory = data_dir / name / VERSION
    return ImportReport(
        name=name,
        directory=str(directory),
        written=written,
        image_shape=shape,
        classes=len(classes),
        counts={s: int(split.counts.sum()) for s, split in splits.items()},
        label_counts={s: split.counts.tolist() for s, split in splits.items()},
        files={f"{folders[s].name}/": sum_ for s, sum_ in (content_of(directory) or {}).items()},
        class_names=classes,
        corrupt=_named(source, corrupt),
        notes=[*notes, *_not_turned(source, corrupt)],
    )


def _not_turned(source: Path, found: _Corrupt) -> Iterator[str]:
    """What to tell of images whose orientation is not applied."""
    if found.turned:
        first = os.path.relpath(found.turned[0], source)
        shown = first if first.isprintable() else ascii(first)
        many = f"{len(found.turned)} image(s) have an EXIF orientation, which is not applied: {shown}"
        yield f"{many}{' and others' if len(found.turned) > 1 else ''}; turn them by `mogrify -auto-orient` if you want"


def _named(source: Path, corrupt: _Corrupt) -> list[str]:
    named = {os.path.relpath(path, source): problem for path, problem in corrupt.found.items()}
    return [f"{name if name.isprintable() else ascii(name)}: {problem}" for name, problem in named.items()]


def _split_folders(source: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, and what to tell of the choice. Raises DataError."""
    if not source.is_dir():
        raise DataError(str(source), "is not a directory", "give the folder that holds train/ and val/ or test/")
    there = [source / name for name in HELD_OUT if (source / name).is_dir()]
    usable = [folder for folder in there if _has_folders(folder)]
    held_out = next(iter([*usable, *there]), None)
    if not (source / "train").is_dir() or held_out is None:
        holds = ", ".join(sorted(p.name for p in source.iterdir())[:8]) or "nothing"
        got = f"has no {'train' if held_out else 'folder ' + ', '.join(HELD_OUT)}; it holds {holds}"
        raise DataError(str(source), got, "lay the images out as train/CLASS/IMAGE and val/CLASS/IMAGE")
    notes = [f"the split test is {held_out.name}/"]
    for folder in there:
        if folder != held_out:
            why = "is another folder of held-out images" if folder in usable else "has no folders of classes"
            notes.append(f"{folder.name}/ was left out: it {why}")
    return {"train": source / "train", "test": held_out}, notes


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _class_folders(folder: Path) -> list[str]:
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if not entry.is_dir():
            got = "lies outside the folders of classes"
            raise DataError(entry.path, got, f"move it to {folder.name}/CLASS/, or remove it")
        if not entry.name.isprintable():  # bytes that are no UTF-8 among them
            fix = "give it a name of letters and digits, in UTF-8"
            raise DataError(ascii(entry.path), "is no possible name of a class", fix)
    return [entry.name for entry in entries]


def _check_classes(folders: dict[str, Path], classes: list[str], held_out: list[str]) -> None:
    if len(classes) < 2:
        raise DataError(
            str(folders["train"]), f"has {len(classes)} folders of classes", "a classifier needs two or more"
        )
    for folder, there, wanted in (
        (folders["test"], held_out, classes),
        (folders["train"], classes, held_out),
    ):
        missing = sorted(set(wanted) - set(there))
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            got = f"has no folder for class {', '.join(missing[:8])}{more}"
            raise DataError(str(folder), got, "both splits need the same folders of classes")


def _files(folder: Path) -> list[str]:
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir():  # as one corrupt image it would take all that it holds along
            shown = entry.path if entry.path.isprintable() else ascii(entry.path)
            raise DataError(shown, "is a folder among images", f"move its images to {folder.name}/, or remove it")
    names = [entry.name for entry in entries]
    if not names:
        raise DataError(str(folder), "holds no image", "both splits need images of every class")
    return names


def _scan(splits: dict[str, _Split], classes: list[str]) -> tuple[int | None, int | None, int]:
    """Look at every header: (H, W, C) of all images, H and W None where they vary. Notes sizes and corrupt images."""
    sizes: set[tuple[int, int]] = set()
    gray = True
    for split in splits.values():
        for path, _ in split.paths(classes):
            try:
                header = _header(path)
            except CorruptImage as error:
                split.corrupt.add(path, str(error))
                continue
            split.size += path.stat().st_size
            if header.turned:
                split.corrupt.turned.append(path)
            gray = gray and header.gray
            if len(sizes) < 2:
                sizes.add((header.height, header.width))
    height, width = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    return height, width, 1 if gray else 3


def _header(path: Path) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_regular(path) as file:
                return header_of(file)
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from None
