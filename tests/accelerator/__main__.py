"""The accelerator kit: `python tests/accelerator` looks at one GPU in at most seven minutes; `--dry` at a CPU.

It needs jax >= 0.10, dm-haiku, optax, orbax-checkpoint, tensorboardX, docstring-parser, pydantic, numpy, pillow,
PyYAML, click and rich, and llrflow's sources around it; nothing of it is installed. Writes results.json, table.md and a
log for each part. Exit status 1 where something is not as it must be; what only was cut off is no fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from table import markdown

HERE = Path(__file__).resolve().parent
PARTS = {"exact": 70, "resume": 60, "speed": 150, "auto_attack": 60, "from_spec": 45, "in_torch": 35}
"""Seconds of each part, in the order in which they are run; what one leaves the later ones share."""
BOX = "ended by its time box"
GRACE = 3.0
"""Seconds between being asked to end and being made to."""


class Part:
    """A part under way, in a process group of its own: what it breaks, the next one does not see."""

    def __init__(self, name: str, options: argparse.Namespace, out: Path, seconds: float, **environment: str) -> None:
        arguments = ["--out", str(out), "--seconds", str(seconds), *(["--dry"] if options.dry else [])]
        arguments += ["--data", str(options.data.resolve())] if options.data else []
        paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
        self._name, self._log = name, out / f"{name}.log"
        self._end = time.monotonic() + seconds
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / f"{name}.py"), *arguments],
                stdout=subprocess.PIPE, stderr=log, env=environment, text=True, start_new_session=True,
            )  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """What it printed, when it has ended or its time has; and how that came, if not by itself."""
        cut = False
        try:
            printed, _ = self._process.communicate(timeout=max(0.1, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            cut = True
            printed = self.stop()
        except KeyboardInterrupt:
            self.stop()
            raise
        rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")]
        if cut:
            rows.append({"cut": BOX})
        elif self._process.returncode:
            last = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            rows.append({"failed": f"ended with {self._process.returncode}: {''.join(last)[:200]}"})
        return rows

    def stop(self) -> str:
        """End it and all that it has started; what it printed."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.communicate(timeout=GRACE)[0]
        return ""


def peak(text: str) -> tuple[str, float]:
    precision, _, value = text.partition("=")
    return precision, float(value)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Folder of what it writes; default runs/accelerator[-dry].")
    parser.add_argument("--dry", action="store_true", help="Tiny sizes on a CPU: whether the kit itself works.")
    parser.add_argument("--seconds", type=float, help="Of the whole kit, by default 420; 1,200 in a dry run.")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=[*PARTS], help="By default all.")
    parser.add_argument("--data", type=Path, help="Directory of Fashion-MNIST's four idx files.")
    parser.add_argument("--peak", type=peak, action="append", default=[], metavar="PRECISION=TFLOPS",
                        help="What the device can do by its maker, e.g. bfloat16=989; repeatable.")  # fmt: skip
    parser.add_argument("--target", type=float, default=400, help="Tflop/s of the column of target rates.")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> int:
    seconds = options.seconds or (1200 if options.dry else 420)  # what is tested on a busy CPU must not be cut off
    out = (options.out or Path("runs/accelerator-dry" if options.dry else "runs/accelerator")).resolve()
    end = time.monotonic() + seconds
    if out.exists():
        if any(out.iterdir()) and not (out / "results.json").exists():
            print(f"error: {out} holds something else; choose another --out", file=sys.stderr)
            return 2
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    quick = of_a_dry_run() if options.dry else {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("device", *PARTS, "counts")}
    rows["device"] = Part("device", options, out, 60, **quick).rows()
    if rows["device"][0].get("platform") in (None, "cpu") and not options.dry:
        print(f"error: no accelerator was found: {rows['device'][0]}; --dry needs none", file=sys.stderr)
        return 2
    written(rows, options, out)
    counts = Part("counts", options, out, seconds - 30, **{**quick, "JAX_PLATFORMS": "cpu"})
    try:
        measured(rows, counts, options, out, end, quick)
    finally:
        counts.stop()
    print((out / "table.md").read_text())
    wrong = [row for found in rows.values() for row in found if "failed" in row or row.get("ok") is False]
    if options.dry:  # where there is time enough, or else nothing was looked at
        wrong += [row for found in rows.values() for row in found if row.get("cut") == BOX]
    return 1 if wrong else 0


def measured(
    rows: dict[str, list[dict[str, Any]]],
    counts: Part,
    options: argparse.Namespace,
    out: Path,
    end: float,
    environment: dict[str, str],
) -> None:
    """Run the parts one after the other, each with its share of what is left until `end`."""
    left = {name: PARTS[name] for name in PARTS if name in options.parts}
    for name in [*left]:
        share = (end - time.monotonic() - GRACE - 4) * left.pop(name) / (sum(left.values()) + PARTS[name])
        began = time.monotonic()
        rows[name] = Part(name, options, out, share, XLA_PYTHON_CLIENT_MEM_FRACTION="0.92", **environment).rows()
        print(f"{name}: {time.monotonic() - began:.0f} s of {share:.0f} s, {len(rows[name])} findings", file=sys.stderr)
        if not left:
            rows["counts"] = counts.rows()
        written(rows, options, out)


def of_a_dry_run() -> dict[str, str]:
    """What a dry run sets: a CPU, and programs that are compiled fast as in the tests."""
    sys.path.append(str(HERE.parent))
    from xla_flags import FLAGS, known

    flags = " ".join(f"--{name}={value}" for name, value in known(FLAGS).items())
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ.get("XLA_FLAGS", flags)}


def written(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace, out: Path) -> None:
    """Both files, anew."""
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "table.md").write_text(markdown(rows, dict(options.peak), options.target))


if __name__ == "__main__":
    sys.exit(main(options_of()))
