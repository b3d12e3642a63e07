"""The `data:` block of a spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationError, field_validator, model_validator

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


class Extra(Component):
    """Images of another dataset of the same shape and classes that every training batch holds a share of.

    Generated images (Wang et al. 2023, arXiv:2302.04638), or ones from elsewhere that a model has labelled (Carmon et
    al. 2019, arXiv:1905.13736).
    """

    name: str
    """A dataset prepared under `data.dir`, or a built-in one."""

    config: str | None = None
    """TFDS config; None takes the only one that is prepared."""

    version: str | None = None
    """TFDS version; None takes the newest one that is prepared."""

    options: dict[str, Any] = {}
    """Fields of a built-in dataset."""

    split: str = "train"
    """TFDS split expression of the extra images."""

    share: float
    """Share of a batch: round(share x batch_size) of its images are extra ones, halves to the even number."""

    labels: Literal["given", "pseudo"] = "given"
    """What the labels stored with the images are: those that they were made or collected for, or a model's predictions.
    Training takes both alike; `plan` and the stored spec tell which they are."""

    @field_validator("share")
    @classmethod
    def _both_in_a_batch(cls, share: float) -> float:
        if not 0 < share < 1:
            raise invalid("share", "leaves no room for both kinds of images; write a number between 0 and 1, as 0.7")
        return share

    @model_validator(mode="after")
    def _options_of_the_dataset(self) -> Extra:
        if self.options:
            built_in(self.name, self.options)
        return self


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

    extra: Annotated[Extra | None, Field(exclude_if=lambda extra: extra is None)] = None
    """Images of another dataset that each training batch holds a share of; epochs count those of `train` alone."""

    @field_validator("dir")
    @classmethod
    def _a_path_as_it_is(cls, path: str) -> str:
        if re.match(r"\$\w|\$\{", path):
            raise invalid("variable", "begins with a variable, which specs do not know; write ~ or the path in full")
        return path

    @model_validator(mode="after")
    def _options_of_the_dataset(self) -> Data:
        if self.options:
            self.built_in  # noqa: B018  # builds it, which checks the options
        return self

    @property
    def built_in(self) -> Any:
        """The built-in dataset that this names, with its options; None for any other."""
        return built_in(self.name, self.options)

    @property
    def extra_block(self) -> Data | None:
        """The block of the extra images, which are read as the training images are; None without any."""
        extra = self.extra
        if extra is None:
            return None
        named = {"name": extra.name, "config": extra.config, "version": extra.version, "options": extra.options}
        read = {name: getattr(self, name) for name in ("dir", "image_size", "pipeline", "memory", "corrupt", "augment")}
        return Data(train=extra.split, test=extra.split, **named, **read)

    @property
    def directory(self) -> Path:
        """`dir` with `~` replaced by the home directory."""
        return Path(self.dir).expanduser()


def built_in(name: str, options: dict[str, Any]) -> Any:
    """The built-in dataset of a name with its options; None for any other name. Raises a ValidationError."""
    known = entries("dataset")
    if name not in known:
        if options:
            message = f"does not apply to {name}; only {listing(known)} take options"
            raise_at(("options",), options, "no_options", message)
        return None
    try:
        return validate("dataset", {**options, "type": name})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = str(problem["msg"]).replace("Input should", "should", 1)
        raise_at(("options", *problem["loc"]), problem["input"], "options", message)
