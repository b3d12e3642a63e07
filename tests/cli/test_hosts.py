"""What the options of a group of processes refuse, before anything starts."""

import socket
import subprocess
import sys

import pytest

from llrflow.base.errors import LlrflowError
from llrflow.commands import hosts


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--process", 0], "--coordinator: is missing; give --coordinator, --process and --processes together"),
        (["--coordinator", "a:1", "--process", 0], "--processes: is missing; give --coordinator, --process and"),
        (["--coordinator", "a:1", "--process", 2, "--processes", 2], "--process: = 2 of 2; give a number from 0 to 1"),
        (["--coordinator", "a:1", "--process", -1, "--processes", 2], "--process: = -1 of 2; give a number from 0"),
        (["--coordinator", "a:1", "--process", 0, "--processes", 0], "--processes: = 0; give at least 1"),
        (["--coordinator", "node1", "--process", 0, "--processes", 2], "--coordinator: = node1; write HOST:PORT"),
        (["--coordinator", "a:70000", "--process", 0, "--processes", 2], "--coordinator: = a:70000; write HOST:PORT"),
        (["--address", "auto", "--process", 0], "--address: starts the processes itself; leave --coordinator and its"),
        (["--retries", 1], "--retries: has no effect without --address; give both"),
    ],
)
def test_options_that_do_not_fit_together(command, options, says):
    code, out, err = command("run", "a.yaml", *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: {says}")


def test_an_address_nobody_listens_on(command, monkeypatch):
    monkeypatch.setattr(hosts, "WAIT", 0.5)
    place = f"127.0.0.1:{free_port()}"
    code, _, err = command("run", "a.yaml", "--coordinator", place, "--process", 1, "--processes", 2)
    says = f"error: --coordinator: = {place}: nobody listened there for 0.5 s (Connection refused); start process 0"
    assert code == 2 and err.startswith(says) and err.count("\n") == 1


def test_an_address_that_is_taken(command):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command("run", "a.yaml", "--coordinator", place, "--process", 0, "--processes", 2)
    assert code == 2 and err == (
        f"error: --coordinator: = {place}: cannot listen there: Address already in use; choose another port\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            [],
            "devices.hosts = 2, but 1 process(es) train the model; start it with --address local|auto|HOST:PORT, or as",
        ),
        (["--address", "nonsense"], "'nonsense' is no address; give local, auto or HOST:PORT"),
        (["--address", "127.0.0.1:1"], "nobody listens at 127.0.0.1:1 (Connection refused); start it with `ray start"),
        (["--address", "local", "--set", "data.name=absent"], "'absent' is not prepared"),
    ],
)
def test_many_hosts_that_cannot_start(command, tiny, write_spec, tmp_path, options, says):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"devices.hosts": 2})
    code, out, err = command("run", spec, *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err
    assert not list((tmp_path / "cwd").iterdir())


def test_a_plan_for_many_hosts(command, tiny, write_spec, tmp_path):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"devices": {"hosts": 8, "count": 2}})
    code, out, err = command("plan", spec, "--estimate")
    assert code == 0 and "12 steps of 64 images, 4 on each of 16 cpu device(s)" in out, err
    code, out, err = command("validate", spec)
    assert code == 0 and "12 steps on 2 cpu device(s) on each of 8 hosts" in out, err
    code, out, err = command("validate", spec, "--set", "train.batch_size=60")
    assert code == 2 and "train.batch_size = 60 does not divide over 16 devices; try 64" in err


def test_what_jax_says_of_a_lost_process_is_one_line():
    from jax.errors import JaxRuntimeError

    def work(index):
        raise JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Read error\nand more")

    with pytest.raises(hosts.GroupLost, match=r"^process 1 of 2: UNKNOWN: Gloo .* Read error$") as lost:
        hosts._with_others(hosts.Place("node", 7654, 1, 2, supervised=True), work)
    assert lost.value.exit_code == hosts.LOST
    with pytest.raises(
        LlrflowError, match=r"^process 1 of 2: UNKNOWN: Gloo .* Read error; start the same commands again"
    ):
        hosts._with_others(hosts.Place("node", 7654, 1, 2), work)


@pytest.fixture
def supervised(tmp_path):
    """supervised(place, process) -> Popen of one of two processes, whose standard input is held."""
    started = []

    def start(place, process):
        options = ["--coordinator", place, "--process", str(process), "--processes", "2", "--supervised"]
        command = [sys.executable, "-m", "llrflow", "run", "a.yaml", *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:  # which closes its pipes
            process.kill()


def test_a_supervised_process_ends_with_its_standard_input(supervised):
    process = supervised(f"127.0.0.1:{free_port()}", 1)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for process 0
        process.wait(3)
    process.stdin.close()
    assert process.wait(10) == 1


def test_a_supervised_process_that_cannot_listen_may_be_started_again(supervised):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        process = supervised(place, 0)
        process.wait(30)
    says = f"process 0 of 2: --coordinator = {place}: cannot listen there: Address already in use\n"
    assert (process.returncode, process.stdout.read(), process.stderr.read()) == (hosts.LOST, "", says)
