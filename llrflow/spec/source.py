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
from typing import Any, ClassVar

import yaml

from llrflow.errors import SpecError

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_FILES = 100

TAG = "tag:yaml.org,2002:"
# The YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema); the order decides, `10` is an int.
CORE = {
    TAG + "null": re.compile(r"(?:null|Null|NULL|~|)\Z"),
    TAG + "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    TAG + "int": re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    TAG + "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    TAG + "str": re.compile(""),
}
ALLOWED = (None, *CORE, TAG + "map", TAG + "seq")


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a place in a file, an override, or a Python mapping."""

    file: str
    """The path as the user wrote it, `--set path` or `<dict>`."""
    line: int = 0
    """From 1; 0 when there is none."""
    column: int = 0
    """From 1."""
    text: str = ""
    """The scalar as written (`8/255`), without quotes; empty for collections."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Source:
    """Plain merged data and, for every mapping key, every list item and the whole `()`, its origin."""

    data: dict[Any, Any]
    origins: dict[Path, Origin]

    def where(self, path: Path) -> str:
        """The nearest known origin at or above `path`, to start an error message with."""
        above = (path[:n] for n in range(len(path), -1, -1))
        return next((str(self.origins[p]) for p in above if p in self.origins), "spec")


@dataclass(frozen=True)
class _Tree:
    """A value with its origin; collections hold trees. Never changed once built, so merges share parts."""

    value: Any
    origin: Origin


def read_source(
    spec: str | os.PathLike[str] | Mapping[Any, Any], overrides: Mapping[str, object] = MappingProxyType({})
) -> Source:
    """Read a YAML file (or a mapping), merge it over what it `extends`, then apply `{"dotted.path": value}`.

    Mappings merge by key and everything else is replaced, with two exceptions: a null for a key whose
    inherited value is a mapping deletes that entry (this is how a spec drops an inherited term), and a
    mapping with another `type` than the inherited one replaces it whole. Overrides merge by the same rules.

    Raises SpecError, `where: got; fix`, for anything that is not a plain, bounded, unambiguous mapping.
    """
    files = itertools.count(1)
    if isinstance(spec, Mapping):
        tree = _extended(_plain(spec, "<dict>"), pathlib.Path(), {}, files)
    else:
        tree = _load(os.fsdecode(spec), {}, files)
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
        return _unfold(_tree(_compose(text, file), Origin(file), file), (), {})
    return _convert(next(tag for tag, pattern in CORE.items() if pattern.match(text)), text, file)


def dump_yaml(data: Mapping[Any, Any]) -> str:
    """Block YAML with keys in the given order; `read_source` on it gives equal data (tuples as lists)."""
    plain = _unfold(_plain(data, "<dict>"), (), {})
    # A width beyond any file that can be read keeps each string on one line.
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=MAX_BYTES)


def _load(file: str, chain: Mapping[Any, str], files: Iterator[int], asked: Origin | None = None) -> _Tree:
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
        where = _after(raw[: error.start].decode(), file)
        raise SpecError(where, f"the byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None
    node = _compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(_at(node, file), "the top level is not a mapping", "write `key: value` entries")
    tree = _tree(node, Origin(file), file)
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


def _extended(tree: _Tree, folder: pathlib.Path, chain: Mapping[Any, str], files: Iterator[int]) -> _Tree:
    """The tree without its `extends`, merged over the files named there, which are relative to `folder`."""
    entries = dict(tree.value)
    extends = entries.pop("extends", None)
    own = _Tree(entries, tree.origin)
    if extends is None:
        return own
    merged = _Tree({}, tree.origin)
    for name in extends.value if isinstance(extends.value, list) else [extends]:
        if not isinstance(name.value, str):
            raise SpecError(str(name.origin), "extends needs a path or a list of paths", "write `extends: base.yaml`")
        merged = _merged(merged, _load(str(folder / name.value), chain, files, name.origin))
    return _merged(merged, own)


def _merged(base: _Tree, child: _Tree) -> _Tree:
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)):
        return child
    if "type" in base.value and "type" in child.value and base.value["type"].value != child.value["type"].value:
        return child  # the fields of another component would not fit
    entries = dict(base.value)
    for key, new in child.value.items():
        _put(entries, key, new)
    return _Tree(entries, child.origin)


