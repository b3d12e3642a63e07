"""The spec reader: YAML 1.2 text to plain data, with the origin of every value."""

import copy
import gc
import math
import os
import pathlib
import time

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llrflow.base.errors import SpecError
from llrflow.spec.source import Origin, Source, dump_yaml, read_source, scalar


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_garbage():
    """Nothing that other tests left is collected meanwhile: in a worker that has compiled a lot this takes a second."""
    gc.disable()
    yield
    gc.enable()


def write(text, name="a.yaml"):
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(text, **overrides):
    return read_source(write(text), {path.replace("__", "."): value for path, value in overrides.items()})


def error_of(action, *args):
    with pytest.raises(SpecError) as caught:
        action(*args)
    assert len(str(caught.value).splitlines()) == 1 and caught.value.fix
    return str(caught.value)


AS_TEXT = "on off yes no y tRUE nULL 1:30 2020-01-01 8/255 1_000 0b1 0x -0x1 0o8 . 1e e1 inf nan +.nan = \u0661 1.5.2"
SCALARS = (
    dict.fromkeys(["null", "Null", "NULL", "~", ""], None)
    | dict.fromkeys(["true", "True", "TRUE"], True)
    | dict.fromkeys(["false", "False", "FALSE"], False)
    | {"0": 0, "-7": -7, "+7": 7, "010": 10, "0o17": 15, "0x1F": 31, "12345678901234567890": 12345678901234567890}
    | {"1e-3": 1e-3, "1E5": 1e5, ".5": 0.5, "-.5e1": -5.0, "1.": 1.0, "1.5": 1.5, "-1e+2": -100.0, "1e999": math.inf}
    | {".inf": math.inf, "-.INF": -math.inf, "+.Inf": math.inf}
    | {text: text for text in AS_TEXT.split(" ")}
)


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_core_schema(text, value):
    for got in (scalar(text), read(f"a: {text}\n").data["a"]):
        assert got == value and type(got) is type(value)
    for quote in "'\"":
        assert read(f"a: {quote}{text}{quote}").data == {"a": text} and scalar(quote + text + quote) == text


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text):
    assert math.isnan(scalar(text)) and math.isnan(read(f"a: {text}").data["a"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{type: x, size: 2/255}", {"type": "x", "size": "2/255"}),
        (" [1, 1e-3, on, [true]] ", [1, 1e-3, "on", [True]]),
        ("!!str 5", "5"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("#1", "#1"),
        ("x #1", "x #1"),
    ],
)
def test_scalar_reads_flow_collections_and_one_plain_scalar(text, value):
    assert scalar(text) == value


@pytest.mark.parametrize("text", ["{a", "[1] x", "*x", "!!python/name:os.system", "{a: 1, a: 2}", "[" * 60, "9" * 2000])
def test_scalar_is_strict(text):
    assert error_of(scalar, text).startswith("--set value")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (
            "a: !!float 1\nb: !!str 1\nc: !!int 0x10\nd: !!seq []\ne: !!map {}",
            {"a": 1.0, "b": "1", "c": 16, "d": [], "e": {}},
        ),
        ("a: &x {b: [1]}\nc: *x\nd: [*x]", {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}]}),
        ("100: 0.1\n'200': 1\non: 1", {100: 0.1, "200": 1, "on": 1}),
        ("'<<': 1", {"<<": 1}),
        ("\ufeffa: é", {"a": "é"}),
        ("a: |\n  x\n  y\nb: >\n  x\n  y\n", {"a": "x\ny\n", "b": "x y\n"}),
        ("{}", {}),
        ("--- {a: 1}\n...\n", {"a": 1}),
    ],
)
def test_accepted(text, data):
    got = read(text).data
    assert got == data and [type(v) for v in got.values()] == [type(v) for v in data.values()]


def test_aliased_values_are_separate_objects():
    data = read("a: &x {b: 1}\nc: *x").data
    data["a"]["b"] = 2
    assert data["c"] == {"b": 1}


