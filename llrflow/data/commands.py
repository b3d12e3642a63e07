"""`llrflow data`: import datasets and list those that are prepared."""

from __future__ import annotations

import json
from pathlib import Path

import click

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="~/tensorflow_datasets",
    show_default=True,
    envvar="LLRFLOW_DATA_DIR",
    show_envvar=True,
    help="Where datasets are prepared (`data.dir` of a spec).",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def data() -> None:
    """Import datasets and list those that are prepared."""


@data.command("import")
@click.argument("name")
@click.option("--format", "file_format", required=True, help="Format of the files: idx (MNIST and its relatives).")
@click.option(
    "--from",
    "source_dir",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory that holds the files.",
)
@_data_dir
@_json
def import_command(name: str, file_format: str, source_dir: Path, data_dir: Path, as_json: bool) -> None:
    """Check files, then write them as the dataset NAME, which a spec uses as `data: {name: NAME}`.

    Format idx needs train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte in DIR, plain or as .gz. Nothing is written unless all of them are sound.

    \b
    Example:
      llrflow data import fashion_mnist --format idx --from ~/Downloads/fashion-mnist
    """
    from llrflow.data.importers import FORMATS
    from llrflow.errors import DataError
    from llrflow.progress import progress
    from llrflow.registry import suggest

    if file_format not in FORMATS:
        raise DataError("--format", f"{file_format!r} is not a known format", suggest(file_format, FORMATS))
    with progress(f"writing {name}", total=1, quiet=as_json) as show:
        importer = FORMATS[file_format]
        report = importer(
            name, source_dir.expanduser(), data_dir.expanduser(), lambda done, total: show(done, total=total)
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    click.echo(f"{name}: {'written to' if report.written else 'already imported in'} {report.directory}")
    height, width, channels = report.image_shape
    click.echo(f"  images {height} x {width} x {channels}, {report.classes} classes")
    for split, count in report.counts.items():
        low, high = min(report.label_counts[split]), max(report.label_counts[split])
        click.echo(f"  {split}: {count} examples, {low}{f' to {high}' if high > low else ''} of each class")
    for file, checksum in report.files.items():
        click.echo(f"  {file}  sha256 {checksum}")


@data.command("list")
@_data_dir
@_json
def list_command(data_dir: Path, as_json: bool) -> None:
    """List the prepared datasets: name, config, version, splits, image shape.

    \b
    Example:
      llrflow data list --data-dir /data/tfds
    """
    from llrflow.data.catalog import prepared, summary

    rows = [summary(dataset) for dataset in prepared(data_dir.expanduser())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"no dataset is prepared in {data_dir.expanduser()}")
    for row in rows:
        name = "/".join(filter(None, (row["name"], row["config"])))
        splits = ", ".join(f"{split} {count}" for split, count in row["splits"].items())
        shape = " x ".join("?" if size is None else str(size) for size in row["image_shape"] or ["no images"])
        click.echo(f"{name}  {row['version']}  {splits}  {shape}  {row['format']}")
