"""A run that is killed once it has saved something goes on to the numbers of an unbroken one, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from setting import Box, Setting, arguments, emit, methods, spec

NETWORK = Setting({"type": "resnet", "widths": [16, 32], "norm": "batch"}, (16, 16, 3), 10, (64,))
SMALL = Setting({"type": "mlp", "widths": [16]}, (8, 8, 3), 10, (64,))


def child(folder: Path, dry: bool) -> None:
    """Train in a folder, and go on with what is there."""
    from in_memory import made_up, reading

    import llrflow

    setting = SMALL if dry else NETWORK
    batch = setting.batches[0]
    mapping = spec(
        setting,
        methods(2)["LLR-2"],
        batch,
        train={"steps": 800, "batch_size": batch, "log_every": 7, "ema": 0.9},
        checkpoint={"every": 40},
        evaluate={"batch_size": 64, "checks": {"examples": 0}, "attacks": {"pgd": {"type": "pgd", "steps": 5}}},
    )
    with reading(made_up(setting, 1024, 128), setting):
        llrflow.run(llrflow.load_spec(mapping), folder)


def numbers_of(folder: Path) -> dict[str, Any]:
    """What must be the same."""
    (path,) = (folder / "evaluation").glob("*.json")
    evaluation = json.loads(path.read_text())
    del evaluation["started"], evaluation["sha256"]  # which is over times too
    for attack in evaluation["attacks"].values():
        del attack["seconds"]
    return {"metrics": (folder / "metrics.jsonl").read_text(), "evaluation": evaluation}


def start(folder: Path, dry: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--out", str(folder.parent), "--child", str(folder)]
    return subprocess.Popen([*command, *(["--dry"] if dry else [])], stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes], box: Box, what: str) -> bool:
    """Whether it ended well in time."""
    try:
        code = process.wait(max(1.0, box.left))
    except subprocess.TimeoutExpired:
        process.kill()
        emit(cut=f"{what} had not ended")
        return False
    if code:
        emit(failed=f"{what} ended with {code}")
    return code == 0


def main(out: Path, dry: bool, seconds: float) -> None:
    box, folders = Box(seconds), (out / "unbroken", out / "killed")
    if not ended(start(folders[0], dry), box, "the unbroken run"):
        return
    process = start(folders[1], dry)
    while process.poll() is None and box.left > 0:
        if [*folders[1].glob("checkpoints/manifests/*.json")]:
            break
        time.sleep(0.002)
    early = process.poll() is None and box.left > 0
    process.kill()
    process.wait()
    if not early:
        emit(cut="kill: the run had ended before it could be killed, or did not begin in time")
        return
    kept = sorted(int(path.stem) for path in folders[1].glob("checkpoints/manifests/*.json"))
    if not ended(start(folders[1], dry), box, "the run that was killed"):
        return
    ours, other = (numbers_of(folder) for folder in (folders[1], folders[0]))
    for name, value in ours.items():
        emit(check=f"killed past step {kept[-1]} of 800 and resumed, {name} bit for bit", ok=value == other[name])


if __name__ == "__main__":
    given = arguments()
    if given.child is not None:
        child(given.child, given.dry)
    else:
        main(given.out, given.dry, given.seconds)
