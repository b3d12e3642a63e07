"""Imports point one way, along the flow from spec to run folder, and importing llrflow is quick."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llrflow"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

FLOORS = ROOT / "docs" / "design.md"


def floors():
    """Which folder may import which, from the table in docs/design.md: its name, then those that it stands on."""
    rows = re.findall(r"^\| `([a-z/]+)` \|([^|]*)\|", FLOORS.read_text(), re.MULTILINE)
    return {folder: set(re.findall(r"`([a-z/]+)`", below)) for folder, below in rows}


def imports(path):
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(module):
    """The folder of a module below `llrflow`, or the name of one at the root."""
    inner = FILES[module].parent.relative_to(PACKAGE).as_posix()
    return FILES[module].stem if inner == "." else inner


def arrows():
    """(importing module, imported module) of every import of llrflow's own files."""
    return [(m, i) for m, path in FILES.items() for i in imports(path) if i in FILES and i not in (m, "llrflow")]


def test_imports_are_those_that_the_design_has():
    table = floors()
    root = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {folder_of(module) for module in FILES if FILES[module].name != "__init__.py"}
    assert set(table) == folders - root, "docs/design.md lists other folders"
    back = [
        f"{module} imports {imported}"
        for module, imported in arrows()
        if (folder := folder_of(module)) in table and folder_of(imported) not in {folder, *table[folder]}
    ]
    assert back == []


def test_the_floors_of_the_design_stand_on_each_other_in_order():
    seen = set()
    for folder, below in floors().items():
        assert below <= seen, f"{folder} stands on {below - seen}, which the table has further down"
        seen.add(folder)


def test_no_file_imports_itself_by_others():
    below = {}
    for module, imported in arrows():
        below.setdefault(module, set()).add(imported)
    order = graphlib.TopologicalSorter(below)
    order.prepare()  # raises CycleError


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
    allowed = {"llrflow.components.consent"} if word == "environ" else set()  # where the platform keeps state
    assert users <= {"llrflow.cli", "llrflow.commands.environment", *allowed}


def test_commands_print_through_what_makes_text_harmless():
    users = {module for module, path in FILES.items() if re.search(r"\bclick\.s?echo\(", path.read_text())}
    assert users == {"llrflow.commands.printing", "llrflow.commands.completion"}  # the latter prints a script


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
            {
                "jax",
                "jaxlib",
                "haiku",
                "optax",
                "ray",
                "tensorflow_datasets",
                "tensorflow",
                "orbax",
                "sklearn",
                "pydantic",
            },
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


def test_an_editable_install_is_found_from_the_folder_above_a_clone_called_llrflow(tmp_path):
    """There Python takes the clone for a namespace package, unless another path holds a real one."""
    (tmp_path / "llrflow/llrflow").mkdir(parents=True)
    (tmp_path / "llrflow/llrflow/__init__.py").write_text("here = 'found'\n")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "llrflow" / name)
    build = "import setuptools.build_meta as b; print(b.build_editable('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "llrflow", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).extractall(tmp_path / "site")
    script = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import llrflow; print(llrflow.here)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = [sys.executable, "-S", "-c", script]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout == "found\n", done.stderr
