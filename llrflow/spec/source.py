"""YAML text to plain data, with the origin of every value, and back."""

from __future__ import annotations

import codecs
import itertools
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from llrflow.base.errors import SpecError
from llrflow.spec.yaml_text import (
    CORE,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_NODES,
    Dumper,
    Origin,
    Tree,
    compose,
    convert,
    place_after,
    place_of,
    tree_of,
)

Path = tuple[str | int, ...]
MAX_FILES = 100


@dataclass(frozen=True)
class Source:
    """Plain merged data and, for every mapping key, every list item and the whole `()`, its origin."""

    data: dict[Any, Any]
    origins: dict[Path, Origin]

    def where(self, path: Path) -> str:
        """The nearest known origin at or above `path`, to start an error message with."""
        above = (path[:n] for n in range(len(path), -1, -1))
        return next((str(self.origins[p]) for p in above if p in self.origins), "spec")


def read_source(
    spec: str | os.PathLike[str] | Mapping[Any, Any],
    overrides: Mapping[str, object] = MappingProxyType({}),
    on: str | os.PathLike[str] | Mapping[Any, Any] | None = None,
) -> Source:
    """Read a YAML file (or a mapping), merge it over what it `extends`, then apply `{"dotted.path": value}`.

    Mappings merge by key and everything else is replaced, with two exceptions: a null for a key whose
    inherited value is a mapping deletes that entry (this is how a spec drops an inherited term), and a
    mapping with another `type` than the inherited one replaces it whole. Overrides merge by the same rules.

    With `on`, another spec, the method of `spec` (its `objective`, `train.batch_norm` and plugins) is put on the
    experiment of that one, whose other blocks replace those of `spec` whole. Overrides come last.

    Raises SpecError, `where: got; fix`, for anything that is not a plain, bounded, unambiguous mapping.
    """
    tree = _read_tree(spec)
    if on is not None:
        tree = _put_on(tree, _read_tree(on))
    for path, value in overrides.items():
        tree = _overridden(tree, path, value)
    origins: dict[Path, Origin] = {}
    return Source(_unfold(tree, (), origins), origins)


def scalar(text: str) -> Any:
    """The value of a `--set` text: one YAML 1.2 core scalar, or a flow collection such as `{type: x}`.

    Text that starts with a character no plain scalar can start with is YAML; all other text is one plain
    scalar, so `a: b` and `#1` are strings. Raises SpecError.
    """
    text, file = text.strip(), "--set value"
    if text.startswith(tuple("{[\"'!&*|>%@`")):
        return _unfold(tree_of(compose(text, file), Origin(file), file), (), {})
    return convert(next(tag for tag, pattern in CORE.items() if pattern.match(text)), text, file)


def dump_yaml(data: Mapping[Any, Any]) -> str:
    """Block YAML with keys in the given order; `read_source` on it gives equal data (tuples as lists)."""
    plain = _unfold(_plain(data, "<dict>"), (), {})
    # A width beyond any file that can be read keeps each string on one line.
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=MAX_BYTES)


def _read_tree(spec: str | os.PathLike[str] | Mapping[Any, Any]) -> Tree:
    files = itertools.count(1)
    if isinstance(spec, Mapping):
        return _extended(_plain(spec, "<dict>"), pathlib.Path(), {}, files)
    return _load(os.fsdecode(spec), {}, files)


