"""What a network begins with (`model.start`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llrflow.base.validation import invalid, raise_at
from llrflow.components.registry import Component


class Start(Component):
    """What a network's parameters and moving statistics begin with, in place of fresh ones: give `run` or `npz`.

    Of a run it takes the parameters that the run evaluates (its moving average, if it kept one), with their statistics.
    The moving average of the new training begins there too.
    """

    run: str | None = None
    """Folder of a finished run of the same network."""

    checkpoint: int | Literal["best", "last"] | None = None
    """Its checkpoint; default the one that `llrflow evaluate` takes."""

    npz: str | None = None
    """File of arrays `params/MODULE/NAME` and `state/MODULE/NAME`, as `llrflow export` writes (`weights.npz`)."""

    head: Literal["keep", "new"] = "keep"
    """`new` leaves the layer that makes the logits as freshly initialised."""

    @model_validator(mode="after")
    def _one_source(self) -> Start:
        if (self.run is None) == (self.npz is None):
            raise invalid("source", "needs one of `run` and `npz`; give the folder of a run, or a file")
        if self.npz is not None and self.checkpoint is not None:
            raise_at(("checkpoint",), self.checkpoint, "checkpoint", "is of a run, and `npz` names a file; delete it")
        return self

    @property
    def path(self) -> Path:
        """Where it lies, absolute: relative ones begin at the working directory."""
        return Path(self.run or self.npz or "").expanduser().absolute()

    def absolute(self) -> Start:
        """The same with an absolute path."""
        return self.model_copy(update={"run" if self.run else "npz": str(self.path)})


class ModelEntry(Component):
    """What every model has besides its own fields."""

    start: Annotated[Start | None, Field(exclude_if=lambda start: start is None)] = None
    """Arrays to begin with in place of freshly initialised ones."""
