"""What `llrflow export --to` writes, by name; the code of a format is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llrflow.base.errors import SpecError
from llrflow.base.files import remove_temporaries, write_atomic

if TYPE_CHECKING:
    from llrflow.runs.records import Record

RECORD = "model.json"
"""What says of an export what it is."""


class Format(NamedTuple):
    """A format: a function (run folder, out, step, parameters, trust_plugins) -> (folder, its record).

    The record has `files`, SHA-256 by the name of each file beside it, `step`, `name`, and `described`, what to tell.
    """

    module: str
    function: str
    text: str
    """What it is, for `--help`."""
    folder: str
    """Below the run folder, unless another is named."""


FORMATS = {
    "stablehlo": Format("llrflow.runs.export", "export_model", "logits.stablehlo and weights.npz", "export"),
    "onnx": Format("llrflow.runs.export_onnx", "export_onnx", "model.onnx", "export-onnx"),
    "torch": Format(
        "llrflow.runs.export_torch", "export_torch", "model.pt, a state_dict, and network.py", "export-torch"
    ),
    "robustbench": Format(
        "llrflow.runs.export_robustbench", "export_robustbench", "model_info.json", "export-robustbench"
    ),
}


def export_to(
    to: str,
    run_dir: str | Path,
    out: str | Path | None = None,
    step: int | Literal["best", "last"] | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> tuple[Path, Any]:
    """Write the model of a run's checkpoint in one of `FORMATS` into a folder: `out`, or that of the format below RUN.

    Gives the folder and its record. Raises as `load_model`, and SpecError when the folder holds other files.
    """
    chosen = FORMATS[to]
    write = getattr(importlib.import_module(chosen.module), chosen.function)
    folder = Path(run_dir) / chosen.folder if out is None else Path(out)
    return write(run_dir, folder, step, parameters, trust_plugins)


def write_export(folder: Path, contents: Mapping[str, bytes], record: Record) -> None:
    """Write files and the record that describes them. SpecError where the folder cannot be, or holds others."""
    names = {*contents, RECORD}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            remove_temporaries(folder / name)
        foreign = sorted({path.name for path in folder.iterdir()} - names)
    except OSError as error:
        raise SpecError(str(folder), f"cannot be written: {error.strerror}", "choose another --out") from None
    if foreign:
        raise SpecError(
            str(folder), f"holds {foreign[0]}, which is no part of an export", "choose an empty or new --out"
        )
    for name, content in contents.items():
        write_atomic(folder / name, content)
    record.write(folder / RECORD)  # last: it vouches for the others
