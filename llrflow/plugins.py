"""Plugins: imported only when a spec names them, credited with what they register."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from pathlib import Path

from llrflow.errors import PluginError
from llrflow.registry import import_as, load_builtins
from llrflow.spec.source import Source


def load_plugins(source: Source) -> None:
    """Import the plugins that a spec lists; a file is found relative to the spec file that names it.

    Raises PluginError with the plugin's own file and line when the import fails.
    """
    listed = source.data.get("plugins") or ()
    if not isinstance(listed, (list, tuple)):
        return  # the schema reports it
    for index, plugin in enumerate(listed):
        if isinstance(plugin, str):
            load_plugin(plugin_path(source, index, plugin), source.where(("plugins", index)))


def plugin_path(source: Source, index: int, plugin: str) -> str:
    """A plugin as `load_plugin` takes it: a file is made absolute, relative to the spec file that names it."""
    origin = source.origins.get(("plugins", index))
    folder = Path(origin.file).parent if origin is not None and origin.line else Path()
    return str((folder / plugin).resolve()) if plugin.endswith(".py") else plugin


def load_plugin(plugin: str, where: str = "plugin") -> None:
    """Import one plugin: a `.py` file, an entry point of the group `llrflow.plugins`, or a module name."""
    load_builtins()  # first, lest a plugin that imports them be credited with them, or take them along when it fails
    if plugin.endswith(".py"):
        path = Path(plugin)
        if not path.is_file():
            raise PluginError(
                where, f"plugins: there is no file {plugin}", "paths are relative to the spec that names them"
            )
        # The content is part of the name: an unchanged file is one module however often specs name it.
        name = f"llrflow_plugin_{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"
        _import(plugin, where, lambda: _import_file(name, path))
        return
    points = importlib.metadata.entry_points(group="llrflow.plugins", name=plugin)
    _import(plugin, where, next(iter(points)).load if points else lambda: importlib.import_module(plugin))


def _import_file(name: str, path: Path) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import(plugin: str, where: str, load: object) -> None:
    try:
        import_as(plugin, load)  # type: ignore[arg-type]
    except PluginError as error:
        raise PluginError(where, f"plugin {plugin!r}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename == plugin]
        own = own or [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own and not isinstance(error, SyntaxError) else ""
        message = f"plugin {plugin!r} failed to import{place}: {type(error).__name__}: {error}"
        raise PluginError(where, message, "fix the plugin, or correct its name") from error