@pytest.mark.parametrize(
    ("text", "where", "got"),
    [
        ("", "", "is empty"),
        ("# only this\n", "", "is empty"),
        ("---\n", "", "is empty"),
        ("- 1", "1:1", "the top level is not a mapping"),
        ("just text", "1:1", "the top level is not a mapping"),
        ("\nnull\n", "2:1", "the top level is not a mapping"),
        ("a: 1\n--- \nb: 1", "2:1", "a second YAML document"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "4:3", "the key 'b' is given twice (first on line 2); delete one"),
        ("{1: a, 0x1: b}", "1:8", "the key 1 is given twice"),
        ("a: {'b': 1, \"b\": 2}", "1:13", "the key 'b' is given twice"),
        ("true: 1", "1:1", "the key !!bool true is neither"),
        ("a:\n  ~: 1", "2:3", "the key !!null ~ is neither"),
        ("1.5: 1", "1:1", "the key !!float 1.5 is neither"),
        ("? [a]\n: 1", "1:3", "the key !!seq is neither"),
        ("b: 1\n<<: {a: 1}", "2:1", "merge keys (<<) are not supported; use `extends`"),
        ("a: !!python/object/apply:os.system [x]", "1:4", "the tag '!!python/object/apply:os.system' is not allowed"),
        ("a: !<tag:yaml.org,2002:python/none> x", "1:4", "the tag '!!python/none' is not allowed"),
        ("%TAG ! tag:evil,2000:\n--- \na: !int 1", "3:4", "the tag 'tag:evil,2000:int' is not allowed"),
        ("a: !mine 1", "1:4", "the tag '!mine' is not allowed"),
        ("!!set {a, b}", "1:1", "the tag '!!set' is not allowed"),
        ("a: !!timestamp 2020-01-01", "1:4", "the tag '!!timestamp' is not allowed"),
        ("a: !!int abc", "1:4", "'abc' is no int"),
        ("a: !!bool yes", "1:4", "'yes' is no bool"),
        ("a: !!str [1]", "1:4", "the tag !!str does not fit"),
        ("a: !!seq x", "1:4", "the tag !!seq does not fit"),
        ("a: " + "9" * 5000, "1:4", "a whole number of 5000 digits"),
        ("a: &x [1, *x]", "1:11", "the alias *x stands inside its own anchor"),
        ("a: &x {b: {c: [*x]}}", "1:16", "the alias *x stands inside its own anchor"),
        ("a: *x", "1:4", "found undefined alias 'x'"),
        ("a:\n\tb: 1", "2:1", "indent with spaces, not tabs"),
        ("a: 1\n  \tb: 1", "2:3", "indent with spaces, not tabs"),
        ("a: [1\nb: 2", "2:2", "while parsing a flow sequence, expected ',' or ']'"),
        ("a: b: c", "1:5", "mapping values are not allowed here"),
        ("a: 'x", "1:6", "found unexpected end of stream"),
        ("a: @x", "1:4", "found character '@'"),
        ("a: \x85b: @x", "2:4", "found character '@'"),
        ("a: 1\nb: x\x01", "2:5", "the character '\\x01' is not allowed"),
        ("\ufeffa: \x01", "1:4", "the character '\\x01' is not allowed"),
        (b"\xef\xbb\xbfa: \xff", "1:4", "the byte 0xff is not UTF-8"),
        ('a: "\\UFFFFFFFF"', "1:7", "out of range"),
        ("%YAML 1." + "9" * 5000 + "\n--- {}", "1:9", "out of range"),
        (b"a: 1\n\xc3\xa9: \xff", "2:4", "the byte 0xff is not UTF-8"),
        ("a: 1".encode("utf-16"), "1:1", "the byte 0xff is not UTF-8"),
        ("a: " + "[" * 50, "1:53", "more than 50 levels"),
        ("a: 1\nextends: 3", "2:1", "extends needs a path or a list of paths"),
        ("extends: [3]", "1:11", "extends needs a path or a list of paths"),
        ("extends:", "1:1", "extends needs a path or a list of paths"),
        ("a: 1\nextends: no.yaml", "2:1", "extends 'no.yaml', which does not exist; check the path"),
        ("extends:\n- ok.yaml\n- x/no.yaml", "3:3", "extends 'x/no.yaml', which does not exist"),
        ("extends: folder", "1:1", "extends 'folder', which is a directory"),
        ('extends: "a\\0b"', "1:1", "is not a possible file name"),
    ],
)
def test_rejected_at(text, where, got):
    pathlib.Path("folder").mkdir()
    write("ok: 1", "ok.yaml")
    message = error_of(read, text)
    assert message.startswith(f"a.yaml:{where}: " if where else "a.yaml: ")
    assert got in message


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("no.yaml", "no.yaml: does not exist"),
        ("folder", "folder: is a directory"),
        (pathlib.Path("folder"), "folder: is a directory"),
        ("pipe", "pipe: is not a regular file"),
        ("/dev/zero", "/dev/zero: is not a regular file"),
        ("a.yaml/b", "a.yaml/b: cannot be read (Not a directory)"),
        ("loop", "loop: cannot be read (Too many levels of symbolic links)"),
        ("a\0b", "'a\\x00b': is not a possible file name"),
    ],
)
def test_unreadable_paths(path, got):
    write("a: 1")
    pathlib.Path("folder").mkdir()
    os.mkfifo("pipe")
    pathlib.Path("loop").symlink_to("loop")
    assert error_of(read_source, path).startswith(got)


