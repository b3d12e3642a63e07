"""The `data:` block of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from llrflow.registry import Chosen, Component


class Data(Component):
    """Which images to train and test on, and how to augment the training images."""

    name: str
    """A dataset prepared under `dir`, or a built-in one (`digits`), which prepares itself."""

    dir: str = "~/tensorflow_datasets"
    """Where TFDS datasets are prepared: <dir>/<name>/[<config>/]<version>."""

    config: str | None = None
    """TFDS config; None takes the only one that is prepared."""

    version: str | None = None
    """TFDS version; None takes the newest one that is prepared."""

    train: str = "train"
    """TFDS split expression of the training images, e.g. `train[:80%]`."""

    test: str = "test"
    """TFDS split expression of the images to evaluate on, e.g. `train[80%:]`."""

    augment: dict[str, Annotated[Any, Chosen("augmentation")]] = {}
    """Augmentations of the training images by name, applied in the order written."""

    @property
    def directory(self) -> Path:
        """`dir` with `~` replaced by the home directory."""
        return Path(self.dir).expanduser()
