"""What a folder that was handed out says of itself is printed, and obeyed by nothing."""

import shutil

import pytest

import llrflow

TITLE, TAG = "\x1b]0;gone\x07", "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(load, tmp_path_factory, rewrite):
    """A folder of a run whose names are those of a joker."""
    spec = load({"train.steps": 2, "checkpoint.every": 2, "evaluate.attacks.pgd": None})
    path = tmp_path_factory.mktemp("given") / f"{TAG.replace('/', '')}{TITLE}"
    llrflow.run(spec, path)
    rewrite(path / "run.json", name=f"{TAG}{TITLE}", git=f"{TITLE}abc", versions={"jax": f"1{TITLE}"})

    def renamed(found):
        if found.get("classes"):
            found["classes"]["names"][0] = f"{TAG}{TITLE}"
        return found

    for evaluation in (path / "evaluation").glob("*.json"):
        rewrite(evaluation, renamed)
    return path.parent


def test_no_command_prints_control_characters(command, folder, rewrite, tmp_path):
    (run,) = folder.iterdir()
    shutil.copytree(run, tmp_path / "other")
    rewrite(tmp_path / "other/run.json", git="another")
    for arguments in (
        ["runs", folder],
        ["runs", folder, "--markdown"],
        ["compare", run, tmp_path / "other"],
        ["tail", run, "--no-follow"],
        ["report", run, "--table", "markdown"],
        ["export", run, "--checkpoint", "7"],
        ["evaluate", tmp_path / f"no{TITLE}"],
    ):
        _, out, err = command(*arguments)
        assert out + err and not {"\x1b", "\x07"} & set(out + err), (arguments, out, err)
        assert "Traceback" not in err
        if "markdown" in str(arguments):
            assert "<script>" not in out and "&lt;script>" in out
    page = tmp_path / "page.html"
    code, _, err = command("report", run, "-o", page)
    assert code == 0 and "<script>alert" not in page.read_text(), err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{spec}", "--out"],
        ["sweep", "{sweep}", "--out"],
        ["export", "{run}", "--out"],
        ["report", "{run}", "--out"],
    ],
    ids=lambda arguments: " ".join(arguments).replace("{", "").replace("}", ""),
)
def test_a_uri_is_no_folder(command, folder, tiny, write_spec, tmp_path, arguments):
    parameters = {"lr": {"type": "choice", "path": "optimizer.learning_rate", "values": [0.1, 0.01]}}
    sweep = {"parameters": parameters, "decide_on": "test", "search": {"type": "grid"}}
    places = {
        "spec": write_spec(tmp_path / "a.yaml", tiny()),
        "sweep": write_spec(tmp_path / "b.yaml", tiny(), {"sweep": sweep}),
        "run": next(folder.iterdir()),
    }
    code, out, err = command(*(argument.format(**places) for argument in arguments), "s3://bucket/some/x")
    says = (
        "error: s3://bucket/some/x: is a URI, and only local folders are written; "
        "name a local folder; `llrflow sweep --mirror URI` copies a sweep there while it runs\n"
    )
    assert (code, err.splitlines(keepends=True)[-1]) == (2, says), (out, err)
    assert not [path for path in (tmp_path / "cwd").iterdir() if path.name.startswith("s3")]
