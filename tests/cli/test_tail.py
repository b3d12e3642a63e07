"""`llrflow tail`, and how every command ends when it is asked to stop."""

import json
import re
import signal
import threading
import time

import pytest

from llrflow.base.files import sole_owner, write_atomic
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import DataRecord, RunRecord


def line(step):
    return json.dumps({"step": step, "objective": 2.5 / step, "loss": 0.1, "accuracy": 0.5}) + "\n"


@pytest.fixture
def left(tmp_path):
    """A run folder at step 30 of 100, a line of metrics half written."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    data = DataRecord(image_shape=(8, 8, 1), classes=10, fingerprint="f", train=9, test=9)
    RunRecord(
        name="tiny", spec_hash="h", state="training", step=20, steps=100, seed=0, data=data,
        devices=[], versions={}, git=None, seconds={}, origins={},
    ).write(folder.run)  # fmt: skip
    folder.spec.touch()
    folder.metrics.write_text("".join(map(line, (10, 20, 30))) + line(40)[:9])
    return folder


@pytest.fixture
def under_way(left):
    """The same, in the hands of this process."""
    with sole_owner(left.path, "test"):
        yield left


def finish(folder, state="finished"):
    folder.record().model_copy(update={"state": state, "step": 100}).write(folder.run)


def test_it_shows_the_last_complete_lines(command, under_way):
    code, out, err = command("tail", under_way.path, "-n", 2, "--no-follow")
    heading, *rows, end = out.splitlines()
    assert (code, err) == (0, "") and heading.split() == ["step", "objective", "loss", "accuracy"]
    assert [row.split() for row in rows] == [["20", "0.125", "0.1", "0.5"], ["30", "0.08333", "0.1", "0.5"]]
    assert end == f"training, saved at step 20 of 100: {under_way.path}"
    code, out, _ = command("tail", under_way.path, "--no-follow", "--json")
    assert [json.loads(text)["step"] for text in out.splitlines()] == [10, 20, 30]


def test_it_follows_until_the_run_ends(command, under_way):
    def go_on():
        with under_way.metrics.open("a") as file:
            file.write(line(40)[9:] + line(50))
        finish(under_way)

    timer = threading.Timer(0.7, go_on)
    timer.start()
    code, out, _ = command("tail", under_way.path)
    timer.join()
    *rows, end = out.splitlines()
    assert code == 0 and end.startswith("finished, saved at step 100 of 100")
    assert [row.split()[0] for row in rows] == ["step", "10", "20", "30", "40", "50"]
    assert not any("left" in row for row in rows)  # nobody has seen how long step 50 took


def test_the_rate_is_that_of_the_run(command, under_way):
    rate, batch, last = 40, 4, 98  # several batches a look

    def go_on():
        under_way.metrics.write_text("".join(map(line, (10, 20, 30))))
        began = time.monotonic()
        for step in range(31, last, batch):
            time.sleep(max(0.0, began + (step - 30) / rate - time.monotonic()))
            with under_way.metrics.open("a") as file:
                file.write("".join(map(line, range(step, step + batch))))
        finish(under_way)

    writer = threading.Thread(target=go_on)
    writer.start()
    code, out, _ = command("tail", under_way.path)
    writer.join()
    *rows, _ = out.splitlines()
    told = [re.search(r"^ *(\d+) .*  ([\d.]+)/s, (\d+) s left$", row) for row in rows]
    told = [tuple(map(float, found.groups())) for found in told if found]
    assert code == 0 and len(rows) == 1 + 3 + (last - 30) and 2 <= len(told) <= 4
    for step, seen, left in told:
        assert rate / 1.4 < seen < rate * 1.4 and abs(left - (100 - step) / seen) <= 1


def test_a_resumed_run_is_followed_while_it_compiles_and_when_it_rewinds(command, left, monkeypatch):
    monkeypatch.setattr("llrflow.commands.tail.PAUSE", 0.05)
    finish(left, "interrupted")
    left.metrics.write_text("".join(map(line, (10, 20, 30))))
    began = threading.Event()

    def resume():
        with sole_owner(left.path, "resumed process"):
            began.set()
            time.sleep(0.3)
            write_atomic(left.metrics, "".join(map(line, (10, 30, 40))).encode())
            time.sleep(0.3)
            with left.metrics.open("a") as file:
                file.write(line(50))
            finish(left, "failed")

    process = threading.Thread(target=resume)
    process.start()
    began.wait()
    code, out, _ = command("tail", left.path)
    process.join()
    *rows, end = out.splitlines()
    assert code == 0 and end.startswith("failed, saved at step")
    assert [row.split()[0] for row in rows] == ["step", "10", "20", "30", "40", "50"]


def test_it_does_not_wait_for_a_run_that_nobody_has(command, left):
    with sole_owner(left.path, "killed process"):
        pass
    code, out, _ = command("tail", left.path)
    assert code == 0 and out.splitlines()[-1].startswith("training, ")


def test_no_run_folder(command, tmp_path):
    code, out, err = command("tail", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}: is not a run folder; name one that `llrflow run` made\n"


def test_a_run_json_that_cannot_be_read(command, left):
    content = left.run.read_bytes()
    left.run.write_bytes(content[: len(content) // 2])
    code, out, err = command("tail", left.path)
    assert (code, out) == (2, "") and err.startswith(f"error: {left.run}: is damaged: ") and err.count("\n") == 1
    left.run.unlink()
    left.run.mkdir()
    for arguments in (["tail", left.path], ["export", left.path], ["compare", left.path, left.path]):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert err == f"error: {left.run}: cannot be read: Is a directory; make it readable, or name another folder\n"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_status_of_a_command_that_is_stopped(start, under_way, tmp_path, signum, code):
    process = start(["tail", under_way.path, "--follow"], tmp_path)
    try:
        for _ in range(4):  # it is following
            assert process.stdout.readline()
        process.send_signal(signum)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in err
