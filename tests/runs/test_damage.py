"""Every kind of file of a run folder, damaged in every way: each command says so in a line, or shows the same numbers.

What is allowed: an error of one line (exit 2); a note that names what has changed; or output that is that of the intact
folder. Never a traceback, a hang, or another number without a word.
"""

import json
import os
import random
import shutil

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import LlrflowError

ATTACKS = {"far": {"type": "fgsm", "epsilon": 0.3}}


@pytest.fixture(scope="module")
def whole(load, tmp_path_factory):
    """A finished run with three checkpoints, two evaluations, a study and an export."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    llrflow.run(load({"evaluate.strength": {"steps": [1], "restarts": [1], "epsilons": [0.1]}}), folder)
    from llrflow.runs.export import export_model

    export_model(folder)
    return folder


def files_of(folder):
    """One file of each kind and name, of Orbax's a few."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    orbax = [name for name in found if name.startswith("checkpoints/12/")]
    kept = [name for name in found if not name.startswith("checkpoints/") and name != ".lock"]
    return [*kept, *orbax[:: max(1, len(orbax) // 4)], "checkpoints/manifests/12.json", "checkpoints/manifests/8.json"]


def flip(path, rng, folder):
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def digit(path, rng, folder):
    """Another digit in the place of one: what somebody would do by hand."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if byte in b"0123456789"]
    if places:
        at = rng.choice(places)
        content[at] = rng.choice([byte for byte in b"0123456789" if byte != content[at]])
    path.write_bytes(content)


def truncate(path, rng, folder):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1) if content else 0])


def delete(path, rng, folder):
    path.unlink()


def swap(path, rng, folder):
    """Another file of the same kind in its place, and it in that one's."""
    others = [p for p in sorted(folder.rglob(f"*{path.suffix}")) if p.is_file() and p != path]
    if others:
        other = rng.choice(others)
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)


def copy(path, rng, folder):
    shutil.copy(path, path.with_name(f"{path.stem} (copy){path.suffix}"))


def other(path, rng, folder):
    """Something else under its name."""
    path.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        np.savez(path.with_suffix(".npz"), x=np.zeros(3))
        path.with_suffix(".npz").rename(path)
    else:
        texts = (b"", b"null\n", b"[1, {}]\n", b"\xff\xfe\x00", b'{"step": "5", "format": "x"}\n', b"[" * 100_000)
        path.write_bytes(rng.choice(texts))


DAMAGES = {f.__name__: f for f in (flip, digit, truncate, delete, swap, copy, other)}


def load_model(run, command):
    try:
        model = llrflow.load_model(run)
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    logits = np.asarray(model.logits(np.full((2, *model.image_shape), 0.5, np.float32)))
    return 0, json.dumps([model.step, np.round(logits, 4).tolist()]), ""


def load_exported(run, command):
    try:
        exported = llrflow.load_exported(run / "export")
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    return 0, json.dumps([exported.step, float(sum(np.abs(w).sum() for w in exported.weights.values()))]), ""


def report(run, command):
    """Its tables, and what it says is missing."""
    from llrflow.report.page import make_report

    try:
        made = make_report([run])
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    rows = [table.rows for table in made.tables if table.name != "cost"]
    return 0, json.dumps([made.answer, rows, [p.rows for p in made.pictures]], default=str), "\n".join(made.missing)


COMMANDS = {
    "runs": lambda run, command: command("runs", run, "--json"),
    "tail": lambda run, command: command("tail", run, "--no-follow", "--json"),
    "compare": lambda run, command: command("compare", run, run, "--json"),
    "evaluate": lambda run, command: command("evaluate", run, "--json"),
    "export": lambda run, command: command("export", run, "-o", run.parent / "exported", "--json"),
    "run": lambda run, command: command("run", run.parent / "spec.yaml", "--out", run, "--json"),
    "report": report,
    "load_model": load_model,
    "load_exported": load_exported,
}


def numbers(out):
    """What a command printed, without times, seals and the place of the folder."""
    quiet = {"seconds", "started", "train", "compile", "sha256", "path", "run", "a", "b", "missing", "export"}

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in quiet or isinstance(v, dict)}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return [plain(json.loads(line)) for line in ([out] if out[:2] in ("{\n", "[\n") else out.splitlines())]


def told(code, out, err):
    """Whether a command says that something is not as it was: by an error, on standard error, or in its result."""
    notes = [line for line in err.splitlines() if ": " in line and not line.startswith(("attack ", "training: "))]
    result = json.loads(out) if out[:2] in ("{\n", "[\n") else None
    if isinstance(result, list):  # `runs`
        notes += [row["error"] for row in result if row["error"]]
    if isinstance(result, dict):
        notes += result.get("missing", [])
        notes += [
            made["unpaired"] for made in result.get("evaluations", []) if isinstance(made, dict) and made["unpaired"]
        ]
    return code != 0 or bool(notes)


@pytest.fixture(scope="module")
def sample(whole):
    """Every (file, damage, command) in an order that is always the same."""
    cases = [(f, d, c) for f in files_of(whole) for d in DAMAGES for c in COMMANDS]
    random.Random(7).shuffle(cases)
    return cases


@pytest.fixture
def damaged(whole, command, capsys, tmp_path):
    """damaged(number, file, damage, command) -> its exit status, and what is wrong with how it ended, or None."""
    shutil.copy(whole / "spec.yaml", tmp_path / "spec.yaml")
    intact = {}

    def run(number, file, damage, name):
        if name not in intact:
            shutil.copytree(whole, tmp_path / "intact" / "run")
            shutil.copy(whole / "spec.yaml", tmp_path / "intact")
            intact[name] = COMMANDS[name](tmp_path / "intact" / "run", command)
            assert intact[name][0] == 0, intact[name]
            capsys.readouterr()
            shutil.rmtree(tmp_path / "intact")
        place = tmp_path / "case"
        shutil.copytree(whole, place / "run")
        shutil.copy(whole / "spec.yaml", place)
        DAMAGES[damage](place / "run" / file, random.Random(number), place / "run")
        try:
            code, out, err = COMMANDS[name](place / "run", command)
        except Exception as error:
            return 1, f"{number} {file} {damage} {name}: {type(error).__name__}: {error}"
        finally:
            shutil.rmtree(place)
        err += capsys.readouterr().err
        case = f"{number} {file} {damage} {name}: {code} {out[-200:]} {err}"
        if code not in (0, 2) or (code and not err.rstrip().splitlines()[-1].startswith("error: ")):
            return code, case
        silent = not told(code, out, err) and numbers(out) != numbers(intact[name][1])
        return code, f"another number: {case}" if silent else None

    return run


def test_a_sample_of_damage_is_told_or_changes_nothing(sample, damaged):
    ended = [damaged(number, *case) for number, case in enumerate(sample[:70])]
    assert not "\n".join(wrong for _, wrong in ended if wrong)
    assert 2 <= sum(code == 2 for code, _ in ended) < 60


@pytest.mark.long
def test_all_damage_is_told_or_changes_nothing(sample, damaged):
    chosen = sample[:: max(1, len(sample) // 600)]
    ended = [damaged(number, *case) for number, case in enumerate(chosen)]
    assert not "\n".join(wrong for _, wrong in ended if wrong)
    assert len(ended) >= 300 and sum(code == 2 for code, _ in ended) > 50
