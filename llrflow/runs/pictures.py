"""Pictures of what an evaluation found; drawn where matplotlib (the extra `report`) is installed."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_surfaces(found: dict[str, Any], path: Path, title: str) -> None:
    """`surfaces` as an SVG; a word on stderr without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no picture beside {path.with_suffix('.json')}: pip install 'llrflow[report]'", file=sys.stderr)
        return
    buffer = io.BytesIO()
    surfaces(found, title).savefig(buffer, format="svg", metadata={"Date": None})
    write_atomic(path, buffer.getvalue())


def surfaces(found: dict[str, Any], title: str) -> Figure:
    """The loss around each image of a surface study as contours, two images a row."""
    from matplotlib.figure import Figure

    axis, images = found["axis"], found["images"]
    columns = min(2, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.2 * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for image, place in zip(images, places, strict=False):
        drawn = place.contourf(axis, axis, np.array(image["loss"]).T, levels=15)
        drawn.set_rasterized(True)
        bar = figure.colorbar(drawn, ax=place)
        bar.ax.tick_params(labelsize=7)
        place.plot(0, 0, "w+")
        place.set_title(f"image {image['id']}, label {image['label']}", fontsize=8)
        place.tick_params(labelsize=7)
    figure.supxlabel("along the attack (eps)", fontsize=8)
    figure.supylabel("along a random direction (eps)", fontsize=8)
    for place in places:  # those that no image has taken
        place.remove()
    return figure
