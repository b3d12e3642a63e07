"""YAML 1.2 text to a tree of values with their places, within bounds; and what writes it."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from llrflow.base.errors import SpecError

MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_DIGITS = 250
"""Of a whole number, also of one in base 16."""

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

    @property
    def folder(self) -> pathlib.Path:
        """Where paths that are written there begin: the file's folder, or the working directory."""
        return pathlib.Path(self.file).parent if self.line else pathlib.Path()


@dataclass(frozen=True)
class Tree:
    """A value with its origin; collections hold trees. Never changed once built, so merges share parts."""

    value: Any
    origin: Origin


def tree_of(node: yaml.Node, origin: Origin, file: str) -> Tree:
    """The tree of a node. Raises SpecError."""
    if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
        entries: dict[str | int, Tree] = {}
        for key_node, value_node in node.value:
            key, place = _key(key_node, file), _origin(key_node.start_mark, file, _text(value_node))
            if key in entries:
                first = f"the key {key!r} is given twice (first on line {entries[key].origin.line})"
                raise SpecError(str(place), first, "delete one of them")
            entries[key] = tree_of(value_node, place, file)
        return Tree(entries, origin)
    if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
        return Tree([tree_of(item, _origin(item.start_mark, file, _text(item)), file) for item in node.value], origin)
    if isinstance(node, yaml.ScalarNode) and node.tag in CORE:
        return Tree(convert(node.tag, node.value, place_of(node, file)), origin)
    raise SpecError(place_of(node, file), f"the tag {_short(node.tag)} does not fit its value", "remove the tag")


def _key(node: yaml.Node, file: str) -> str | int:
    if isinstance(node, yaml.ScalarNode) and node.tag in (TAG + "str", TAG + "int"):
        if node.value == "<<" and node.style is None:
            raise SpecError(
                place_of(node, file), "merge keys (<<) are not supported", "use `extends` to build on a file"
            )
        return convert(node.tag, node.value, place_of(node, file))
    got = f"the key {_short(node.tag)} {_text(node)}".rstrip() + " is neither text nor a whole number"
    raise SpecError(place_of(node, file), got, "put quotes around it")


def convert(tag: str, text: str, where: str) -> Any:
    """The value of a scalar with a core tag."""
    kind = tag.removeprefix(TAG)
    if not CORE[tag].match(text):
        raise SpecError(where, f"{text[:60]!r} is no {kind}", f"remove the tag !!{kind} or correct the value")
    if kind == "int":
        if len(text) > MAX_DIGITS:  # as a float it would overflow
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


def place_of(marked: yaml.Node | yaml.Event, file: str) -> str:
    """`file:line:column` of a node or event."""
    return str(_origin(marked.start_mark, file))


def place_after(text: str, file: str) -> str:
    """The place that follows `text`, the beginning of a file."""
    return f"{file}:{text.count(chr(10)) + 1}:{len(text) - text.rfind(chr(10))}"


def compose(text: str, file: str) -> yaml.Node:
    """The node graph of YAML text, safe to walk: its expanded size and depth are bounded."""
    try:
        loader = _Loader(text, file)
    except yaml.reader.ReaderError as error:
        where = place_after(text[: error.position], file)
        raise SpecError(where, f"the character {chr(error.character)!a} is not allowed", "remove it") from None
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = str(_origin(mark, file)) if mark else file
        tab = mark and text.startswith("\t", mark.index)
        before = mark and text[text.rfind("\n", 0, mark.index) + 1 : mark.index]
        where_tab = "write spaces in place of the tab" if before and before.strip() else "indent with spaces, not tabs"
        fix = where_tab if tab else "correct the YAML syntax"
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
                raise SpecError(
                    place_of(event, self.file), "a second YAML document starts", "keep one document per file"
                )
        return event

    def enter(self, event: yaml.NodeEvent) -> None:
        where, before = place_of(event, self.file), self.nodes
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


class Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 or PyYAML's own YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """A scalar that all readers take for text."""
        # PyYAML's readers turn these characters into line breaks unless they are escaped.
        style = '"' if re.search("[\r\x85\u2028\u2029\ufeff]", text) else "|" if "\n" in text else None
        return self.represent_scalar(TAG + "str", text, style)


for _tag, _pattern in CORE.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
    Dumper.add_implicit_resolver(_tag, _pattern, None)
Dumper.add_representer(str, Dumper.text)
