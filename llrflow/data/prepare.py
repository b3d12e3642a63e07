"""Prepare a dataset: a built-in one, or one of TFDS's catalogue by TFDS's own builder."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llrflow.base.errors import DataError, line_of, shortened
from llrflow.base.validation import suggest
from llrflow.data.catalog import Prepared, find, prepared
from llrflow.data.schema import Data

_SECONDS = 5.0  # to wait for an answer of a server that is to be downloaded from


def prepare(data: Data, manual_dir: Path | None = None) -> tuple[Prepared, bool]:
    """(the dataset of a `data:` block, whether it was made now), in array_record format under `data.dir`.

    What is not built in is built by TFDS, from files in `manual_dir` (under their published names; TFDS verifies
    checksums) or from the network. Raises DataError at once when it cannot be: without the dataset in the catalogue,
    without TensorFlow where the builder calls it, without files that have to be fetched by hand, or offline.
    """
    before = {p.directory for p in prepared(data.directory)}
    if data.built_in is None and not any(p.name == data.name for p in prepared(data.directory)):
        _build(data, manual_dir)
    made = find(data)
    return made, made.directory not in before


def _build(data: Data, manual_dir: Path | None) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    if manual_dir is not None and not manual_dir.is_dir():
        raise DataError("--manual-dir", f"{manual_dir} is not a directory", "name the one that holds the files")
    name = "/".join(filter(None, (data.name, data.config))) + (f":{data.version}" if data.version else "")
    with _one_line(name):
        try:
            builder = tfds.builder(name, data_dir=str(data.directory), file_format="array_record")
        except DatasetNotFoundError:
            known = suggest(data.name, tfds.list_builders(with_community_datasets=False))
            hint = f"{known} Otherwise" if known.startswith("did you mean") else "check the name, or"
            fix = f"{hint} run `llrflow data import {data.name} --format FORMAT --from PATH` for files that you have"
            raise DataError(data.name, "is no dataset of TFDS's catalogue", fix) from None
        _check_tensorflow(builder)
        _check_files(builder, data.directory / "downloads", manual_dir)
        with redirect_stdout(sys.stderr):  # what TFDS prints is no result
            builder.download_and_prepare(
                download_dir=str(data.directory / "downloads"),
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir)),
                file_format="array_record",
            )


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # builders raise whatever they like
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, ImportError) and cause.name == "tensorflow" for cause in causes):
            raise _without_tensorflow(name) from None
        raise DataError(name, f"TFDS cannot prepare it: {line_of(error)}", "see what it printed above") from error


def _check_tensorflow(builder: Any) -> None:
    """DataError when the builder calls TensorFlow and there is none: before anything is downloaded."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    module = inspect.getmodule(type(builder))
    if module is not None and re.search(r"\btf\.\w", inspect.getsource(module)):
        raise _without_tensorflow(builder.name)


def _without_tensorflow(name: str) -> DataError:
    fix = (
        "`pip install tensorflow` here, or run this command on a machine that has it and copy the result; reading it "
        "needs none. `llrflow data import` needs none either"
    )
    return DataError(name, "TFDS's builder of this dataset needs TensorFlow, which is not installed", fix)


def _check_files(builder: Any, downloads: Path, manual_dir: Path | None) -> None:
    """DataError when a file is in neither place and its server does not answer: TFDS would retry for minutes."""
    import requests
    from tensorflow_datasets.core.download.resource import get_dl_fname

    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and manual_dir is None:
        got = f"its files have to be fetched by hand: {shortened(' '.join(instructions.split()), 300)}"
        raise DataError(builder.name, got, "put them into a directory and name it with --manual-dir")
    missing = {
        urlsplit(url).netloc: (url, info.filename)
        for url, info in (builder.url_infos or {}).items()
        if not (manual_dir is not None and (manual_dir / info.filename).is_file())
        and not (downloads / get_dl_fname(url, info.checksum)).exists()
    }
    if instructions:  # which of these the builder wants is known to it alone
        return
    for host, (url, filename) in missing.items():
        try:
            requests.head(url, timeout=_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            got = f"{filename} is to be downloaded from {host}, which cannot be reached ({type(error).__name__})"
            fix = "go online, or put the files of this dataset into a directory and name it with --manual-dir"
            raise DataError(builder.name, got, fix) from None