def laughs(width, levels, seed="lol"):
    lines = [f"a0: &a0 [{seed}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (laughs(10, 30), "more than 10000 values once aliases are expanded"),
        (laughs(1, 30).replace("[", "[[").replace("]", "]]"), "more than 50 levels"),
        (laughs(1, 49).replace("a48: &a48", "a48: &a48 [") + "]", "more than 50 levels"),
        ("a: " + "[" * 100_000, "more than 50 levels"),
        ("[" * 100_000, "more than 50 levels"),
        ("{a: " * 100_000, "more than 50 levels"),
        ("- " * 100_000, "more than 50 levels"),
        ("? " * 100_000, "more than 50 levels"),
        ("- a\n" * 200_000, "more than 10000 values"),
        ("\n".join(f"k{i}: 1" for i in range(5000)), "more than 10000 values"),
        ("#" * (1 << 20) + "\n", "has 1048577 bytes, more than 1048576"),
    ],
)
def test_bombs_are_rejected_fast(text, got, no_garbage):
    start = time.thread_time()
    message = error_of(read, text)
    assert got in message and time.thread_time() - start < 1


def test_limits_are_not_stricter_than_they_say():
    assert len(read("\n".join(f"k{i}: 1" for i in range(4999))).data) == 4999
    assert read("a: " + "[" * 49 + "]" * 49).data["a"] != []
    assert len(read(laughs(1, 49)).data) == 49
    assert read(dump_yaml(nested(50))).data == nested(50)
    assert read(dump_yaml(dict.fromkeys(range(4999)))).data == dict.fromkeys(range(4999))
    assert read("#" * ((1 << 20) - 5) + "\na: 1").data == {"a": 1}


def test_large_file_is_rejected_before_reading(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: pytest.fail("read"))
    os.truncate(write(""), 50 * 2**20)
    assert "a.yaml: has 52428800 bytes" in error_of(read_source, "a.yaml")
    assert "extends 'a.yaml', which has 52428800 bytes" in error_of(read_source, {"extends": ["a.yaml"]})


SPEC = """\
name: x
threat: {norm: linf, epsilon:   8/255}
objective:
  terms:
    "gamma":
      weight: !!str 4
      steps: &s [1, "é", 1.50]
    é: *s
"""
LINES = {
    (): ("a.yaml", ""),
    ("name",): ("a.yaml:1:1", "x"),
    ("threat",): ("a.yaml:2:1", ""),
    ("threat", "norm"): ("a.yaml:2:10", "linf"),
    ("threat", "epsilon"): ("a.yaml:2:22", "8/255"),
    ("objective",): ("a.yaml:3:1", ""),
    ("objective", "terms"): ("a.yaml:4:3", ""),
    ("objective", "terms", "gamma"): ("a.yaml:5:5", ""),
    ("objective", "terms", "gamma", "weight"): ("a.yaml:6:7", "4"),
    ("objective", "terms", "gamma", "steps"): ("a.yaml:7:7", ""),
    ("objective", "terms", "gamma", "steps", 0): ("a.yaml:7:18", "1"),
    ("objective", "terms", "gamma", "steps", 1): ("a.yaml:7:21", "é"),
    ("objective", "terms", "gamma", "steps", 2): ("a.yaml:7:26", "1.50"),
    ("objective", "terms", "é"): ("a.yaml:8:5", ""),
    ("objective", "terms", "é", 0): ("a.yaml:7:18", "1"),
    ("objective", "terms", "é", 1): ("a.yaml:7:21", "é"),
    ("objective", "terms", "é", 2): ("a.yaml:7:26", "1.50"),
}


