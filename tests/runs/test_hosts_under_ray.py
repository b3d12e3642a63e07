"""One model over two hosts under Ray: lost processes, nodes and drivers change no number."""

import json
import re
import signal
import time

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

CHANGES = {
    "devices": {"hosts": 2, "count": 2},
    "model": {"type": "cnn", "channels": [4, 8], "dense": 16},
    "train": {"steps": 400, "batch_size": 64, "log_every": 20},
    "checkpoint.every": 20,
    "evaluate.attacks.pgd": None,
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory, tiny, write_spec):
    return write_spec(tmp_path_factory.mktemp("spec") / "spec.yaml", tiny(), CHANGES)


@pytest.fixture(scope="module")
def unbroken(spec, llrflow_command, numbers_of):
    """Numbers of an undisturbed group."""
    folder = spec.parent / "unbroken"
    code, out, err = llrflow_command("run", spec, "--out", folder, "--address", "local", "--json", cwd=spec.parent)
    assert code == 0, err
    assert json.loads(out)["run"] == str(folder)
    record = json.loads((folder / "run.json").read_text())
    assert len(record["devices"]) == 4 and record["losses"] == []
    return numbers_of(folder)


@pytest.fixture
def going(spec, start):
    """going(folder, *options) -> Popen of a run over two hosts, which is not left behind."""
    started = []

    def run(folder, *options):
        started.append(start(["run", spec, "--out", folder, *options], spec.parent))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def members(folder):
    """The processes that train in a folder, and their children, by their number."""
    found = {}
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "--supervised" in line and str(folder) in line:
            found.setdefault(int(line[line.index("--process") + 1]), []).append(process)
    return found


def newest(folder):
    return max((int(path.stem) for path in (folder / "checkpoints" / "manifests").glob("*.json")), default=0)


def wait_until(holds, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_a_checkpoint(folder, process):
    before = newest(folder)
    wait_until(lambda: newest(folder) > before, process)


def losses(folder):
    return json.loads((folder / "run.json").read_text())["losses"]


def test_a_killed_process_and_a_dead_node_change_no_number(cluster, wait_for, going, unbroken, tmp_path, numbers_of):
    (address, control), folder = cluster(cpus=2), tmp_path / "run"
    process = going(folder, "--address", address)
    wait_for_a_checkpoint(folder, process)
    members(folder)[1][0].kill()
    wait_until(lambda: len(losses(folder)) == 1, process)
    wait_for_a_checkpoint(folder, process)
    (control / "kill").touch()
    wait_for(control / "killed", process)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "worst case" in out and numbers_of(folder) == unbroken
    first, *others = losses(folder)
    assert first["process"] == 1 and first["reason"] == "ended by SIGKILL" and first["step"] >= 20
    assert len(others) >= 1 and others[-1]["step"] > first["step"]
    starts = re.findall(r"^process 0 on (\S+), 1 on (\S+)$", err, re.MULTILINE)
    assert len(starts) == 2 + len(others), err
    assert (
        f"lost at step {first['step']}, process 1 on {first['node']}: ended by SIGKILL; starting again, 1 of 3" in err
    )
    assert not members(folder)
    too_many = going(
        tmp_path / "three", "--address", address, "--set", "devices.hosts=3", "--set", "train.batch_size=60"
    )
    _, err = too_many.communicate(timeout=120)
    says = "devices.resources: 3 nodes with 2 CPU each, there are 2 (waited 30 s); ask for less, or add nodes"
    assert too_many.returncode == 2 and says in err and not (tmp_path / "three").exists()


def test_too_many_losses_a_signal_and_a_killed_driver(going, unbroken, tmp_path, numbers_of):
    folder = tmp_path / "run"
    options = ["--address", "local", "--retries", "0"]
    process = going(folder, *options)
    wait_for_a_checkpoint(folder, process)
    members(folder)[0][0].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and re.fullmatch(
        r"error: lost at step \d+, process 0 on \S+: ended by SIGKILL; --retries 0 without a new checkpoint are used "
        "up; run the same command to continue",
        err.splitlines()[-1],
    )
    assert not members(folder) and len(losses(folder)) == 1

    process = going(folder, *options)
    wait_for_a_checkpoint(folder, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not members(folder)
    stopped = f"stopped at step {newest(folder)} of 400 and saved; run the same command to continue"
    assert err.splitlines()[-1] == stopped and "Traceback" not in err

    process = going(folder, *options)
    wait_for_a_checkpoint(folder, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not members(folder), seconds=30)

    process = going(folder, *options)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert numbers_of(folder) == unbroken


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ("optimizer.learning_rate=1e30", 1, "is not finite at step"),
        ("train.batch_size=62", 2, "train.batch_size = 62 does not divide over 4 devices; try 64"),
        ("devices.resources.gpu=500", 2, "devices.resources: 1000 GPU for 2 host(s), the largest node has 0"),
    ],
)
def test_what_would_come_again_is_not_tried_again(going, tmp_path, change, code, says):
    process = going(tmp_path / "run", "--address", "local", "--set", change)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "") and err.count(says) == 1, err
    assert "starting again" not in err and "Traceback" not in err
    assert (tmp_path / "run").exists() == (code == 1)
