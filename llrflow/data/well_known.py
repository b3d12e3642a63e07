"""Facts of well-known datasets, to check and to plan a spec on a machine where its data is not prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llrflow.data.catalog import prepared
from llrflow.data.facts import DatasetFacts, describe, with_extra
from llrflow.data.held_back import sizes
from llrflow.data.overlap import overlap
from llrflow.data.reader import check_size, selected, side_of
from llrflow.data.schema import Data


class Known(NamedTuple):
    """What the TFDS catalogue says of a dataset."""

    side: int | None
    """Height and width of its images; None where they vary."""
    channels: int
    classes: int
    splits: Mapping[str, int]
    """Labelled examples by split."""
    configs: str = ""
    """How the names end of the TFDS configs that have these splits."""


KNOWN = {
    "cifar10": Known(32, 3, 10, {"train": 50_000, "test": 10_000}),
    "cifar100": Known(32, 3, 100, {"train": 50_000, "test": 10_000}),
    "fashion_mnist": Known(28, 1, 10, {"train": 60_000, "test": 10_000}),
    "imagenet2012": Known(None, 3, 1000, {"train": 1_281_167, "validation": 50_000}),
    "imagenette": Known(None, 3, 10, {"train": 9_469, "validation": 3_925}, configs="-v2"),
    "mnist": Known(28, 1, 10, {"train": 60_000, "test": 10_000}),
    "svhn_cropped": Known(32, 3, 10, {"train": 73_257, "test": 26_032, "extra": 531_131}),
}
"""By name in the TFDS catalogue."""


def describe_or_known(data: Data) -> DatasetFacts:
    """As `describe`; for a dataset of the table that is not prepared, with `source` "table", what the table says.

    Raises DataError as `describe` does, and when an unprepared dataset's images vary in size and none is asked for.
    """
    if data.extra is not None:
        return with_extra(data, describe_or_known(data.model_copy(update={"extra": None})), describe_or_known)
    known = KNOWN.get(data.name)
    if known is None or not (data.config or known.configs).endswith(known.configs):
        return describe(data)
    if any(dataset.name == data.name for dataset in prepared(data.directory)):
        return describe(data)
    if known.side is not None:
        check_size(data, data.name, known.side, known.side)
    side = known.side or side_of(data, data.name)
    splits, chosen = _split_dict(data.name, known), 0
    if isinstance(data.validation, str):
        chosen = selected(splits, data.validation, data.name, "data.validation")
    n = selected(splits, data.train, data.name, "data.train")
    test = selected(splits, data.test, data.name, "data.test")
    train, validation, held = sizes(data, splits, n, chosen)
    return DatasetFacts(
        name=data.name,
        version=data.version or "",
        directory=data.directory / data.name,
        image_shape=(side, side, known.channels),
        classes=known.classes,
        splits=known.splits,
        train=train,
        test=test,
        source="table",
        trained_on_test=int(overlap(splits, data.test, data.train).sum()),
        varies=known.side is None,
        validation=validation,
        held=held,
    )


def _split_dict(name: str, known: Known):
    """The splits as TFDS knows them, so that expressions mean the same as on prepared data."""
    from etils import epath
    from tensorflow_datasets.core import ShardedFileTemplate
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    template = ShardedFileTemplate(data_dir=epath.Path(), dataset_name=name, filetype_suffix="array_record")
    return SplitDict(
        [
            SplitInfo(name=split, shard_lengths=[n], num_bytes=0, filename_template=template.replace(split=split))
            for split, n in known.splits.items()
        ]
    )
