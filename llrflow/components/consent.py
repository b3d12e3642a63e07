"""Which plugins a run folder that lies here may have imported: its spec.yaml may be from anybody."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from llrflow.base.files import sha256_file, write_atomic
from llrflow.components.plugins import entry_point, is_imported


def trusted(plugin: str) -> bool:
    """Whether importing a plugin runs nothing but code that is installed, that this process has imported already, or
    that this user has trained with on this machine (`remember`). Imports nothing.
    """
    if entry_point(plugin) is not None or is_imported(plugin):
        return True
    file = _file_of(plugin)
    return file is None or _is_installed(file, plugin) or any(mark.exists() for mark in _marks(file))


def remember(plugins: Iterable[str]) -> None:
    """Note that this user trains with these plugins, each as it is now: by the path and the content of its file.

    The notes are outside of every run folder, in $XDG_STATE_HOME/llrflow/plugins (~/.local/state). Where nothing can be
    written there, nothing is noted, and the plugins are asked for again.
    """
    for plugin in plugins:
        file = _file_of(plugin)
        if file is not None and not _is_installed(file, plugin):
            for mark in _marks(file):
                with contextlib.suppress(OSError):
                    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_atomic(mark, f"{file}\n".encode())


def _file_of(plugin: str) -> Path | None:
    """The file that importing a plugin runs, found without importing a parent; None where there is none."""
    if plugin.endswith(".py"):
        return Path(plugin) if Path(plugin).is_file() else None
    found, path, parts = None, None, plugin.split(".")
    for length in range(1, len(parts) + 1):
        found = importlib.machinery.PathFinder.find_spec(".".join(parts[:length]), path)
        if found is None:
            return None
        path = found.submodule_search_locations
    return Path(found.origin) if found and found.has_location and found.origin else None


def _is_installed(file: Path, plugin: str) -> bool:
    """Whether a file belongs to Python or to a distribution, an editable one too where that says what it holds."""
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(file.is_relative_to(place) for place in places):
        return True
    return not plugin.endswith(".py") and plugin.partition(".")[0] in _distributed()


@functools.cache
def _distributed() -> frozenset[str]:
    return frozenset(importlib.metadata.packages_distributions())


def _marks(file: Path) -> list[Path]:
    """Where a file is noted as it is now; nowhere, where it cannot be read or there is no home."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        digest = hashlib.sha256(f"{file}\n{sha256_file(file)}".encode()).hexdigest()
    except (OSError, RuntimeError):
        return []
    return [Path(state) / "llrflow" / "plugins" / digest]
