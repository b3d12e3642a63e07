"""The `data:` block of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, model_validator

from llrflow.base.memory_size import Bytes
from llrflow.base.validation import invalid, listing, raise_at
from llrflow.components.fields import Chosen
from llrflow.components.registry import Component, entries, validate


class MixEntry(Component):
    """What every way of mixing has besides its own fields."""

    p: float = Field(default=1.0, ge=0, le=1)
    """Probability that an example is mixed this way; what those of all ways leave to 1 is that of no mixing."""


def _held_back(raw: Any) -> Any:
    """A share, a number of images or a split expression. Raises a validation error for all else."""
    number, share = type(raw) is int and raw >= 1, isinstance(raw, float) and 0 < raw < 1
    if raw is None or number or share or (isinstance(raw, str) and raw.strip()):
        return raw
    fix = "a share between 0 and 1, a number of images, or a split expression"
    raise invalid("validation", f"holds back no part of the training images; write {fix}")


class Data(Component):
    """Which images to train and test on, and how to augment and mix the training images."""

    name: str
    """A dataset prepared under `dir`, or a built-in one (`digits`), which prepares itself."""

    dir: str = "~/tensorflow_datasets"
    """Where TFDS datasets are prepared: <dir>/<name>/[<config>/]<version>."""

    config: str | None = None
    """TFDS config; None takes the only one that is prepared."""

    version: str | None = None
    """TFDS version; None takes the newest one that is prepared."""

    options: dict[str, Any] = {}
    """Fields of a built-in dataset: `{height: 64, width: 64}` with `name: synthetic`; each choice is prepared apart."""

    train: str = "train"
    """TFDS split expression of the training images, e.g. `train[:80%]`."""

    test: str = "test"
    """TFDS split expression of the images to evaluate on, e.g. `train[80%:]`."""

    validation: Annotated[
        float | int | str | None,
        PlainValidator(_held_back, json_schema_input_type=float | int | str | None),
        Field(exclude_if=lambda chosen: chosen is None),  # so that specs without it stay the specs that they were
    ] = None
    """Training images to hold back, never trained on, for `checkpoint.best` and sweeps to choose by: a share (`0.1`) or
    a number of them, chosen by seed and id, or a TFDS split expression (`train[80%:]`)."""

    image_size: Annotated[int | None, Field(ge=1)] = None
    """Side in pixels of the images to train on, where those of the dataset vary in size (imagenet2012, imagenette)."""

    pipeline: Literal["auto", "resident", "streaming"] = "auto"
    """Keep a split decoded (`resident`) or decode each batch anew (`streaming`); the images are the same. `auto` keeps
    a split that fits in `memory`, unless random_resized_crop cuts its training images out of originals of any size."""

    memory: Bytes = 4 * 2**30
    """What a decoded split may take to be kept by `pipeline: auto`: an amount such as `4 GiB`. Default 4 GiB."""

    corrupt: float = Field(default=0.0, ge=0, lt=1)
    """Share of a split's images that may be undecodable. In training the next readable image takes the place of such a
    one; in evaluation it counts as misclassified."""

    augment: dict[str, Annotated[Any, Chosen("augmentation")]] = {}
    """Augmentations of the training images by name, applied in the order written."""

    mix: dict[str, Annotated[Any, Chosen("mixing", MixEntry)]] = {}
    """Ways of mixing training examples with each other, labels and all, by name; at most one acts on an example."""

    @model_validator(mode="after")
    def _options_of_the_dataset(self) -> Data:
        if self.options:
            self.built_in  # noqa: B018  # builds it, which checks the options
        return self

    @property
    def built_in(self) -> Any:
        """The built-in dataset that this names, with its options; None for any other."""
        known = entries("dataset")
        if self.name not in known:
            if self.options:
                message = f"does not apply to {self.name}; only {listing(known)} take options"
                raise_at(("options",), self.options, "no_options", message)
            return None
        try:
            return validate("dataset", {**self.options, "type": self.name})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            message = str(problem["msg"]).replace("Input should", "should", 1)
            raise_at(("options", *problem["loc"]), problem["input"], "options", message)

    @property
    def directory(self) -> Path:
        """`dir` with `~` replaced by the home directory."""
        return Path(self.dir).expanduser()
