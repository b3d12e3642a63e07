"""What `llrflow run` shows on a terminal of 100 columns and writes into a file: nothing but what it means to say."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

BAR = re.compile(r"(training|attack \w+) ━\S* +\d+/\d+ +([\d.,]+/s )? ?[\d:-]+ (.*)")
COST = re.compile(r"attack (\w+): [\d.]+ s, [\d,]+ gradients, \d+ of \d+ broken")
TABLE = re.compile(
    r"360 test images, linf 0\.15, step 60|[┏┡└│┃].*|linearity error at \w+: .*|signs of gradient masking: .*"
    r"|lowest worst case by class: .*|most often taken: .*"
)


def test_a_run_on_a_terminal_and_into_a_file(tiny, write_spec, tmp_path):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"train.steps": 60})
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "llrflow", "run", spec, "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=other,
        text=True,
    ) as process:
        os.close(other)
        shown = b"".join(iter(lambda: read(terminal), b"")).decode()
        out = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)) if line.strip()]
    assert [cost[1] for cost in map(COST.fullmatch, lines) if cost] == ["fgsm", "pgd"]
    lines = [line for line in lines if not COST.fullmatch(line)]
    bars = [BAR.fullmatch(line) for line in lines]
    assert all(bars), [line for line, bar in zip(lines, bars, strict=True) if not bar]
    assert {bar[1] for bar in bars} == {"training", "attack random", "attack fgsm", "attack pgd"}
    assert any(bar[2] and re.fullmatch(r"objective \S+, accuracy \S+%", bar[3].strip()) for bar in bars)
    assert max(map(len, lines)) <= 100
    *body, end = out.splitlines()
    assert [line for line in body if not TABLE.fullmatch(line.rstrip())] == []
    assert re.fullmatch(r"run: compile [\d.]+ s, train [\d.]+ s, evaluate [\d.]+ s", end)
    assert max(map(len, [*body, end])) <= 100


def read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the process has closed its end
        return b""
