"""Imports point one way, along the flow from spec to run folder, and importing llrflow is quick."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llrflow"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Who may not import whom, by the first part below `llrflow`.
OUTER = {"spec", "program", "runs", "commands", "cli", "sweep", "report", "plugins"}
FORBIDDEN = {
    **dict.fromkeys(
        ("terms", "models", "attacks", "threat", "probe", "ascent", "objective", "optimizers", "data"), OUTER
    ),
    **dict.fromkeys(("registry", "traced"), OUTER | {"data", "terms", "models", "attacks"}),
    "errors": OUTER | {"registry", "data"},
    "spec": {"program", "runs", "commands", "cli", "sweep", "report"},
    "program": {"runs", "commands", "cli", "sweep", "report"},
    "runs": {"commands", "cli", "sweep", "report"},
    "sweep": {"commands", "cli", "report"},
    "report": {"program", "commands", "cli"},
}
# Commands are part of the command line wherever they stand.
EXEMPT = {"llrflow.data.commands"}


def imports(path):
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "llrflow" and len(pieces) > 1 else None


def test_no_import_points_back():
    assert {part(module) for module in FILES} >= set(FORBIDDEN), "a part was renamed: correct FORBIDDEN"
    back = [
        f"{module} imports {imported}"
        for module, path in FILES.items()
        if module not in EXEMPT
        for imported in imports(path)
        if part(imported) in FORBIDDEN.get(part(module), ())
    ]
    assert back == []


def names(path):
    """Every name, attribute and imported name in a file's code, comments and docstrings left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")


def test_only_one_file_calls_jax_pmap():
    users = set()
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            is_jax = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax"
            imported = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax")
            if (is_jax and node.attr == "pmap") or (imported and "pmap" in {a.name for a in node.names}):
                users.add(module)
    assert users == {"llrflow.program.devices"}


@pytest.mark.parametrize("word", ["argv", "environ", "getenv", "basicConfig"])
def test_library_code_reads_no_flags_or_environment(word):
    users = {module for module, path in FILES.items() if word in set(names(path))}
    assert users <= {"llrflow.cli"}


def is_within(limit, command):
    """Whether one of three CPU times of a command that must succeed is: what other jobs take does not count."""
    for _ in range(3):
        before = os.times()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=15)
        after = os.times()
        took = after.children_user + after.children_system - before.children_user - before.children_system
        if took <= limit:
            return True
    return False


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (
            ["--help"],
            {"jax", "haiku", "optax", "ray", "tensorflow_datasets", "tensorflow", "orbax", "sklearn", "pydantic"},
        ),
        (
            ["validate", "specs/quickstart.yaml"],
            {"ray", "tensorflow", "orbax", "sklearn", "matplotlib", "tensorboardX", "simplejpeg"},
        ),
    ],
    ids=["help", "validate"],
)
def test_a_command_imports_no_more_than_it_needs(arguments, unwanted, data_dir):
    if "validate" in arguments:
        arguments = [*arguments, "--set", f"data.dir={data_dir}"]
    command = [sys.executable, "-X", "importtime", "-m", "llrflow", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "llrflow" in imported
    assert not imported & unwanted


def test_importing_llrflow_starts_nothing():
    heavy = "('jax', 'haiku', 'optax', 'ray', 'tensorflow_datasets', 'tensorflow', 'orbax', 'sklearn', 'pydantic')"
    code = f"import sys, llrflow; print([m for m in {heavy} if m in sys.modules]); llrflow.SpecError"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.alone
@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ([sys.executable, "-c", "import llrflow"], 0.3),
        ([Path(sys.executable).with_name("llrflow"), "--help"], 0.5),
        ([Path(sys.executable).with_name("llrflow"), "validate", "specs/quickstart.yaml"], 3.0),
    ],
    ids=["import", "help", "validate"],
)
def test_start_up_is_quick(arguments, limit, data_dir):
    if "validate" in arguments:
        arguments = [*arguments, "--set", f"data.dir={data_dir}"]
    assert is_within(limit, arguments)
