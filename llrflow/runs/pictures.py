"""Pictures of what an evaluation found; drawn where matplotlib (the extra `report`) is installed."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.base.files import write_atomic

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
    height = 2.1 * rows + 0.7
    figure = Figure(figsize=(2.5 * columns, height))
    figure.set_layout_engine("none")
    # Margins in inches: finding them out by drawing takes longer than all else.
    margins = {"left": 0.45 / (2.5 * columns), "right": 0.94, "bottom": 0.45 / height, "top": 1 - 0.55 / height}
    grid = figure.add_gridspec(rows, columns, hspace=0.35, wspace=0.3, **margins)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    for number, image in enumerate(images):
        place = figure.add_subplot(grid[divmod(number, columns)])
        drawn = place.contourf(axis, axis, np.array(image["loss"]).T, levels=15)
        drawn.set_rasterized(True)
        bar = figure.colorbar(drawn, ax=place, ticks=np.linspace(*drawn.get_clim(), 4), format="%.2g")
        bar.ax.tick_params(labelsize=7)
        place.plot(0, 0, "w+")
        place.set_title(f"image {image['id']}, label {image['label']}", fontsize=8)
        place.tick_params(labelsize=7)
        place.locator_params(nbins=4)
    figure.supxlabel("along the attack (eps)", fontsize=8, y=0.05 / height, va="bottom")
    figure.supylabel("along a random direction (eps)", fontsize=8, x=0.01, ha="left")
    return figure
