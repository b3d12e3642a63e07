"""One evaluation by two workers under Ray: killed workers and drivers change no byte of its verdicts."""

import json
import re
import shutil
import signal
import time

import numpy as np
import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

ATTACKS = """
batch_size: 64
attacks:
  slow: {type: pgd, steps: 40, restarts: 800}
  fab: {type: fab_t, steps: 5}
  square: {type: square, queries: 200}
"""


@pytest.fixture
def case(copied, tmp_path):
    """(run folder, another copy of it, the file of attacks)."""
    (tmp_path / "attacks.yaml").write_text(ATTACKS)
    return copied, shutil.copytree(copied, tmp_path / "alone"), tmp_path / "attacks.yaml"


@pytest.fixture
def begin(start, tmp_path):
    """begin(*arguments) -> Popen of an `llrflow evaluate`, which is not left behind."""
    started = []

    def run(*arguments):
        started.append(start(["evaluate", *arguments], tmp_path))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def workers(driver):
    """Processes of Ray below a driver that are evaluating."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            found += [process] if process.cmdline()[0].startswith("ray::_work") else []
        except (psutil.Error, IndexError):
            continue
    return found


def half_way(folder, driver, share, wait_for):
    """Wait until a share is in the midst of its restarts."""
    path = wait_for(folder / f"evaluation/shares/{share}-of-2/12-*.slow.npz", driver)
    end = time.monotonic() + 240
    while time.monotonic() < end:
        with np.load(path) as stored:
            if stored["tried"].max() > 5:
                return
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)
    raise AssertionError("it never got there")


def verdicts(folder):
    return {path.name: path.read_bytes() for path in folder.glob("evaluation/12-*.*.npz")}


def certificate(folder):
    (path,) = folder.glob("evaluation/12-????????.json")
    record = json.loads(path.read_text())
    del record["started"], record["sha256"]
    for attack in record["attacks"].values():
        for part in (attack, *attack["stages"].values()):
            assert part.pop("seconds") > 0
    return record


def test_killed_workers_and_drivers_change_no_byte(case, begin, wait_for):
    folder, alone, attacks = case
    how = ["--attacks", attacks, "--address", "local", "--workers", "2", "--json"]
    process = begin(folder, *how, "--retries", "0")
    half_way(folder, process, 0, wait_for)
    assert len(workers(process)) == 2
    process.kill()  # the driver
    process.communicate()
    kept = {path: np.load(path)["tried"].sum() for path in folder.glob("evaluation/shares/*/*.slow.npz")}

    process = begin(folder, *how)
    end = time.monotonic() + 120
    while len(workers(process)) < 2:  # those of the killed driver may have gone on for a moment, and left files
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    half_way(folder, process, 1, wait_for)
    workers(process)[0].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r"^share [12] of 2: its worker was lost \(.*\); starting another, 1 of 3$", err, re.MULTILINE), err
    assert "Traceback" not in err and max(kept.values()) > 5
    assert json.loads(out)["evaluation"]["n"] == 360

    process = begin(alone, "--attacks", attacks, "--json")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert verdicts(folder) == verdicts(alone) and len(verdicts(alone)) == 4  # and that of the noise
    assert certificate(folder) == certificate(alone)
    assert not (folder / "evaluation" / "shares").exists()


def test_what_ends_it_is_one_line(case, begin, wait_for):
    folder, _, attacks = case
    how = [folder, "--attacks", attacks, "--address", "local", "--workers", "2", "--retries", "0", "--json"]
    process = begin(*how)
    half_way(folder, process, 0, wait_for)
    workers(process)[0].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    says = (
        r"error: share [12] of 2: its worker was lost \(.*\); --retries 0 are used up; run the same command to continue"
    )
    assert re.fullmatch(says, err.splitlines()[-1])
    process = begin(*how)
    end = time.monotonic() + 120
    while not workers(process):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "evaluation stopped and saved; run the same command to continue"
    (folder / "wrong.yaml").write_text("pgd: {type: pgd, steps: none}")
    process = begin(folder, "--attacks", folder / "wrong.yaml", "--address", "local")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "evaluate.attacks.pgd.steps = 'none'" in err and "Traceback" not in err, err