def places(source):
    return {path: (str(origin), origin.text) for path, origin in source.origins.items()}


def test_origin_of_every_value():
    source = read(SPEC)
    assert places(source) == LINES
    assert places(read(SPEC.replace("\n", "\r\n"))) == LINES
    assert source.origins["threat", "epsilon"] == Origin("a.yaml", 2, 22, "8/255")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("threat", "epsilon"), "a.yaml:2:22"),
        (("threat", "missing", 3, "deep"), "a.yaml:2:1"),
        (("missing",), "a.yaml"),
        ((), "a.yaml"),
    ],
)
def test_where_walks_up(path, where):
    assert read(SPEC).where(path) == where
    assert Source({}, {}).where(path) == "spec"


MERGES = [
    ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
    ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, {"a": {"b": {"c": 3, "d": 2}}}),
    ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
    ({"a": 2}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    # null deletes an inherited mapping, and only that
    ({"t": {"x": {"w": 1}, "y": {"w": 2}}}, {"t": {"x": None}}, {"t": {"y": {"w": 2}}}),
    ({"t": {"w": 1}}, {"t": {"w": None, "v": None}}, {"t": {"w": None, "v": None}}),
    ({"t": [1]}, {"t": None}, {"t": None}),
    # another type replaces the mapping
    ({"m": {"type": "cnn", "width": 3}}, {"m": {"type": "mlp"}}, {"m": {"type": "mlp"}}),
    (
        {"m": {"type": "cnn", "width": 3}},
        {"m": {"type": "cnn", "depth": 2}},
        {"m": {"type": "cnn", "width": 3, "depth": 2}},
    ),
    ({"m": {"type": "cnn", "width": 3}}, {"m": {"depth": 2}}, {"m": {"type": "cnn", "width": 3, "depth": 2}}),
    ({"m": {"width": 3}}, {"m": {"type": "cnn"}}, {"m": {"width": 3, "type": "cnn"}}),
    ({"m": {"type": "cnn", "a": {"b": 1}}}, {"m": {"type": "mlp", "a": None}}, {"m": {"type": "mlp", "a": None}}),
]


@pytest.mark.parametrize(("base", "child", "merged"), MERGES)
def test_extends_and_overrides_merge_alike(base, child, merged):
    write(dump_yaml({"wrap": base}), "base.yaml")
    source = read_source(write(dump_yaml({"extends": "base.yaml", "wrap": child})))
    assert source.data == {"wrap": merged}
    assert read_source({"extends": "base.yaml", "wrap": child}).data == {"wrap": merged}
    assert read_source({"wrap": base}, {"wrap": child}).data == {"wrap": merged}


def test_extends_chain_keeps_the_origin_of_each_value():
    write("a: 1\nt: {x: 1, y: 1}\nl: [1, 2]\nm: {type: p, q: 1}", "lib/far/root.yaml")
    write("extends: far/root.yaml\nt: {y: 2, z: 2}", "lib/mid.yaml")
    write("l: [3]", "side.yaml")
    source = read("# child\nextends: [lib/mid.yaml, side.yaml]\nt:\n  z: 3\nm: {type: r}\n")
    assert source.data == {"a": 1, "t": {"x": 1, "y": 2, "z": 3}, "l": [3], "m": {"type": "r"}}
    assert places(source) == {
        (): ("a.yaml", ""),
        ("a",): ("lib/far/root.yaml:1:1", "1"),
        ("t",): ("a.yaml:3:1", ""),
        ("t", "x"): ("lib/far/root.yaml:2:5", "1"),
        ("t", "y"): ("lib/mid.yaml:2:5", "2"),
        ("t", "z"): ("a.yaml:4:3", "3"),
        ("l",): ("side.yaml:1:1", ""),
        ("l", 0): ("side.yaml:1:5", "3"),
        ("m",): ("a.yaml:5:1", ""),
        ("m", "type"): ("a.yaml:5:5", "r"),
    }


def test_errors_in_a_base_name_the_base():
    write("x: 1\nx: 2", "lib/base.yaml")
    assert error_of(read, "extends: lib/base.yaml").startswith("lib/base.yaml:2:1: the key 'x'")