def _load(file: str, chain: Mapping[Any, str], files: Iterator[int], asked: Origin | None = None) -> Tree:
    """The merged tree of a file; `chain` names, by identity, the files whose `extends` lead here."""
    try:
        identity, raw = _read(file)
    except SpecError as error:
        if asked is None:
            raise
        raise SpecError(str(asked), f"extends {file!r}, which {error.got}", error.fix) from None
    if identity in chain:
        names = list(chain.values())[list(chain).index(identity) :]
        circle = " -> ".join([*names, names[0]])
        raise SpecError(str(asked), f"extends runs in a circle: {circle}", "remove one of them")
    if next(files) > MAX_FILES:
        raise SpecError(str(asked), f"extends reads more than {MAX_FILES} files", "extend fewer files")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        where = place_after(raw[: error.start].decode(), file)
        raise SpecError(where, f"the byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None
    node = compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(place_of(node, file), "the top level is not a mapping", "write `key: value` entries")
    tree = tree_of(node, Origin(file), file)
    return _extended(tree, pathlib.Path(file).parent, {**chain, identity: file}, files)


def _read(file: str) -> tuple[tuple[int, int], bytes]:
    """Identity and contents of a regular file that is not too large; the size is checked before reading."""
    path, raw = pathlib.Path(file), b""
    try:
        info = path.stat()
        if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_BYTES:
            raw = path.read_bytes()
    except FileNotFoundError:
        raise SpecError(file, "does not exist", "check the path") from None
    except OSError as error:
        raise SpecError(file, f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    except ValueError:  # NUL or a lone surrogate
        raise SpecError(ascii(file), "is not a possible file name", "check the path") from None
    if not stat.S_ISREG(info.st_mode):
        kind = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise SpecError(file, f"is {kind}", "name a YAML file")
    if info.st_size > MAX_BYTES:
        raise SpecError(file, f"has {info.st_size} bytes, more than {MAX_BYTES}", "keep data out of the spec")
    return (info.st_dev, info.st_ino), raw.removeprefix(codecs.BOM_UTF8)


def _extended(tree: Tree, folder: pathlib.Path, chain: Mapping[Any, str], files: Iterator[int]) -> Tree:
    """The tree without its `extends`, merged over the files named there, which are relative to `folder`."""
    entries = dict(tree.value)
    extends = entries.pop("extends", None)
    own = Tree(entries, tree.origin)
    if extends is None:
        return own
    merged = Tree({}, tree.origin)
    for name in extends.value if isinstance(extends.value, list) else [extends]:
        if not isinstance(name.value, str):
            raise SpecError(str(name.origin), "extends needs a path or a list of paths", "write `extends: base.yaml`")
        merged = _merged(merged, _load(str(folder / name.value), chain, files, name.origin))
    return _merged(merged, own)


def _put_on(tree: Tree, below: Tree) -> Tree:
    """The method of `tree` on the experiment `below`; what `below` leaves open is `tree`'s too."""
    entries = {**tree.value, **{key: item for key, item in below.value.items() if key != "objective"}}
    policy = _entry(tree.value.get("train"), "batch_norm")
    if policy is not None:
        entries["train"] = _merged(entries["train"], Tree({"batch_norm": policy}, entries["train"].origin))
    named, plugins = ([part.value.get(key) for part in (below, tree)] for key in ("name", "plugins"))
    if all(name is not None and isinstance(name.value, str) for name in named):
        entries["name"] = Tree("-".join(name.value for name in named), named[1].origin)
    if all(names is not None and isinstance(names.value, list) for names in plugins):
        once = {_place(item): item for names in plugins for item in names.value}
        entries["plugins"] = Tree(list(once.values()), plugins[1].origin)
    return Tree(entries, below.origin)


def _place(plugin: Tree) -> Any:
    """What tells a plugin from others: its file, from wherever it is named, or its name."""
    name = plugin.value
    return (plugin.origin.folder / name).resolve() if str(name).endswith(".py") else str(name)


def _entry(tree: Tree | None, key: str) -> Tree | None:
    return tree.value.get(key) if tree is not None and isinstance(tree.value, dict) else None


def _merged(base: Tree, child: Tree) -> Tree:
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)):
        return child
    if "type" in base.value and "type" in child.value and base.value["type"].value != child.value["type"].value:
        return child  # the fields of another component would not fit
    entries = dict(base.value)
    for key, new in child.value.items():
        _put(entries, key, new)
    return Tree(entries, child.origin)


