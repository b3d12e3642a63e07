"""Plugins: imported only when a spec names them, credited with what they register."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from llrflow.base.errors import PluginError
from llrflow.base.files import sha256_file
from llrflow.base.validation import suggest
from llrflow.components.registry import KINDS, entries, forget, import_as, load_builtins


def plugin_identity(plugin: str) -> str:
    """What decides whether a plugin is the same: sha256 of a file, name and version of an installed one."""
    if plugin.endswith(".py"):
        return sha256_file(Path(plugin))
    point = entry_point(plugin)
    return f"{plugin}=={point.dist.version}" if point and point.dist else plugin


def imported_identity(plugin: str) -> str:
    """`plugin_identity` of the code that this process runs: the file may have changed since, or be gone."""
    return _imported.get(plugin) or plugin_identity(plugin)


_imported: dict[str, str] = {}


def load_plugin(plugin: str, where: str = "plugin") -> str:
    """Import one plugin: a `.py` file, an entry point of the group `llrflow.plugins`, or a module name; its origin."""
    load_builtins()  # first, lest a plugin that imports them be credited with them, or take them along when it fails
    if plugin.endswith(".py"):
        path = Path(plugin)
        if not path.is_file():
            raise PluginError(
                where, f"plugins: there is no file {plugin}", "paths are relative to the spec that names them"
            )
        name = _module_of(path)
        _import(plugin, where, lambda: _import_file(name, path))
        _imported[plugin] = plugin_identity(plugin)
    else:
        point = entry_point(plugin)
        name = point.module if point else plugin
        _import(plugin, where, point.load if point else lambda: importlib.import_module(plugin))
    _called[called(plugin)] = sys.modules[name]
    return plugin


_called: dict[str, ModuleType] = {}
"""The module of the plugin that was loaded last under a name."""


def called(plugin: str) -> str:
    """How a spec calls one of its plugins elsewhere: a file by its name alone, without `.py`."""
    return Path(plugin).stem if plugin.endswith(".py") else plugin


def function_of(text: str) -> Callable[..., Any]:
    """The function `PLUGIN:function`; its plugin must have been loaded. Raises PluginError."""
    plugin, _, name = text.partition(":")
    if not plugin or not name:
        raise PluginError("call", "is no `PLUGIN:function`", "write it so: `networks:small`")
    if plugin not in _called:
        raise PluginError("call", f"names {plugin!r}, which is no plugin of this spec", f"add it: {_listed(plugin)}")
    module = _called[plugin]
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if isinstance(value, FunctionType)]
        fix = suggest(name, functions) if functions else "define it"
        raise PluginError("call", f"names {name!r}, which is no function of {module.__file__}", fix)
    return found


def _listed(plugin: str) -> str:
    return f"`plugins: [{plugin}]`" if "." in plugin else f"`plugins: [{plugin}.py]`, or `[{plugin}]` for a module"


def is_imported(plugin: str) -> bool:
    """Whether this process has imported a plugin as it is now, so that `load_plugin` runs nothing anew."""
    if plugin.endswith(".py"):
        return Path(plugin).is_file() and _module_of(Path(plugin)) in sys.modules
    return plugin in sys.modules


def entry_point(plugin: str) -> importlib.metadata.EntryPoint | None:
    """The installed entry point of that name, if there is one."""
    return next(iter(importlib.metadata.entry_points(group="llrflow.plugins", name=plugin)), None)


def registered_by(origin: str) -> list[tuple[str, str]]:
    """(kind, type name) of every component that a plugin registered.

    Raises PluginError when there is none.
    """
    found = [(kind, name) for kind in KINDS for name, entry in entries(kind).items() if entry.origin == origin]
    if not found:
        raise PluginError(origin, "registers no component", 'decorate a class with @register("term", "its_name")')
    return found


def _module_of(path: Path) -> str:
    """The module's name. The content is part of it: an unchanged file is one module however often specs name it."""
    return f"llrflow_plugin_{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"


def _import_file(name: str, path: Path) -> None:
    if name in sys.modules:
        return
    forget(str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with warnings.catch_warnings():  # Python hides these from all but the script that it was started with
            warnings.filterwarnings("default", r"llrflow\.", DeprecationWarning)
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
        ours = f"{Path(__file__).parent}/"
        own = own or [f for f in frames if "importlib" not in f.filename and not f.filename.startswith(ours)]
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own and not isinstance(error, SyntaxError) else ""
        message = f"plugin {plugin!r} failed to import{place}: {type(error).__name__}: {error}"
        raise PluginError(where, message, "fix the plugin, or correct its name") from error