@pytest.mark.parametrize(
    ("files", "where", "chain"),
    [
        ({"a.yaml": "extends: a.yaml"}, "a.yaml:1:1", "a.yaml -> a.yaml"),
        (
            {"a.yaml": "extends: lib/b.yaml", "lib/b.yaml": "x: 1\nextends: ../a.yaml"},
            "lib/b.yaml:2:1",
            "a.yaml -> lib/b.yaml -> a.yaml",
        ),
        (
            {"a.yaml": "extends: b.yaml", "b.yaml": "extends: c.yaml", "c.yaml": "extends: ./b.yaml"},
            "c.yaml:1:1",
            "b.yaml -> c.yaml -> b.yaml",
        ),
    ],
)
def test_extends_cycle(files, where, chain):
    for name, text in files.items():
        write(text, name)
    assert error_of(read_source, "a.yaml").startswith(f"{where}: extends runs in a circle: {chain};")


def test_extends_the_same_base_twice_is_no_cycle_but_many_files_are_refused():
    write("x: 1", "f0.yaml")
    for i in range(1, 12):
        write(f"extends: [f{i - 1}.yaml, f{i - 1}.yaml]", f"f{i}.yaml")
    assert read_source("f3.yaml").data == {"x": 1}
    assert "extends reads more than 100 files" in error_of(read_source, "f11.yaml")
    for i in range(150):
        write(f"extends: g{i + 1}.yaml", f"g{i}.yaml")
    assert "extends reads more than 100 files" in error_of(read_source, "g0.yaml")


@pytest.mark.parametrize(
    ("method", "base", "data"),
    [
        ("a: {x: 1, y: 1}", "a: {x: 2}", {"a": {"x": 2}}),
        ("a: 1\nb: 1", "b: 2\nc: 2", {"a": 1, "b": 2, "c": 2}),
        ("objective: {terms: {t: 1}}", "objective: {terms: {u: 2}}", {"objective": {"terms": {"t": 1}}}),
        ("a: 1", "objective: {terms: {u: 2}}", {"a": 1}),
        ("train: {epochs: 1, batch_norm: {terms: clean}}", "train: {steps: 2}",
         {"train": {"steps": 2, "batch_norm": {"terms": "clean"}}}),
        ("train: {batch_norm: {terms: clean}}", "train: {batch_norm: {terms: batch, search: moving}}",
         {"train": {"batch_norm": {"terms": "clean", "search": "moving"}}}),
        ("train: {batch_norm: {terms: clean}}", "a: 1", {"train": {"batch_norm": {"terms": "clean"}}, "a": 1}),
        ("name: m", "name: d", {"name": "d-m"}),
        ("name: m", "a: 1", {"name": "m", "a": 1}),
        ("plugins: [m.py]", "plugins: [d.py]", {"plugins": ["d.py", "m.py"]}),
        ("plugins: [m.py]", "a: 1", {"plugins": ["m.py"], "a": 1}),
        ("train: {batch_norm: 1}\nname: m\nplugins: []", "train: 3\nname: 4\nplugins: x",
         {"train": {"batch_norm": 1}, "name": 4, "plugins": "x"}),
    ],
)  # fmt: skip
def test_on_takes_the_method_of_one_and_the_blocks_of_the_other(method, base, data):
    assert read_source(write(method, "m.yaml"), on=write(base, "lib/d.yaml")).data == data


def test_on_keeps_origins_and_comes_before_overrides():
    write("extends: root.yaml\nname: d\nplugins: [d.py]", "lib/d.yaml")
    write("a: {x: 1}", "lib/root.yaml")
    method = write("name: m\na: {x: 0, y: 0}\nplugins: [m.py]", "m.yaml")
    source = read_source(method, {"a.z": 3}, on="lib/d.yaml")
    assert source.data == {"name": "d-m", "a": {"x": 1, "z": 3}, "plugins": ["d.py", "m.py"]}
    assert str(source.origins["a", "x"]) == "lib/root.yaml:1:5" and str(source.origins["name",]) == "m.yaml:1:1"
    assert str(source.origins["plugins", 0]).startswith("lib/d.yaml:3")
    assert str(source.origins["plugins", 1]).startswith("m.yaml:3")
    assert error_of(read_source, method, {}, "no.yaml") == "no.yaml: does not exist; check the path"


