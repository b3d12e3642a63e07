"""Files of a dataset by name, wherever they lie: in a folder or in an archive."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

from llrflow.base.errors import DataError
from llrflow.base.files import read_regular

_LARGEST, _ALWAYS = 2**30, 2**27
"""Bytes of all members together, where they are no more than 4 times the archive's (CIFAR's: 1.1), and otherwise."""


def read_members(
    source: Path, wanted: Collection[str], folders: Sequence[str], archives: Sequence[str]
) -> tuple[Path, dict[str, bytes]]:
    """(where they were found, content by name) of the wanted files that there are.

    `source` is a tar archive, plain or .gz, or a directory that holds the files themselves, one of `folders` with
    them, or one of `archives`. Nothing is unpacked to disk. Raises DataError when an archive is damaged, or when
    a directory holds two of these.
    """
    if source.is_file():
        return source, _in_archive(source, wanted)
    if not source.is_dir():
        raise DataError(
            str(source), "is neither a file nor a directory", "give the archive, or the folder it unpacks to"
        )
    inside = [source / name for name in folders if (source / name).is_dir()]
    packed = [source / name for name in archives if (source / name).is_file()]
    places = [source] if any((source / name).is_file() for name in wanted) else inside or packed
    if len(places) > 1:
        got = f"holds {' and '.join(place.name for place in places)}"
        raise DataError(str(source), got, "name one of them")
    if not places:
        return source, {}
    if places[0].is_file():
        return places[0], _in_archive(places[0], wanted)
    files = [places[0] / name for name in sorted(wanted)]
    return places[0], {file.name: read_regular(file, _LARGEST) for file in files if file.is_file()}


def _in_archive(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    left = min(_LARGEST, max(_ALWAYS, 4 * path.stat().st_size))
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            with gzip.open(plain) if packed else plain as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name
                    content = archive.extractfile(member) if member.isfile() and name in wanted else None
                    if content is None:
                        continue
                    if name in found:
                        raise DataError(str(path), f"holds an unexpected {member.name}", "download the archive again")
                    left -= member.size
                    if left < 0:
                        got = f"unpacks to more than its {path.stat().st_size} bytes are worth, at {member.name}"
                        raise DataError(str(path), got, "download the archive again")
                    found[name] = content.read()
                while stream.read(2**20):  # to the end, where gzip keeps the checksum
                    pass
        except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
            got = f"is not an intact tar archive ({error})"
            raise DataError(str(path), got, "download it again") from None
    return found
