"""`llrflow data`: import or prepare datasets, list those that are prepared, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import json_option, overrides
from llrflow.commands.printing import echo, print_json

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="~/tensorflow_datasets",
    show_default=True,
    envvar="LLRFLOW_DATA_DIR",
    show_envvar=True,
    help="Where datasets are prepared (`data.dir` of a spec).",
)
_name = click.argument("name")
_config = click.option("--config", help="TFDS config, where there are several.")
_options = click.option(
    "--set",
    "options",
    multiple=True,
    metavar="FIELD=VALUE",
    callback=overrides,
    help="Option of a built-in dataset (`data.options` of a spec); repeatable.",
)


@click.group()
def data() -> None:
    """Import or prepare datasets, list those that are prepared, look at them.

    \b
    Examples:
      llrflow data list
      llrflow data import fashion_mnist --format idx --from ~/Downloads/fashion-mnist
    """


@data.command("import")
@_name
@click.option("--format", "file_format", required=True, help="idx, cifar-python, cifar-binary, cifar-c, npz or folder.")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Directory that holds the files; for cifar-* and npz also the file itself.",
)
@click.option("--coarse", is_flag=True, default=None, help="Take CIFAR-100's 20 superclasses as its classes.")
@click.option("--max-corrupt", type=float, help="Share of images of a folder that may be unreadable.  [default: 0]")
@_data_dir
@json_option
def import_command(name: str, file_format: str, source: Path, data_dir: Path, as_json: bool, **options: Any) -> None:
    """Check files, then write them as the dataset NAME, which a spec uses as `data: {name: NAME}`.

    \b
    idx           train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,
                  t10k-labels-idx1-ubyte, plain or as .gz
    cifar-python  cifar-10-python.tar.gz, cifar-100-python.tar.gz, or what they unpack to
    cifar-binary  cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, or what they unpack to
    cifar-c       CIFAR-10-C or CIFAR-100-C unpacked: labels.npy and one .npy of images for each corruption, which
                  become configs with the splits severity_1 to severity_5
    npz           train_images, train_labels, test_images, test_labels, or x_train, y_train, x_test, y_test;
                  or image, label: generated images for `data.extra`, without a test split
    folder        train/CLASS/IMAGE and test/CLASS/IMAGE (or val, validation), JPEG and PNG of any size

    All but cifar-c and folder are read as a whole first; nothing is left behind unless everything is sound.

    \b
    Examples:
      llrflow data import fashion_mnist --format idx --from ~/Downloads/fashion-mnist
      llrflow data import cifar10 --format cifar-python --from cifar-10-python.tar.gz
      llrflow data import imagenet --format folder --from /data/ILSVRC/CLS-LOC --max-corrupt 0.0001
    """
    from llrflow.base.progress import progress
    from llrflow.data.importers import import_files

    given = {option: value for option, value in options.items() if value is not None}
    places = source.expanduser(), data_dir.expanduser()
    with progress(f"writing {name}", total=1, quiet=as_json) as show:
        report = import_files(file_format, name, *places, lambda done, total: show(done, total=total), given)
    if as_json:
        print_json(report.to_dict())
        return
    echo(f"{name}: {'written to' if report.written else 'already imported in'} {report.directory}")
    echo(f"  images {_shape(report.image_shape)}, {report.classes} classes")
    if report.configs:
        echo(f"  {len(report.configs)} configs, each with these splits: {', '.join(report.configs)}")
    for split, count in report.counts.items():
        low, high = min(report.label_counts[split]), max(report.label_counts[split])
        echo(f"  {split}: {count} examples, {low}{f' to {high}' if high > low else ''} of each class")
    for note in report.notes:
        echo(f"  {note}")
    if report.corrupt:
        echo(f"  left out: {len(report.corrupt)} images that cannot be read")
    for line in report.corrupt[:20]:
        echo(f"    {line}")
    for file, checksum in report.files.items():
        echo(f"  {file}  sha256 {checksum}")


@data.command("prepare")
@_name
@_config
@_options
@click.option(
    "--manual-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory with files of the dataset, under the names they are published with.",
)
@_data_dir
@json_option
def prepare_command(
    name: str, config: str | None, options: dict[str, Any], manual_dir: Path | None, data_dir: Path, as_json: bool
) -> None:
    """Prepare the dataset NAME: a built-in one, or one of TFDS's catalogue by TFDS's own builder, as array_record.

    TFDS downloads what it does not find in --manual-dir. Most of its builders need TensorFlow (`pip install
    tensorflow`) to write a dataset; nothing here needs it to read one.

    \b
    Examples:
      llrflow data prepare synthetic --set height=64 --set width=64
      llrflow data prepare cifar10
    """
    from llrflow.data.catalog import summary
    from llrflow.data.prepare import prepare

    block = _block(name, data_dir, config, options)
    dataset, made = prepare(block, manual_dir and manual_dir.expanduser())
    if as_json:
        print_json({**summary(dataset), "written": made})
        return
    echo(f"{name}: {'written to' if made else 'already prepared in'} {dataset.directory}")


@data.command("list")
@_data_dir
@json_option
def list_command(data_dir: Path, as_json: bool) -> None:
    """List the prepared datasets: name, config, version, splits, image shape.

    \b
    Example:
      llrflow data list --data-dir /data/tfds
    """
    from llrflow.data.catalog import summaries

    rows = summaries(data_dir.expanduser())
    if as_json:
        print_json(rows)
        return
    if not rows:
        echo(f"no dataset is prepared in {data_dir.expanduser()}")
    for row in rows:
        name = "/".join(filter(None, (row["name"], row["config"])))
        if "error" in row:
            echo(f"{name}  {row['version']}  {row['error']}")
            continue
        splits = ", ".join(f"{split} {count}" for split, count in row["splits"].items())
        shape = _shape(row["image_shape"] or ["no images"])
        echo(f"{name}  {row['version']}  {splits}  {shape}  {row['format']}")


@data.command("show")
@_name
@click.option("--split", default="train", show_default=True, help="Split, or a slice such as `test[:100]`.")
@click.option("--examples", type=click.IntRange(min=0), default=24, show_default=True, help="Images to show.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Draw them into this file.")
@click.option("--augment", "spec", type=click.Path(path_type=Path), metavar="SPEC", help="Augment them as a spec does.")
@click.option("--validation", metavar="SHARE|N|SPLIT", help="Tell what this `data.validation` of a spec holds back.")
@click.option("--seed", type=int, default=0, show_default=True, help="That of the spec, which chooses them.")
@_config
@_options
@_data_dir
@json_option
def show_command(
    name: str,
    split: str,
    examples: int,
    out: Path | None,
    spec: Path | None,
    validation: str | None,
    seed: int,
    config: str | None,
    options: dict[str, Any],
    data_dir: Path,
    as_json: bool,
) -> None:
    """Count the examples of NAME by class, and draw some of them, evenly spaced.

    With --augment they are drawn as the first training step of SPEC would see them, before any mixing.

    \b
    Example:
      llrflow data show digits --out grid.png --augment specs/quickstart.yaml
    """
    from llrflow.base.errors import DataError
    from llrflow.base.files import write_atomic
    from llrflow.data.gallery import augmented, draw_grid, sample
    from llrflow.spec.source import scalar

    if spec is not None and out is None:
        raise DataError("--augment", "changes the picture, and none is drawn", "add --out grid.png")
    if out is not None and not (examples and out.absolute().parent.is_dir()):
        got = f"{out} has no parent folder" if examples else "draws no example"
        raise DataError("--out", got, "create the folder first" if examples else "raise --examples")
    block = _block(name, data_dir, config, options, None if validation is None else scalar(validation))
    found = sample(block, split, examples, seed)
    if out is not None:
        images = found.images if spec is None else augmented(found, _augmentation(spec))
        write_atomic(out, draw_grid(images, [found.class_names[label] for label in found.labels]))
    if as_json:
        print_json({"name": name, "split": split, **found.to_dict(), "out": out and str(out)})
        return
    echo(f"{name} {split}: {found.n} examples, {_shape(found.image_shape)}, {len(found.class_names)} classes")
    if found.held_back is not None:
        echo(f"{sum(found.held_back)} of them are held back from training, the second number of each class")
    most, width = max(found.histogram), max(map(len, found.class_names))
    for row, (title, number) in enumerate(zip(found.class_names, found.histogram, strict=True)):
        held = "" if found.held_back is None else f"  {found.held_back[row]:>6}"
        echo(f"  {title:<{width}}  {number:>7}{held}  {'#' * round(40 * number / most)}".rstrip())
    if out is not None:
        echo(f"wrote {out}")


def _augmentation(spec: Path) -> Any:
    """(images [B, H, W, C], ids [B]) -> images, as the first training step of a spec augments them."""
    import jax

    from llrflow.data.augment import augment
    from llrflow.method.keys import example_keys, purpose_key
    from llrflow.spec.load import load_spec

    loaded = load_spec(str(spec))
    key = jax.random.fold_in(purpose_key(loaded.seed, "augment"), 0)
    return jax.jit(lambda images, ids: augment(images, example_keys(key, ids), loaded.data.augment))


def _block(name: str, data_dir: Path, config: str | None, options: dict[str, Any], validation: Any = None) -> Any:
    from pydantic import ValidationError

    from llrflow.base.errors import DataError
    from llrflow.base.validation import first_problem
    from llrflow.data.schema import Data

    try:
        given = {"name": name, "dir": str(data_dir), "config": config, "options": options, "validation": validation}
        return Data.model_validate(given)
    except ValidationError as error:
        path, got, fix = first_problem(error)
        raise DataError("--validation" if path == ("validation",) else "--set", got, fix) from None


def _shape(sizes: Any) -> str:
    return " x ".join("?" if size is None else str(size) for size in sizes)
