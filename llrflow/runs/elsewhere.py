"""Other prepared data of the same images and classes, to evaluate a run on: which is meant, and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llrflow.base.errors import DataError
from llrflow.base.validation import listing, suggest
from llrflow.data.catalog import Prepared, find, prepared, to_prepare
from llrflow.data.facts import describe
from llrflow.data.reader import open_dataset
from llrflow.data.schema import Data
from llrflow.runs.records import OtherData, RunRecord
from llrflow.spec.schema import Spec

OPTION = "--on-data"


def named_data(wanted: Sequence[str], data: Data) -> list[OtherData]:
    """The data that `NAME[/CONFIG][:SPLIT]` names below `data.dir`, each once, in order.

    A `*` in CONFIG stands for any text in the name of a prepared config, one in SPLIT for any in that of a split;
    without CONFIG a `*` in SPLIT ranges over all configs. Without SPLIT it is `test`, or the only one. SPLIT may be any
    TFDS split expression. Of several versions it is the newest. Raises DataError where nothing is meant.
    """
    found: dict[OtherData, None] = {}
    for text in wanted:
        place, _, split = text.partition(":")
        name, _, config = place.partition("/")
        for dataset in _datasets(data, name, config or None, split):
            for chosen in _splits(dataset, split, text):
                one = OtherData(name=name, config=dataset.config, version=dataset.version, split=chosen)
                found[one] = None
    return list(found)


def fitting_block(other: OtherData, spec: Spec, record: RunRecord) -> Data:
    """The `data:` block of other data, once it is found to have the run's images and classes. Raises DataError."""
    own, stored = spec.data, record.data
    fields = {"name": other.name, "config": other.config, "version": other.version, "dir": own.dir}
    fields |= {"pipeline": own.pipeline, "memory": own.memory, "corrupt": own.corrupt}
    block = Data.model_validate({**fields, "train": other.split, "test": other.split})
    opened = open_dataset(block)
    if None in opened.image_shape:
        block = block.model_copy(update={"image_size": stored.image_shape[0]})
    facts = describe(block)
    fix = "name a dataset of the same images and classes"
    if facts.image_shape != stored.image_shape:
        got = f"{other.title} has images {list(facts.image_shape)}, the run takes {list(stored.image_shape)}"
        raise DataError(OPTION, got, fix)
    if facts.classes != stored.classes:
        raise DataError(OPTION, f"{other.title} has {facts.classes} classes, the run {stored.classes}", fix)
    theirs, ours = opened.class_names, class_names(own)
    if ours is not None and not {tuple(map(str, range(facts.classes)))} & {theirs, ours} and theirs != ours:
        at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        got = f"{other.title} calls class {at} {theirs[at]!r}, the run's dataset {ours[at]!r}"
        raise DataError(OPTION, got, fix)
    return block


def class_names(data: Data) -> tuple[str, ...] | None:
    """Those of the run's own dataset, where it is prepared here."""
    if to_prepare(data) is not None:
        return None
    try:
        return open_dataset(data).class_names
    except DataError:
        return None


def _datasets(data: Data, name: str, config: str | None, split: str) -> list[Prepared]:
    """The prepared dataset of each config that is meant, the newest version."""
    if "*" not in (config or split):
        return [_found(data, name, config)]
    here = {p.config: p for p in prepared(data.directory) if p.name == name}
    if not here:
        return [_found(data, name, None)]  # one that prepares itself, or an error that says what there is
    configs = [c for c in here if config is None or _matches(config, c or "")]
    if not configs:
        got = f"{name} has no config that matches {config!r}"
        raise DataError(OPTION, got, f"choose from {listing(c for c in here if c)}")
    return [_found(data, name, c) for c in configs]


def _found(data: Data, name: str, config: str | None) -> Prepared:
    try:
        return find(Data(name=name, dir=data.dir, config=config))
    except DataError as error:
        raise DataError(OPTION, error.got, error.fix) from None


def _splits(dataset: Prepared, split: str, text: str) -> list[str]:
    known = [entry["name"] for entry in dataset.info()["splits"]]
    if "*" in split:
        chosen = [name for name in known if _matches(split, name)]
        if not chosen:
            raise DataError(OPTION, f"{text} matches no split", f"choose from {listing(known)}")
        return chosen
    if not split:
        if "test" not in known and len(known) > 1:
            raise DataError(OPTION, f"{text} names no split, and there is no test", f"choose from {listing(known)}")
        return ["test" if "test" in known else known[0]]
    if split.isidentifier() and split not in known:
        raise DataError(OPTION, f"{text}: there is no split {split!r}", suggest(split, known))
    return [split]


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern is that name, once each `*` stands for some text; [ and : mean nothing in it."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
