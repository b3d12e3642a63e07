"""What XLA has compiled, kept on disk for the next process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

LARGEST = 2**30
"""Bytes that are kept for one kind of machine; what has not been read for longest goes first."""


def keep_compilations() -> None:
    """Let JAX keep what XLA compiles in this process in the `folder`, and take from there what is in it.

    Nothing happens where the user chose another folder (`JAX_COMPILATION_CACHE_DIR`) or none
    (`JAX_ENABLE_COMPILATION_CACHE=false`), or where the folder cannot be written. Called before anything is compiled.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    try:
        here = folder()
        here.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can run code here
    except (OSError, RuntimeError):
        return
    if not os.access(here, os.W_OK):
        return
    prune(here, LARGEST)
    jax.config.update("jax_compilation_cache_dir", str(here))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # attacks have many small programs


def folder() -> Path:
    """~/.cache/llrflow/compiled, and in it a folder for this kind of machine and jaxlib.

    JAX's own key holds the program, its options and the versions, but machine code for a CPU is not that of another,
    and home folders are shared. Raises RuntimeError where there is no home.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    described = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    kind = "\n".join([platform.machine(), platform.processor(), importlib.metadata.version("jaxlib"), *described])
    return Path.home() / ".cache" / "llrflow" / "compiled" / hashlib.sha256(kind.encode()).hexdigest()[:12]


def prune(here: Path, largest: int) -> None:
    """Delete the files that were not read for longest, until the others take at most so many bytes."""
    found = []
    for file in here.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process prunes as well
            stat = file.stat()
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    left = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if left <= largest:
            return
        file.unlink(missing_ok=True)
        left -= size
