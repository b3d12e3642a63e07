"""Damage to files, and what a command may make of it: an error of one line, a note, or the same numbers.

Never a traceback, a hang, or another number without a word.
"""

import json
import math
import os
import random
import re
import shutil

import numpy as np

from llrflow.base.errors import LlrflowError


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


def numbers(out):
    """What a command printed, without times, seals and the place of the folder."""
    times = {"seconds", "started", "train", "compile", "workers"}
    quiet = {*times, "sha256", "fingerprint", "identity", "ids_sha256", "path", "run", "a", "b", "missing", "export"}

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in quiet or isinstance(v, dict)}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return [plain(json.loads(line)) for line in ([out] if out[:2] in ("{\n", "[\n") else out.splitlines())]


def difference(before, after, at=""):
    """Where two results first differ, and how; None where they don't."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return next(filter(None, (difference(before[key], after[key], f"{at}.{key}") for key in before)), None)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return next(filter(None, (difference(*pair, f"{at}[{i}]") for i, pair in pairs)), None)
    gone = after in (None, {})  # which is seen, and is no other number
    near = isinstance(before, float) and isinstance(after, float) and math.isclose(before, after, rel_tol=1e-6)
    return None if gone or near or before == after else f"{at}: {before!r:.200} became {after!r:.200}"


def notes(out, err):
    """What a command says is not as it should be, on standard error or in its result."""
    lines = [line for line in err.splitlines() if not line.startswith(("attack ", "training: "))]
    found = [line for line in lines if ": " in line or "/" in line]
    result = json.loads(out) if out[:2] in ("{\n", "[\n") else None
    if isinstance(result, list):  # `runs`, `data list`
        found += [row["error"] for row in result if row.get("error")]
    if isinstance(result, dict):
        found += [*result.get("missing", []), *result.get("unchecked", [])]
        found += [
            made["unpaired"] for made in result.get("evaluations", []) if isinstance(made, dict) and made["unpaired"]
        ]
    return set(found)


def report(folder, command):
    """A command: the tables of a report, and what it says is missing."""
    from llrflow.report.page import make_report

    try:
        made = make_report([folder])
    except LlrflowError as error:
        return 2, "", f"error: {error}\n"
    rows = [table.rows for table in made.tables if table.name != "cost"]
    return 0, json.dumps([made.answer, rows, [p.rows for p in made.pictures]], default=str), "\n".join(made.missing)


def cases_of(folder, commands):
    """Every (file, damage, command) of a folder, in an order that is always the same though names of files are not."""
    drawn = lambda path: re.sub(r"[0-9a-f]{8,}|events\.out.*", "#", str(path.relative_to(folder)))  # noqa: E731
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (drawn(p), p.stat().st_size))
    names, few = [], {}
    for path in files:
        kind = few.setdefault(drawn(path), [])
        kind.append(path)
        if path.name not in (".lock", "lock", "write.lock") and len(kind) <= 2:  # Orbax's are many of a kind
            names.append(path.relative_to(folder))
    cases = [(name, damage, command) for name in names for damage in DAMAGES for command in commands]
    random.Random(7).shuffle(cases)
    return cases


class Damaging:
    """Damages copies of one folder, whole/`name`, with what lies beside it, and tries commands on them."""

    def __init__(self, whole, name, commands, place, capsys, command):
        self.whole, self.name, self.commands, self.place = whole, name, commands, place
        self.capsys, self.command, self.intact = capsys, command, {}

    def _on(self, name, damage):
        shutil.copytree(self.whole, self.place)
        try:
            damage(self.place / self.name)
            return self.commands[name](self.place / self.name, self.command)
        finally:
            shutil.rmtree(self.place)

    def __call__(self, number, file, damage, name):
        """The exit status of a command, and what is wrong with how it ended, or None."""
        self.capsys.readouterr()
        if name not in self.intact:
            code, out, err = self._on(name, lambda folder: None)
            assert code == 0, (out, err)
            self.intact[name] = out, notes(out, err + self.capsys.readouterr().err)
        try:
            rng = random.Random(number)
            code, out, err = self._on(name, lambda folder: DAMAGES[damage](folder / file, rng, folder))
        except Exception as error:
            return 1, f"{number} {file} {damage} {name}: {type(error).__name__}: {error}"
        err += self.capsys.readouterr().err
        case = f"{number} {file} {damage} {name}: {code} {out[-200:]} {err}"
        if code not in (0, 2) or (code and not err.rstrip().splitlines()[-1].startswith("error: ")):
            return code, case
        before, usual = self.intact[name]
        # What the intact folder says too tells nothing of the damage.
        told = code != 0 or notes(out, err) - usual
        found = None if told else difference(numbers(before), numbers(out))
        return code, found and f"another number: {found}: {case}"

    def all(self, cases):
        """The exit statuses of many; AssertionError with every one that ended wrongly."""
        ended = [self(number, *case) for number, case in enumerate(cases)]
        wrong = "\n".join(wrong for _, wrong in ended if wrong)
        assert not wrong, wrong
        return [code for code, _ in ended]
