"""A zoo gives out runs that are what its index says, and nothing else gets onto the disk."""

import functools
import http.server
import json
import re
import threading

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError, DataError, InputError
from llrflow.runs.zoo import INDEX, add, get, read_index


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    assert add(finished, folder) == "tiny"
    return folder


@pytest.fixture
def zoo(published, tmp_path):
    """A copy of the zoo, to be harmed."""
    import shutil

    return shutil.copytree(published, tmp_path / "zoo")


@pytest.fixture
def served(zoo):
    """The address of a server of that copy."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=zoo))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_run_from_a_folder_and_from_a_server_is_the_run_that_was_published(finished, zoo, served, tmp_path):
    images, logits = np.random.default_rng(0).random((3, 8, 8, 1), np.float32), []
    for source in (str(zoo), served):
        out = tmp_path / f"got{len(logits)}"
        run = get(source, "tiny", out)
        assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(run.files)
        logits.append(llrflow.load_model(out).logits(images))
    for found in logits:
        np.testing.assert_array_equal(found, llrflow.load_model(finished).logits(images))
    certificate = json.loads((finished / "evaluation/12.json").read_text())
    assert run.worst_case == certificate["worst_case"]["accuracy"] and run.threat == "linf 0.15"
    assert not any(path.startswith("checkpoints/8") for path in run.files)
    with pytest.raises(DataError, match="exists already"):
        get(served, "tiny", out)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*: cannot be written: Not a directory; choose another --out"):
        get(str(zoo), "tiny", tmp_path / "file/got")


def test_what_was_fetched_is_not_fetched_again_and_a_wrong_file_is_refused(zoo, tmp_path):
    checkpoint = next(path for path in (zoo / "tiny/checkpoints/12").rglob("*") if path.stat().st_size > 100)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"not the file that the index lists.*try again"):
        get(str(zoo), "tiny", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    checkpoint.write_bytes(content)
    (zoo / "tiny/run.json").unlink()  # which is there already
    get(str(zoo), "tiny", tmp_path / "got")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


WRONG = {
    "is no path inside": lambda index: index["runs"]["tiny"]["files"].update({"../out": index_file()}),
    "is no path  inside": lambda index: index["runs"]["tiny"]["files"].update({"/tmp/out": index_file()}),
    "is no path inside ": lambda index: index["runs"]["tiny"]["files"].update({".hidden": index_file()}),
    "is no  path inside": lambda index: index["runs"]["tiny"]["files"].update({"a" * 300: index_file()}),
    "lists run.json both as a file and as a folder": lambda index: index["runs"]["tiny"]["files"].update(
        {"run.json/x": index_file()}
    ),
    "more than 16 GiB": lambda index: index["runs"]["tiny"]["files"].update({"big": index_file(2**40)}),
    "String should match pattern": lambda index: index["runs"].update({"../x": index["runs"]["tiny"]}),
    "is no run: ": lambda index: index["runs"]["tiny"].update(files={}),
}


def index_file(size=1):
    return {"bytes": size, "sha256": "0" * 64}


@pytest.mark.parametrize("says", WRONG)
def test_an_index_that_means_harm_is_one_line(says, zoo, rewrite, tmp_path):
    def change(index):
        WRONG[says](index)
        return index

    rewrite(zoo / INDEX, change)
    with pytest.raises(InputError, match=re.escape(" ".join(says.split()))) as raised:
        get(str(zoo), "tiny", tmp_path / "got")
    assert "\n" not in str(raised.value) and not (tmp_path / "got").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_of_the_zoo_is_not_replaced(finished, tmp_path, command):
    (tmp_path / "zoo/mine").mkdir(parents=True)
    (tmp_path / "zoo/mine/kept").write_text("mine")
    for name, says in (
        ("mine", "is there already"),
        ("..", "cannot be a folder of a zoo"),
        (".", "cannot be a folder"),
    ):
        code, _, err = command("zoo", "add", finished, "--to", tmp_path / "zoo", "--name", name)
        assert code == 2 and says in err and err.count("\n") == 1, err
    assert sorted(path.name for path in (tmp_path / "zoo").rglob("*")) == [".lock", "kept", "mine"]
    for _ in range(2):  # an equal name is replaced
        assert add(finished, tmp_path / "zoo", "other") == "other"
    (tmp_path / "zoo" / INDEX).unlink()  # as if it had been killed before it wrote it
    assert add(finished, tmp_path / "zoo", "other") == "other"
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == [".lock", "mine", "other", "zoo.json"]


def test_a_run_with_another_spec_than_it_had_is_not_published(copied, tmp_path):
    with (copied / "spec.yaml").open("a") as file:
        file.write("# better\n")
    with pytest.raises(CheckpointError, match=r"spec.yaml was edited after the run.*; put back the spec.yaml"):
        add(copied, tmp_path / "zoo")


def test_runs_that_are_added_at_the_same_time_are_all_listed(finished, tmp_path):
    threads = [threading.Thread(target=add, args=(finished, tmp_path / "zoo", f"run{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_index(str(tmp_path / "zoo")).runs.keys() == {f"run{n}" for n in range(4)}


def test_addresses_that_are_none(zoo, served, tmp_path, command):
    (zoo / INDEX).write_text((zoo / INDEX).read_text().replace("tiny", "tinier", 1))
    with pytest.raises(DataError, match="is damaged: it is not what was written"):
        read_index(str(zoo))
    for source, says in (
        (f"{served}/none", "404"),
        ("http://127.0.0.1:9", "refused"),
        (tmp_path, "No such file"),
        ("~nobody-has-this-name/zoo", "home directory"),
        ("HTTP://127.0.0.1:9", "refused"),
    ):
        code, _, err = command("zoo", "list", "--from", source)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_a_strangers_run_asks_for_consent_and_the_command_lists(zoo, rewrite, command, tmp_path):
    code, out, err = command("zoo", "list", "--from", zoo)
    assert code == 0 and "tiny" in out and "linf 0.15" in out, out + err
    code, out, err = command("zoo", "get", "tinny", "--from", zoo)
    assert code == 2 and "did you mean 'tiny'?" in err
    spec = zoo / "tiny/spec.yaml"
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')")
    spec.write_text(re.sub(r"^plugins: .*$", f"plugins: [{tmp_path / 'theirs.py'}]", spec.read_text(), flags=re.M))
    from llrflow.base.files import sha256_file

    listed = {"bytes": spec.stat().st_size, "sha256": sha256_file(spec)}

    def change(index):
        index["runs"]["tiny"]["files"]["spec.yaml"] = listed
        return index

    rewrite(zoo / INDEX, change)
    code, out, err = command("zoo", "get", "tiny", "--from", zoo, "--out", tmp_path / "got")
    assert code == 0, err
    code, _, err = command("export", tmp_path / "got")
    assert code == 2 and "so it was not run" in err
