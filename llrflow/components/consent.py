"""Which plugins a run folder that lies here may have imported: its spec.yaml may be from anybody."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import json
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llrflow.base.files import sha256_file, write_atomic
from llrflow.components.plugins import entry_point, is_imported


def trusted(plugin: str) -> bool:
    """Whether importing a plugin runs nothing but code that is installed, that this process has imported already, or
    that this user has trained with on this machine (`remember`). Imports nothing. In a process of `decided_elsewhere`
    it is so of all.
    """
    if _elsewhere or entry_point(plugin) is not None or is_imported(plugin):
        return True
    return all(_is_installed(file, plugin) or _mark(file).exists() for file in _files_of(plugin))


def decided_elsewhere() -> None:
    """Of a worker's process: that which sent it its work has seen to consent, and may have another home."""
    global _elsewhere
    _elsewhere = True


_elsewhere = False


def remember(plugins: Iterable[str]) -> None:
    """Note that this user trains with these plugins, each as it is now: by the path and the content of its file.

    The notes are outside of every run folder, in $XDG_STATE_HOME/llrflow/plugins (~/.local/state). Where nothing can be
    written there, nothing is noted, and the plugins are asked for again.
    """
    for plugin in plugins:
        for file in _files_of(plugin):
            if not _is_installed(file, plugin):
                with contextlib.suppress(OSError):
                    mark = _mark(file)
                    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_atomic(mark, f"{file}\n".encode())


def _files_of(plugin: str) -> list[Path]:
    """The files that importing a plugin runs, those of its parents too; found without importing any."""
    if plugin.endswith(".py"):
        return [Path(plugin)] if Path(plugin).is_file() else []
    files, path, parts = [], None, plugin.split(".")
    for length in range(1, len(parts) + 1):
        found = importlib.machinery.PathFinder.find_spec(".".join(parts[:length]), path)
        if found is None:
            break  # the import fails here, when those before have run
        if found.has_location and found.origin:
            files.append(Path(found.origin))
        path = found.submodule_search_locations
    return files


def _is_installed(file: Path, plugin: str) -> bool:
    """Whether a file belongs to Python or to a distribution, for a module's name to an editable one too."""
    file = file.resolve()
    places = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    if not plugin.endswith(".py"):
        places += _editable(plugin.partition(".")[0])
    return any(file.is_relative_to(place.resolve()) for place in places)


@functools.cache
def _editable(package: str) -> list[Path]:
    """Where the sources of a package are that is installed editable."""
    found = []
    for name in importlib.metadata.packages_distributions().get(package, ()):
        text = importlib.metadata.distribution(name).read_text("direct_url.json")
        url = urlsplit(json.loads(text)["url"]) if text else None
        if url is not None and url.scheme == "file":
            found.append(Path(url2pathname(url.path)))
    return found


def _mark(file: Path) -> Path:
    """Where a file is noted as it is now; nowhere, where it cannot be read or there is no home."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        digest = hashlib.sha256(f"{file}\n{sha256_file(file)}".encode()).hexdigest()
    except (OSError, RuntimeError):
        return Path(os.devnull) / "nowhere"
    return Path(state) / "llrflow" / "plugins" / digest
