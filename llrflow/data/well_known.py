"""Facts of well-known and built-in datasets, to check and to plan a spec where its data is not prepared."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from llrflow.base.errors import DataError
from llrflow.data.catalog import prepared, to_prepare, version_among
from llrflow.data.datasets import Known
from llrflow.data.facts import DatasetFacts, describe, with_extra
from llrflow.data.held_back import sizes
from llrflow.data.overlap import overlap
from llrflow.data.reader import check_size, selected, side_of
from llrflow.data.schema import Data
from llrflow.data.writer import VERSION

KNOWN = {
    "cifar10": Known((32, 32), 3, 10, {"train": 50_000, "test": 10_000}),
    "cifar100": Known((32, 32), 3, 100, {"train": 50_000, "test": 10_000}),
    "fashion_mnist": Known((28, 28), 1, 10, {"train": 60_000, "test": 10_000}),
    "imagenet2012": Known(None, 3, 1000, {"train": 1_281_167, "validation": 50_000}),
    "imagenette": Known(None, 3, 10, {"train": 9_469, "validation": 3_925}, configs="-v2"),
    "mnist": Known((28, 28), 1, 10, {"train": 60_000, "test": 10_000}),
    "svhn_cropped": Known((32, 32), 3, 10, {"train": 73_257, "test": 26_032, "extra": 531_131}),
}
"""By name in the TFDS catalogue."""


class Unseen(DataError):
    """A dataset that would first have to be prepared: nobody knows what it holds."""


class _Stated(NamedTuple):
    known: Known
    version: str
    source: Literal["table", "built-in"]


def describe_or_known(data: Data) -> DatasetFacts:
    """As `describe`, which it is where the dataset is prepared; it prepares none.

    One of the table is then as the table says, with `source` "table"; a built-in one as it says itself, "built-in".
    Raises DataError as `describe` does, when an unprepared dataset's images vary in size and none is asked for, and
    Unseen for one that does not say what it holds.
    """
    if data.extra is not None:
        return with_extra(data, describe_or_known(data.model_copy(update={"extra": None})), describe_or_known)
    stated = _stated(data)
    return describe(data) if stated is None else _facts(data, *stated)


def _stated(data: Data) -> _Stated | None:
    """What is said of a dataset that is not prepared; None for all others. Raises DataError."""
    if (built_in := to_prepare(data)) is not None:
        if (known := _said_by(built_in)) is None:
            got = f"= {data.name!r} is not prepared in {data.directory}, and what it holds is seen only then"
            raise Unseen("data.name", got, "`llrflow run` prepares it")
        return _Stated(known, version_among(data, [VERSION]), "built-in")
    known = KNOWN.get(data.name)
    if known is None or not (data.config or known.configs).endswith(known.configs):
        return None
    if any(dataset.name == data.name for dataset in prepared(data.directory)):
        return None
    return _Stated(known, data.version or "", "table")


def _said_by(built_in: Any) -> Known | None:
    """`known` of a dataset, unless it is that of a class whose `prepare` is not this one's."""
    prepares, says = (next((c for c in type(built_in).__mro__ if n in vars(c)), object) for n in ("prepare", "known"))
    return built_in.known if says is not object and issubclass(says, prepares) else None


def _facts(data: Data, known: Known, version: str, source: Literal["table", "built-in"]) -> DatasetFacts:
    if known.size is not None:
        check_size(data, data.name, *known.size)
    height, width = known.size or 2 * (side_of(data, data.name),)
    splits, chosen = _split_dict(data.name, known), 0
    if isinstance(data.validation, str):
        chosen = selected(splits, data.validation, data.name, "data.validation")
    n = selected(splits, data.train, data.name, "data.train")
    test = selected(splits, data.test, data.name, "data.test")
    train, validation, held = sizes(data, splits, n, chosen)
    return DatasetFacts(
        name=data.name,
        version=version,
        directory=data.directory / data.name,
        image_shape=(height, width, known.channels),
        classes=known.classes,
        splits=known.splits,
        train=train,
        test=test,
        source=source,
        trained_on_test=int(overlap(splits, data.test, data.train).sum()),
        varies=known.size is None,
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
