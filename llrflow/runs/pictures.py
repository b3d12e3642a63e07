"""Pictures of what an evaluation found; drawn where matplotlib (the extra `report`) is installed."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.files import write_atomic


def draw_surfaces(found: dict[str, Any], path: Path, title: str) -> None:
    """The loss around each image of a surface study as contours, in one SVG; a word on stderr without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no picture beside {path.with_suffix('.json')}: pip install 'llrflow[report]'", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    axis, images = found["axis"], found["images"]
    figure = Figure(figsize=(3.2 * len(images), 3.4), layout="constrained")
    figure.suptitle(title)
    for place, image in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        drawn = place.contourf(axis, axis, np.array(image["loss"]).T, levels=15)
        figure.colorbar(drawn, ax=place, label="loss (nats)")
        place.plot(0, 0, "w+")
        place.set(title=f"image {image['id']}, label {image['label']}", xlabel="attack (eps)", ylabel="random (eps)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomic(path, buffer.getvalue())