@pytest.mark.parametrize(
    ("base", "path", "value", "data"),
    [
        ({"a": {"b": 1, "c": 2}}, "a.b", 3, {"a": {"b": 3, "c": 2}}),
        ({}, "a.b.c", "1e3", {"a": {"b": {"c": "1e3"}}}),
        ({"a": 1}, "a", (1, 2), {"a": [1, 2]}),
        ({"a": [1, {"b": 2}]}, "a.1.b", 3, {"a": [1, {"b": 3}]}),
        ({"a": [1, 2]}, "a.0", 3, {"a": [3, 2]}),
        ({"a": {"0": 1}}, "a.0", 3, {"a": {"0": 3}}),
        ({"a": {100: 1}}, "a.100", 3, {"a": {100: 3}}),
        ({}, "a.100", 3, {"a": {100: 3}}),
        ({"a": {"b": 1}}, "a.b", None, {"a": {"b": None}}),
        ({"a": {"b": {"c": 1}, "d": 2}}, "a.b", None, {"a": {"d": 2}}),
        ({}, "a.b", None, {"a": {"b": None}}),
        ({"m": {"type": "x", "y": 1}}, "m.type", "z", {"m": {"type": "z", "y": 1}}),
    ],
)
def test_overrides(base, path, value, data):
    assert read_source(base, {path: value}).data == data


def test_override_origins():
    source = read(SPEC, threat__epsilon="4/255", new__list=[1, {"x": None}], objective__terms__gamma__steps__1=2.5)
    origins, flag = source.origins, "--set new.list"
    assert origins["threat", "epsilon"] == Origin("--set threat.epsilon", text="4/255")
    assert origins["threat", "norm"] == Origin("a.yaml", 2, 10, "linf") and str(origins["threat",]) == "a.yaml:2:1"
    assert origins["new",] == origins["new", "list"] == origins["new", "list", 1] == Origin(flag)
    assert origins["new", "list", 0] == Origin(flag, text="1")
    assert origins["new", "list", 1, "x"] == Origin(flag, text="None")
    assert source.where(("objective", "terms", "gamma", "steps", 1)) == "--set objective.terms.gamma.steps.1"
    assert source.where(("objective", "terms", "é", 1)) == "a.yaml:7:21"


def test_overrides_apply_in_order():
    assert read_source({}, {"a.b": {"c": 1}, "a.b.d": 2, "a.b.c": 3}).data == {"a": {"b": {"c": 3, "d": 2}}}


@pytest.mark.parametrize(
    ("path", "value", "got"),
    [
        ("name.x", 1, "name is no mapping but 'x' (a.yaml:1:1); set name itself"),
        ("name.x.y", 1, "name is no mapping but 'x'"),
        ("objective.terms.gamma.steps.3", 1, "objective.terms.gamma.steps is a list of 3; use an index below 3"),
        ("objective.terms.gamma.steps.-1", 1, "is a list of 3"),
        ("objective.terms.gamma.steps.x", 1, "is a list of 3"),
        ("", 1, "is not a dotted path"),
        ("a..b", 1, "is not a dotted path"),
        (".".join("a" * 51), 1, "is not a dotted path"),
        ("a.b", {"c": {1, 2}}, "c is of type set"),
        ("a.b", [object], "0 is of type type"),
        ("a.b", np.float32(1), "the value is of type float32"),
        (".".join("a" * 50), [], "exceeds 10000 values or 50 levels"),
    ],
)
def test_bad_overrides(path, value, got):
    message = error_of(read_source, write(SPEC), {path: value})
    assert message.startswith(f"--set {path}: ") and got in message


def nested(levels):
    return {} if levels == 1 else {"a": nested(levels - 1)}


RECURSIVE: dict = {}
RECURSIVE["a"] = [RECURSIVE]
SHARED = [1]
for _ in range(40):
    SHARED = [SHARED, SHARED]


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ({"a": [0, {"b": np.zeros(2)}]}, "a.1.b is of type ndarray"),
        ({"a": np.float64(1)}, "a is of type float64"),
        ({"a": pathlib.Path("x")}, "a is of type PosixPath"),
        ({"a": b"x"}, "a is of type bytes"),
        ({"a": {None: 1}}, "a has the key None"),
        ({"a": {True: 1}}, "a has the key True"),
        ({"a": {1.5: 1}}, "a has the key 1.5"),
        (RECURSIVE, "exceeds 10000 values or 50 levels"),
        ({"a": SHARED}, "exceeds 10000 values or 50 levels"),
        ({"a": list(range(10_000))}, "exceeds 10000 values or 50 levels"),
        (dict.fromkeys(range(5000)), "exceeds 10000 values or 50 levels"),
        (nested(51), "exceeds 10000 values or 50 levels"),
    ],
)
def test_bad_mappings(data, got):
    for action in (read_source, dump_yaml):
        message = error_of(action, data)
        assert message.startswith("<dict>: ") and got in message