def _put(entries: dict[Any, Tree], key: str | int, new: Tree) -> None:
    """Merge one entry, deleting it when null stands over a mapping."""
    old = entries.get(key)
    if old is not None and new.value is None and isinstance(old.value, dict):
        del entries[key]
    else:
        entries[key] = new if old is None else _merged(old, new)


def _overridden(tree: Tree, path: str, value: object) -> Tree:
    where, segments = f"--set {path}", path.split(".")
    if not all(segments) or len(segments) > MAX_DEPTH:
        raise SpecError(where, "is not a dotted path", "write for example objective.terms.gamma.weight")
    return _set(tree, segments, 0, _plain(value, where, len(segments)))


def _set(tree: Tree, segments: list[str], done: int, new: Tree) -> Tree:
    """`tree` with `new` at the dotted path, whose first `done` segments lead to `tree`."""
    at = ".".join(segments[:done])
    if not isinstance(tree.value, (dict, list)):
        got = f"{at} is no mapping but {tree.value!r:.60} ({tree.origin})"
        raise SpecError(new.origin.file, got, f"set {at} itself")
    is_list = isinstance(tree.value, list)
    entries: dict[Any, Tree] = dict(enumerate(tree.value) if is_list else tree.value)
    key: str | int = segments[done]
    if key not in entries and re.fullmatch("[0-9]{1,18}", segments[done]):
        key = int(segments[done])
    if is_list and key not in entries:
        raise SpecError(new.origin.file, f"{at} is a list of {len(entries)}", f"use an index below {len(entries)}")
    if done + 1 < len(segments):
        below = entries.get(key, Tree({}, Origin(new.origin.file)))
        entries[key] = _set(below, segments, done + 1, new)
    else:
        _put(entries, key, new)
    return Tree(list(entries.values()) if is_list else entries, tree.origin)


def _plain(value: object, file: str, depth: int = 0) -> Tree:
    """The tree of a Python value, which is copied; every origin in it is `file`."""
    nodes = itertools.count(1)

    def copy(value: object, path: Path) -> Tree:
        name = ".".join(map(str, path))[:80] or "the value"
        levels = depth + len(path) + isinstance(value, (Mapping, list, tuple))
        if next(nodes) > MAX_NODES or levels > MAX_DEPTH:
            got = f"{name} exceeds {MAX_NODES} values or {MAX_DEPTH} levels"
            raise SpecError(file, got, "use a smaller mapping")
        if isinstance(value, Mapping):
            for key in value:
                next(nodes)  # keys count as they do in a file
                if type(key) not in (str, int):
                    raise SpecError(file, f"{name} has the key {key!r}", "use text or whole numbers as keys")
            return Tree({key: copy(item, (*path, key)) for key, item in value.items()}, Origin(file))
        if isinstance(value, (list, tuple)):
            return Tree([copy(item, (*path, i)) for i, item in enumerate(value)], Origin(file))
        if value is not None and type(value) not in (str, int, float, bool):
            fix = "use dict, list, str, int, float, bool or None"
            raise SpecError(file, f"{name} is of type {type(value).__name__}", fix)
        if type(value) is int and value.bit_length() > 4 * MAX_DIGITS:
            raise SpecError(file, f"{name} has {value.bit_length()} bits", "use a smaller number")
        return Tree(value, Origin(file, text=str(value)))

    return copy(value, ())


def _unfold(tree: Tree, path: Path, origins: dict[Path, Origin]) -> Any:
    """Plain data of a tree; fills `origins`."""
    origins[path] = tree.origin
    if isinstance(tree.value, dict):
        return {key: _unfold(item, (*path, key), origins) for key, item in tree.value.items()}
    if isinstance(tree.value, list):
        return [_unfold(item, (*path, i), origins) for i, item in enumerate(tree.value)]
    return tree.value
