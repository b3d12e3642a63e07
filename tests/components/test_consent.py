"""What a spec of somebody else may have imported: nothing that is neither installed, nor imported, nor trained with."""

import pytest

from llrflow.components.consent import remember, trusted
from llrflow.components.plugins import load_plugin


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place for what is remembered."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """mine/inner.py on the path, as a module in the working directory is; importing either is seen."""
    (tmp_path / "mine").mkdir()
    for name in ("__init__", "inner"):
        (tmp_path / f"mine/{name}.py").write_text("raise SystemExit('was imported')\n")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/module.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_what_is_installed_and_what_is_nowhere_needs_no_consent(home, package):
    for plugin in ("json", "json.tool", "optax", "llrflow.data", "no.such.module", "", str(package / "absent.py")):
        assert trusted(plugin), plugin  # what is nowhere fails with a line of its own
    remember(("json", "no.such.module"))
    assert not home.exists()


@pytest.mark.parametrize("plugin", ["mine", "mine.inner", "bare.module", "mine/inner.py"])
def test_what_is_remembered_is_a_file_as_it_was(home, package, plugin):
    plugin = str(package / plugin) if "/" in plugin else plugin
    assert not trusted(plugin)
    remember((plugin,))
    assert trusted(plugin)
    noted = [package / note.read_text().strip() for note in (home / "llrflow/plugins").iterdir()]
    file = next(file for file in noted if len(noted) == 1 or file.name != "__init__.py")
    assert (home / "llrflow/plugins").stat().st_mode & 0o777 == 0o700
    content = file.read_text()
    file.write_text(content + "# changed\n")
    assert not trusted(plugin)
    file.write_text(content)
    assert trusted(plugin)
    file.rename(file.with_name("elsewhere.py"))
    assert not trusted(str(file.with_name("elsewhere.py")))


def test_every_file_that_an_import_runs_counts(home, package):
    assert not trusted("mine.nosuch")  # runs mine/__init__.py before it fails
    remember((str(package / "mine/inner.py"),))
    assert not trusted("mine.inner")
    remember(("mine.inner",))
    assert trusted("mine.inner") and trusted("mine")


def test_a_name_of_something_installed_is_not_its_code(home, package):
    assert trusted("pip")
    (package / "pip.py").write_text("raise SystemExit('was imported')\n")
    assert not trusted("pip")


def test_what_this_process_has_imported_runs_no_code_again(home, tmp_path):
    plugin = tmp_path / "known.py"
    plugin.write_text("seen = 1\n")
    load_plugin(str(plugin))
    assert trusted(str(plugin))
    plugin.write_text("seen = 2\n")
    assert not trusted(str(plugin))


def test_without_a_place_to_remember_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "own.py").touch()
    remember((str(tmp_path / "own.py"),))
    assert not trusted(str(tmp_path / "own.py"))
