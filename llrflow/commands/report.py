"""`llrflow report`: finished work as a page to read."""

from __future__ import annotations

from pathlib import Path

import click

from llrflow.commands.options import json_option
from llrflow.commands.printing import echo, print_json


@click.command()
@click.argument("paths", metavar="RUN|SWEEP|DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The page; default report.html, or none with --table."
)
@click.option(
    "--assets",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write all pictures (SVG, PDF, PNG, CSV) and tables (Markdown, LaTeX) there.",
)
@click.option("--table", "form", type=click.Choice(["markdown", "latex"]), help="Print the result tables in this form.")
@click.option("--title", help="Of the page; default the names of the runs.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@json_option
def report(
    paths: tuple[Path, ...],
    out: Path | None,
    assets: Path | None,
    form: str | None,
    title: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Write one self-contained HTML page about runs, sweeps, or all runs in a folder.

    Reads their files alone; what is missing is named on the page, with the command that makes it. Needs the extra
    `report`: pip install 'llrflow[report]'.

    \b
    Examples:
      llrflow report runs/quickstart-1a2b3c4d5e6f
      llrflow report runs/methods -o methods.html --assets figures/
      llrflow report sweeps/digits --open
      llrflow report runs/methods --table latex > table.tex
      llrflow report runs/methods --json
    """
    if as_json and form is not None:
        raise click.UsageError("--json and --table both print: choose one")
    from llrflow.report.page import make_report, require_extra, write_assets, write_report
    from llrflow.report.tables import latex, markdown

    require_extra()
    made = make_report(paths, title)
    if form is not None:
        write = markdown if form == "markdown" else latex
        shown = [t for t in made.tables if t.name.startswith(("results", "sweep"))]
        echo("\n".join(map(write, shown)), nl=False)
    path = out or Path("report.html")
    if form is None or out is not None or show:
        write_report(made, path)
        if as_json:
            print_json(
                {"page": str(path), "bytes": path.stat().st_size, "answer": made.answer, "missing": made.missing}
            )
        else:
            for line in made.missing:
                echo(line, err=True)
            echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", err=form is not None)
    if assets is not None:
        write_assets(made, assets)
    if show:
        click.launch(path.absolute().as_uri())