def test_mapping_spec_and_overrides_are_copied():
    spec, value = {"a": {"b": [1, (2, 3)]}, "c": None}, {"x": [1]}
    before = copy.deepcopy((spec, value))
    source = read_source(spec, {"a.d": value})
    assert source.data == {"a": {"b": [1, [2, 3]], "d": {"x": [1]}}, "c": None}
    assert source.origins["a", "b", 0] == Origin("<dict>", text="1") and source.where(("zzz",)) == "<dict>"
    source.data["a"]["b"].append(4)
    source.data["a"]["d"]["x"].append(4)
    assert (spec, value) == before


def test_mapping_spec_extends_relative_to_the_working_directory():
    write("a: 1", "lib/base.yaml")
    assert read_source({"extends": "lib/base.yaml", "b": 2}).data == {"a": 1, "b": 2}
    assert error_of(read_source, {"extends": "no.yaml"}).startswith("<dict>: extends 'no.yaml', which does not exist")


def test_path_objects_and_absolute_bases(tmp_path):
    write("a: 1", "base.yaml")
    source = read_source(pathlib.Path(write(f"extends: {tmp_path}/base.yaml", "lib/b.yaml")))
    assert source.where(("a",)) == f"{tmp_path}/base.yaml:1:1" and source.where(()) == "lib/b.yaml"


TRICKY = [
    "on",
    "1e3",
    "8/255",
    "null",
    "~",
    "",
    "- a",
    "x: y",
    "a\nb",
    "a\n",
    "\n\n",
    " a ",
    "\n a",
    "a #b",
    "#",
    "<<",
    "010",
]
TRICKY += [
    "0x1F",
    "1:30",
    "2020-01-01",
    "é\u2028\x85\r\ufeff😀",
    "a\tb",
    "'\"",
    "*a",
    "&a",
    "!a",
    "%",
    "@",
    "---",
    "...",
    "?",
]
texts = (
    st.sampled_from(TRICKY) | st.text(max_size=30) | st.text(alphabet="a :-#'\"\n\r\t[]{}&*!|>%@,?0.~\\", max_size=20)
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts | st.integers(), v, max_size=4))
mappings = st.dictionaries(texts.filter(lambda key: key != "extends") | st.integers(), values, max_size=5)
in_one_folder = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def exact(value):
    """Comparable form that tells 1 from 1.0 and True, 0.0 from -0.0, key order, and knows nan."""
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    return [exact(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


@in_one_folder
@given(mappings)
@example({"a": 1e-05, "b": 1e16, "c": -0.0, "d": 5e-324, "e": float("nan"), "f": -math.inf, "g": 0.1 + 0.2})
@example({text: [text, {text: text}] for text in TRICKY})
@example({"long": "word " * 400, "x" * 300: {"y" * 300: [[[]], {}]}})
def test_dump_reads_back_exactly(data):
    assert exact(read(dump_yaml(data)).data) == exact(data)


def test_dump_is_readable_block_yaml():
    data = {"b": {"eps": "8/255", "lr": 1e-05}, "a": ["on", "x: y"], 100: None, "note": "one\ntwo\n", "e": [], "f": {}}
    assert dump_yaml(data) == (
        "b:\n  eps: 8/255\n  lr: 1.0e-05\na:\n- 'on'\n- 'x: y'\n100: null\nnote: |\n  one\n  two\ne: []\nf: {}\n"
    )
    assert dump_yaml({"a": "word " * 99 + "end"}) == "a: " + "word " * 99 + "end\n"
    shared = [1]
    assert dump_yaml({"a": shared, "b": shared}) == "a:\n- 1\nb:\n- 1\n"
    assert yaml.safe_load(dump_yaml(data)) == data


@in_one_folder
@given(st.text(alphabet="a1 :-#'\"\n\t[]{}&*!|>%@,?.~\\<U", max_size=40) | st.binary(max_size=20))
def test_any_text_gives_data_or_one_line(text):
    try:
        assert isinstance(read(text).data, dict)
    except SpecError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith("a.yaml")
    if isinstance(text, str):
        try:
            scalar(text)
        except SpecError as error:
            assert str(error).startswith("--set value")