def _put(entries: dict[Any, _Tree], key: str | int, new: _Tree) -> None:
    """Merge one entry, deleting it when null stands over a mapping."""
    old = entries.get(key)
    if old is not None and new.value is None and isinstance(old.value, dict):
        del entries[key]
    else:
        entries[key] = new if old is None else _merged(old, new)


def _overridden(tree: _Tree, path: str, value: object) -> _Tree:
    where, segments = f"--set {path}", path.split(".")
    if not all(segments) or len(segments) > MAX_DEPTH:
        raise SpecError(where, "is not a dotted path", "write for example objective.terms.gamma.weight")
    return _set(tree, segments, 0, _plain(value, where, len(segments)))


def _set(tree: _Tree, segments: list[str], done: int, new: _Tree) -> _Tree:
    """`tree` with `new` at the dotted path, whose first `done` segments lead to `tree`."""
    at = ".".join(segments[:done])
    if not isinstance(tree.value, (dict, list)):
        got = f"{at} is no mapping but {tree.value!r:.60} ({tree.origin})"
        raise SpecError(new.origin.file, got, f"set {at} itself")
    is_list = isinstance(tree.value, list)
    entries: dict[Any, _Tree] = dict(enumerate(tree.value) if is_list else tree.value)
    key: str | int = segments[done]
    if key not in entries and re.fullmatch("[0-9]{1,18}", segments[done]):
        key = int(segments[done])
    if is_list and key not in entries:
        raise SpecError(new.origin.file, f"{at} is a list of {len(entries)}", f"use an index below {len(entries)}")
    if done + 1 < len(segments):
        below = entries.get(key, _Tree({}, Origin(new.origin.file)))
        entries[key] = _set(below, segments, done + 1, new)
    else:
        _put(entries, key, new)
    return _Tree(list(entries.values()) if is_list else entries, tree.origin)


def _plain(value: object, file: str, depth: int = 0) -> _Tree:
    """The tree of a Python value, which is copied; every origin in it is `file`."""
    nodes = itertools.count(1)

    def copy(value: object, path: Path) -> _Tree:
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
            return _Tree({key: copy(item, (*path, key)) for key, item in value.items()}, Origin(file))
        if isinstance(value, (list, tuple)):
            return _Tree([copy(item, (*path, i)) for i, item in enumerate(value)], Origin(file))
        if value is not None and type(value) not in (str, int, float, bool):
            fix = "use dict, list, str, int, float, bool or None"
            raise SpecError(file, f"{name} is of type {type(value).__name__}", fix)
        return _Tree(value, Origin(file, text=str(value)))

    return copy(value, ())


def _unfold(tree: _Tree, path: Path, origins: dict[Path, Origin]) -> Any:
    """Plain data of a tree; fills `origins`."""
    origins[path] = tree.origin
    if isinstance(tree.value, dict):
        return {key: _unfold(item, (*path, key), origins) for key, item in tree.value.items()}
    if isinstance(tree.value, list):
        return [_unfold(item, (*path, i), origins) for i, item in enumerate(tree.value)]
    return tree.value


def _tree(node: yaml.Node, origin: Origin, file: str) -> _Tree:
    if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
        entries: dict[str | int, _Tree] = {}
        for key_node, value_node in node.value:
            key, place = _key(key_node, file), _origin(key_node.start_mark, file, _text(value_node))
            if key in entries:
                first = f"the key {key!r} is given twice (first on line {entries[key].origin.line})"
                raise SpecError(str(place), first, "delete one of them")
            entries[key] = _tree(value_node, place, file)
        return _Tree(entries, origin)
    if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
        return _Tree([_tree(item, _origin(item.start_mark, file, _text(item)), file) for item in node.value], origin)
    if isinstance(node, yaml.ScalarNode) and node.tag in CORE:
        return _Tree(_convert(node.tag, node.value, _at(node, file)), origin)
    raise SpecError(_at(node, file), f"the tag {_short(node.tag)} does not fit its value", "remove the tag")


def _key(node: yaml.Node, file: str) -> str | int:
    if isinstance(node, yaml.ScalarNode) and node.tag in (TAG + "str", TAG + "int"):
        if node.value == "<<" and node.style is None:
            raise SpecError(_at(node, file), "merge keys (<<) are not supported", "use `extends` to build on a file")
        return _convert(node.tag, node.value, _at(node, file))
    got = f"the key {_short(node.tag)} {_text(node)}".rstrip() + " is neither text nor a whole number"
    raise SpecError(_at(node, file), got, "put quotes around it")


