"""What every command says of itself, and what shells complete."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest
from click.shell_completion import BashComplete, get_completion_class

from llrflow.cli import cli
from llrflow.spec.source import read_source

WITHOUT_JSON = {"schema", "init", "completion", "report"}  # they print JSON anyway, a script, or what they wrote


def commands(command=cli, path=()):
    """(path, command) of every command and group below a group, and itself."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: "-".join(path) or "llrflow")
def test_help_shows_examples_that_parse(path):
    command = COMMANDS[path]
    lines = command.get_help(click.Context(command, info_name="llrflow")).splitlines()
    start = next((i for i, line in enumerate(lines) if re.fullmatch(r"\s+Examples?:", line)), None)
    assert start is not None, "its docstring has no Example"
    examples = [line.split() for line in lines[start + 1 :] if line.split()[:1] == ["llrflow"]]
    if path != ("completion",):
        assert examples, "the example is no llrflow command"
    for words in examples:
        words = words[1 : words.index("&&")] if "&&" in words else words[1:]
        words = words[: words.index(">")] if ">" in words else words
        named = next(p for p in sorted(COMMANDS, key=len, reverse=True) if p and tuple(words[: len(p)]) == p)
        assert named[0] in (path[0] if path else named[0], "plan"), "an example of another command"
        options = {o for parameter in COMMANDS[named].params for o in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, words


def test_what_prints_results_prints_json():
    for path, command in COMMANDS.items():
        has_json = any("--json" in parameter.opts for parameter in command.params)
        assert has_json or isinstance(command, click.Group) or path[0] in WITHOUT_JSON, path


def test_exit_statuses_are_explained(command):
    code, out, _ = command("--help")
    assert code == 0
    statuses = re.findall(r"^    (\d+) +\w+", out.partition("Exit status:")[2], re.MULTILINE)
    assert statuses == ["0", "1", "2", "3", "130", "143"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_say_where_they_belong(command, shell):
    code, out, _ = command("completion", shell)
    script = get_completion_class(shell)(cli, {}, "llrflow", "_LLRFLOW_COMPLETE").source()
    assert code == 0 and script in out and "# Save as ~/" in out
    if shell == "zsh":
        assert out.startswith("#compdef llrflow")


def completions(*words):
    *given, incomplete = words
    return [
        item.value for item in BashComplete(cli, {}, "llrflow", "_LLRFLOW_COMPLETE").get_completions(given, incomplete)
    ]


def test_commands_kinds_and_run_folders_complete(tmp_path, monkeypatch):
    for name in ("a", "b", "none"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("comp") == ["compare", "completion"]
    assert completions("types", "at") == ["attack"]
    assert completions("evaluate", "ru") == completions("compare", "runs/a", "runs/") == ["runs/a", "runs/b"]
    assert completions("tail", f"{tmp_path}/runs/b") == [f"{tmp_path}/runs/b"]
    assert completions("evaluate", "runs/a", "--study", "s") == ["strength", "surface"]
    words = {"COMP_WORDS": "llrflow data p", "COMP_CWORD": "2", "_LLRFLOW_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-m", "llrflow"], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("plain,prepare\n", "")


def test_the_published_schema_is_that_of_the_built_in_components(repository):
    arguments = [sys.executable, "-m", "llrflow", "schema"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=repository)
    published = (repository / "llrflow/spec/spec.schema.json").read_text()
    assert published == done.stdout, "run: llrflow schema > llrflow/spec/spec.schema.json"


def test_a_new_spec_names_the_schema_that_checks_it(command, tmp_path):
    assert command("init", "mine.yaml")[0] == 0
    path = tmp_path / "cwd" / "mine.yaml"
    header = re.fullmatch(r"# yaml-language-server: \$schema=file://(/\S+)", path.read_text().splitlines()[0])
    assert header[1] == command("schema", "--uri")[1].strip().removeprefix("file://")
    check = jsonschema.Draft202012Validator(json.loads(Path(header[1]).read_text()))
    assert check.is_valid(read_source(path).data)
    assert not check.is_valid(read_source(path, {"train.epoch": 2}).data)
