"""The plugins that a spec lists: exactly these are imported."""

from __future__ import annotations

from pathlib import Path

from llrflow.base.errors import PluginError
from llrflow.components.consent import trusted
from llrflow.components.plugins import called, load_plugin
from llrflow.spec.source import Source


def load_plugins(source: Source, trust_plugins: bool = True) -> None:
    """Import the plugins that a spec lists; a file is found relative to the spec file that names it.

    Without `trust_plugins` only those that are `trusted` anyway. Raises PluginError at the first that is not, before
    any is imported, and with the plugin's own file and line when the import fails.
    """
    listed = source.data.get("plugins") or ()
    if not isinstance(listed, (list, tuple)):
        return  # the schema reports it
    found: dict[str, str] = {}
    for index, plugin in enumerate(listed):
        if isinstance(plugin, str):
            path, where = plugin_path(source, index, plugin), source.where(("plugins", index))
            if path in found:
                raise PluginError(where, f"plugins: {plugin} is listed twice", "delete one of them")
            if (same := next((other for other in found if called(other) == called(path)), None)) is not None:
                got = f"plugins: {plugin} and {same} are both called {called(path)!r}"
                raise PluginError(where, got, "rename one of them")
            if not trust_plugins and not trusted(path):
                got = f"plugins: {plugin} is code that you have not trained with on this machine, so it was not run"
                fix = "read it, then name it in `plugins:` of the spec that you run; evaluate and export also take "
                fix += "--trust-plugins, Python takes trust_plugins=True"
                raise PluginError(where, got, fix)
            found[path] = where
    for path, where in found.items():
        load_plugin(path, where)


def plugin_path(source: Source, index: int, plugin: str) -> str:
    """A plugin as `load_plugin` takes it: a file is made absolute, relative to the spec file that names it."""
    origin = source.origins.get(("plugins", index))
    folder = Path() if origin is None else origin.folder
    if "\0" in plugin or not plugin.isprintable():
        raise PluginError(source.where(("plugins", index)), f"plugins: {plugin!r} is no possible name", "correct it")
    return str((folder / plugin).resolve()) if plugin.endswith(".py") else plugin
