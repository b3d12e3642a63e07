"""A model for PyTorch: a state_dict by the names of a known layout, and a file with the network for those without.

model.pt      state_dict, which torch.load(weights_only=True) reads
network.py    the network, which needs PyTorch alone
model.json    TorchRecord
"""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llrflow.base.errors import SpecError
from llrflow.base.files import require_local
from llrflow.components.registry import entries
from llrflow.runs.export import ExportRecord
from llrflow.runs.export_facts import IMAGES, certificate_of, digests, facts_of, largest_difference
from llrflow.runs.exports import write_export
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.importing import known_layouts
from llrflow.runs.model import Model, load_model, stored_run
from llrflow.weights.layout import DOTTED, OWN, Layout

WEIGHTS, NETWORK = "model.pt", "network.py"

TOLERANCE = 1e-3
"""The largest difference of logits that is allowed, in parts of the largest logit."""

_UNTOLD = ("activation", "shortcut", "mean", "std")
"""Fields of a network that neither names nor shapes tell of."""


class TorchRecord(ExportRecord):
    """model.json of an export to PyTorch."""

    platforms: tuple[str, ...] = ("torch",)
    layout: str
    """What arrays are called by."""
    untold: dict[str, str | list[float]]
    """What a network that loads model.pt must have, of which neither names nor shapes tell; empty by our own names,
    which network.py alone reads."""
    names: dict[str, str]
    """In model.pt, by their names in llrflow."""
    preprocessing: str = (
        "none: float32 pixels in [0, 1], NCHW; network.py normalises them, other readers of model.pt must"
    )
    difference: float
    """The largest of any logit to llrflow's on 64 images of uniform noise."""

    @property
    def described(self) -> str:
        """What was written, in words."""
        found = f"logits within {self.difference:.1e} of llrflow's on {IMAGES} images"
        told = f"step {self.step} of {self.name}, by the names of {self.layout}, {found}"
        if not self.untold:
            return told
        return f"{told}; what loads it must have {', '.join(f'{name} {value}' for name, value in self.untold.items())}"


def export_torch(
    run_dir: str | Path,
    out: str | Path,
    step: Step | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> tuple[Path, TorchRecord]:
    """Write a model for PyTorch, chosen as by `load_model`, into a folder; gives the folder and its record.

    Raises as `load_model`; SpecError without PyTorch, for a network that network.py does not have, or where the folder
    holds other files; LlrflowError where PyTorch's logits are not llrflow's.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]

        from llrflow.weights import torch_network
    except ModuleNotFoundError:
        raise SpecError("--to torch", "needs PyTorch", "pip install 'llrflow[torch]'") from None
    model = load_model(run_dir, step, parameters, trust_plugins)
    require_local(Path(out))
    folder = RunFolder(Path(run_dir))
    run, _ = stored_run(folder, trust_plugins=trust_plugins)
    kind = model.spec.model.registered_as[1]
    if entries("model")[kind].origin != "llrflow" or not hasattr(torch_network.Network, f"_{kind}"):
        got = f"knows nothing of {kind}, which is no network of llrflow's"
        raise SpecError("--to torch", got, "leave --to out, for StableHLO")
    layout_name, layout = _layout_of(model.spec.model)
    weights, names = _arrays(model, layout)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    config = {"type": kind, **model.spec.model.model_dump()}
    untold = [name for name in _UNTOLD if layout_name != OWN and name in type(model.spec.model).model_fields]
    network = torch_network.Network(config, names, tensors).eval()

    def theirs(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    difference = largest_difference(model, theirs, TOLERANCE, "--to torch: PyTorch's")
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    code = (resources.files("llrflow.weights") / "torch_network.py").read_bytes()
    contents = {WEIGHTS: buffer.getvalue(), NETWORK: code}
    record = TorchRecord(
        **facts_of(model, run, certificate_of(folder, model)),
        exported_by=f"torch {torch.__version__}",
        layout=layout_name,
        untold={name: _plain(getattr(model.spec.model, name)) for name in untold},
        names=names,
        difference=difference,
        files=digests(contents),
    )
    write_export(Path(out), contents, record)
    return Path(out), record


def _layout_of(model: Any) -> tuple[str, Layout]:
    """The known layout whose fields a network has, but for its activation, which no name tells of; or our own.

    All that have norm layers to choose have BatchNorm.
    """
    if getattr(model, "norm", "batch") != "batch":
        return OWN, DOTTED
    for name, layout in known_layouts().items():
        wanted = {field: value for field, value in layout.fields.items() if field != "activation"}
        fits = all(getattr(model, field, value) == value for field, value in wanted.items())
        if model.registered_as[1] in layout.models and layout.style == "torch" and fits:
            return name, layout
    return OWN, DOTTED


def _arrays(model: Model, layout: Layout) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The state_dict of a model, and the names of its arrays by ours."""
    params, state = model.variables
    trees, found, names = {**params, **state}, {}, {}
    for one in layout.named(params, state):
        found[one.there] = np.array(layout.out_of(np.asarray(trees[one.module][one.name]), one), order="C")
        names[f"{one.module}/{one.name}"] = one.there
    return found, names


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
