"""llrflow: one YAML file in; a robust classifier, an honest attack report and a resumable run folder out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llrflow.attacks.run import attack
    from llrflow.attacks.torch_module import from_torch
    from llrflow.base.errors import SpecError
    from llrflow.components.registry import make
    from llrflow.method.probe import Probe
    from llrflow.program.compile import compile_spec as compile
    from llrflow.report.page import make_report
    from llrflow.runs.examine import examine
    from llrflow.runs.export import load_exported
    from llrflow.runs.model import load_model
    from llrflow.runs.pipeline import run
    from llrflow.spec.load import load_spec

__all__ = [
    "Probe",
    "SpecError",
    "attack",
    "compile",
    "examine",
    "from_torch",
    "load_exported",
    "load_model",
    "load_spec",
    "make",
    "make_report",
    "run",
]

_HOMES = {
    "Probe": ("llrflow.method.probe", "Probe"),
    "SpecError": ("llrflow.base.errors", "SpecError"),
    "attack": ("llrflow.attacks.run", "attack"),
    "compile": ("llrflow.program.compile", "compile_spec"),
    "examine": ("llrflow.runs.examine", "examine"),
    "from_torch": ("llrflow.attacks.torch_module", "from_torch"),
    "load_exported": ("llrflow.runs.export", "load_exported"),
    "load_model": ("llrflow.runs.model", "load_model"),
    "load_spec": ("llrflow.spec.load", "load_spec"),
    "make": ("llrflow.components.registry", "make"),
    "make_report": ("llrflow.report.page", "make_report"),
    "run": ("llrflow.runs.pipeline", "run"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import llrflow` starts neither JAX nor Ray."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llrflow' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