def _convert(tag: str, text: str, where: str) -> Any:
    """The value of a scalar with a core tag."""
    kind = tag.removeprefix(TAG)
    if not CORE[tag].match(text):
        raise SpecError(where, f"{text[:60]!r} is no {kind}", f"remove the tag !!{kind} or correct the value")
    if kind == "int":
        if len(text) > 1000:  # Python refuses to print longer ones
            raise SpecError(where, f"a whole number of {len(text)} digits", "use a smaller number")
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if kind == "float":
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def _text(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag


def _origin(mark: Any, file: str, text: str = "") -> Origin:
    return Origin(file, mark.line + 1, mark.column + 1, text)


def _at(marked: yaml.Node | yaml.Event, file: str) -> str:
    return str(_origin(marked.start_mark, file))


def _after(text: str, file: str) -> str:
    """The place that follows `text`, the beginning of a file."""
    return f"{file}:{text.count(chr(10)) + 1}:{len(text) - text.rfind(chr(10))}"


def _compose(text: str, file: str) -> yaml.Node:
    """The node graph of YAML text, safe to walk: its expanded size and depth are bounded."""
    try:
        loader = _Loader(text, file)
    except yaml.reader.ReaderError as error:
        where = _after(text[: error.position], file)
        raise SpecError(where, f"the character {chr(error.character)!a} is not allowed", "remove it") from None
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = str(_origin(mark, file)) if mark else file
        tab = mark and text.startswith("\t", mark.index)
        fix = "indent with spaces, not tabs" if tab else "correct the YAML syntax"
        raise SpecError(place, ", ".join(filter(None, (error.context, error.problem))), fix) from None
    except SpecError:
        raise
    except (ValueError, OverflowError):  # PyYAML: "\UFFFFFFFF", or a %YAML version of thousands of digits
        where = str(_origin(loader.get_mark(), file))
        raise SpecError(where, "a number in an escape or a directive is out of range", "correct it") from None
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value and node.style is None):
        raise SpecError(file, "is empty", "write at least one `key: value`")
    return node


@dataclass
class _Open:
    """A collection that the loader is inside of: nodes before it, and the deepest level in it so far."""

    anchor: str | None
    before: int
    deepest: int


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with core-schema scalars; checks each event before the recursive composer sees it."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file, self.nodes, self.documents = file, 0, 0
        self.open: list[_Open] = []
        self.closed: dict[str, tuple[int, int]] = {}  # nodes and levels of each anchored collection

    def get_event(self) -> yaml.Event:
        event = super().get_event()
        if isinstance(event, yaml.NodeEvent):
            self.enter(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.open.pop()
            if done.anchor is not None:
                self.closed[done.anchor] = self.nodes - done.before, done.deepest - len(self.open)
            if self.open:
                self.open[-1].deepest = max(self.open[-1].deepest, done.deepest)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise SpecError(_at(event, self.file), "a second YAML document starts", "keep one document per file")
        return event

    def enter(self, event: yaml.NodeEvent) -> None:
        where, before = _at(event, self.file), self.nodes
        size, levels = 1, int(isinstance(event, yaml.CollectionStartEvent))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [around.anchor for around in self.open]:
                raise SpecError(where, f"the alias *{event.anchor} stands inside its own anchor", "write it out")
            size, levels = self.closed.get(event.anchor, (1, 0))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag not in ALLOWED:
            raise SpecError(where, f"the tag {_short(event.tag)!r} is not allowed", "remove the tag")
        self.nodes += size
        if self.nodes > MAX_NODES:
            raise SpecError(where, f"more than {MAX_NODES} values once aliases are expanded", "use a smaller spec")
        depth = len(self.open) + levels
        if depth > MAX_DEPTH:
            raise SpecError(where, f"more than {MAX_DEPTH} levels of nesting", "use a flatter spec")
        if self.open:
            self.open[-1].deepest = max(self.open[-1].deepest, depth)
        if isinstance(event, yaml.CollectionStartEvent):
            self.open.append(_Open(event.anchor, before, depth))


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 or PyYAML's own YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        # PyYAML's readers turn these characters into line breaks unless they are escaped.
        style = '"' if re.search("[\r\x85\u2028\u2029\ufeff]", text) else "|" if "\n" in text else None
        return self.represent_scalar(TAG + "str", text, style)


for _tag, _pattern in CORE.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
    _Dumper.add_implicit_resolver(_tag, _pattern, None)
_Dumper.add_representer(str, _Dumper.text)
