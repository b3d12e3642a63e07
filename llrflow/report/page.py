"""The report itself: one HTML file that needs nothing else, and the same pictures and tables as files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain
from pathlib import Path

from llrflow.base.errors import SpecError
from llrflow.base.files import require_local, write_atomic
from llrflow.base.shown import trained_on_test
from llrflow.report import classes, methods, pictures, sweeps
from llrflow.report.elsewhere import elsewhere
from llrflow.report.gallery import Shown, galleries
from llrflow.report.pictures import Picture
from llrflow.report.read import STUDIES, ReadRun, ReadSweep, read
from llrflow.report.tables import (
    Table,
    alike,
    best_checkpoints,
    configurations,
    costs,
    differing,
    kills,
    latex,
    markdown,
    results,
)
from llrflow.runs.records import EvaluationRecord, FlagRecord, written
from llrflow.spec.source import dump_yaml, read_source


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    words: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """All that the page, the files beside it and the printed tables are made of."""

    title: str
    answer: list[str]
    """What came out, in sentences."""
    missing: list[str]
    flags: list[tuple[str, FlagRecord]]
    """By run, the signs of gradient masking that were found."""
    sections: list[Section]
    galleries: list[tuple[str, list[Shown]]]
    published: list[dict[str, str]]
    comparable: bool
    """Whether any of them is on a run's dataset."""
    specs: list[tuple[str, str]]
    provenance: Table

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        return [*chain.from_iterable(section.tables for section in self.sections), self.provenance]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture."""
        return list(chain.from_iterable(section.pictures for section in self.sections))


def make_report(paths: Sequence[str | Path], title: str | None = None) -> Report:
    """The report of runs and sweeps: of run folders, folders of sweeps, or folders that hold runs.

    Raises CheckpointError where there are none that can be read.
    """
    runs, swept, unread = read([Path(path) for path in paths])
    published = _published()
    datasets = {run.spec["data"]["name"] for run in runs}
    return Report(
        title=title or _title(runs, swept),
        answer=list(_answer(runs, swept)),
        missing=[*unread, *chain.from_iterable(run.missing() for run in runs), *_without_studies(runs)],
        flags=[(run.name, flag) for run in runs for flag in run.fired],
        sections=[section for section in _sections(runs, swept) if section.tables or section.pictures],
        galleries=galleries([(run.name, run.main) for run in runs if run.main]),
        published=published,
        comparable=any(entry["dataset"] in datasets for entry in published),
        specs=[(run.name, dump_yaml(dict(run.spec))) for run in runs],
        provenance=_provenance(runs),
    )


def html(report: Report) -> str:
    """The page. Raises SpecError where the extra `report` is not installed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("llrflow.report", "."), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    style = (resources.files("llrflow.report") / "page.css").read_text()
    return environment.get_template("page.html").render(report=report, style=style)


def write_report(report: Report, path: Path) -> None:
    """Write the page. Raises SpecError where there is no such folder."""
    require_local(path)
    if not path.parent.is_dir():
        raise SpecError(str(path), "has no parent folder", f"create {path.parent} first")
    if path.is_dir():
        raise SpecError(str(path), "is a folder", "name a file, for example report.html in it")
    if path.exists() and not path.is_file():
        raise SpecError(str(path), "is no ordinary file", "name another")
    write_atomic(path.resolve(), html(report).encode())


def write_assets(report: Report, folder: Path) -> None:
    """Every picture as SVG, PDF, PNG and CSV, every table as Markdown and LaTeX. Raises SpecError."""
    require_local(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(str(folder), f"cannot be made: {error.strerror}", "choose another folder") from None
    for picture in report.pictures:
        write_atomic(folder / f"{picture.name}.svg", picture.svg().encode())
        write_atomic(folder / f"{picture.name}.pdf", picture.pdf())
        write_atomic(folder / f"{picture.name}.png", picture.png())
        write_atomic(folder / f"{picture.name}.csv", picture.csv().encode())
    for table in report.tables:
        write_atomic(folder / f"{table.name}.md", markdown(table).encode())
        write_atomic(folder / f"{table.name}.tex", latex(table).encode())


def require_extra() -> None:
    """Raise SpecError where jinja2 or matplotlib is not installed."""
    absent = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if absent:
        raise SpecError("report", f"needs {' and '.join(absent)}", "pip install 'llrflow[report]'")


def _title(runs: Sequence[ReadRun], swept: Sequence[ReadSweep]) -> str:
    if swept:
        return f"Sweep {', '.join(sweep.record.name for sweep in swept)}"
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"


def _alone(runs: Sequence[ReadRun], swept: Sequence[ReadSweep]) -> list[ReadRun]:
    """The runs that stand for themselves, not for a configuration whose mean over seeds is told."""
    told = [sweep.path for sweep in swept if methods.methods(sweep)]
    return [run for run in runs if not any(run.path.is_relative_to(path) for path in told)]


def _answer(runs: Sequence[ReadRun], swept: Sequence[ReadSweep]) -> Iterator[str]:
    """What was asked, and which method or run is the most robust, as far as seeds or intervals tell."""
    yield from dict.fromkeys(_where(run) for run in runs)
    for sweep in swept:
        if found := methods.methods(sweep):
            yield methods.answer(found)
    runs = _alone(runs, swept)
    masked = [run.name for run in runs if run.fired]
    attacked = [run for run in runs if run.main is not None]
    known = [run.name for run in runs if run.record.trained_on_test]
    groups = [[pair for pair in group if not (pair[0].fired or pair[0].name in known)] for group in alike(runs)]
    for group in groups:
        if len(group) > 1:
            yield _best(group)
    if len(attacked) > 1 and not any(len(group) == len(attacked) for group in alike(runs)):
        yield "Not all runs were attacked on the same images with the same attacks: only rows of one table compare."
    for run in attacked:
        lowest = min((e.record for e in run.evaluations), key=lambda record: record.worst_case.accuracy)
        alone = not any(run is other and len(group) > 1 for group in groups for other, _ in group)
        if not run.fired and (alone or lowest is not run.main.record):  # pyright: ignore[reportOptionalMemberAccess]
            yield (
                f"{run.name}: {lowest.nominal.accuracy:.2%} nominal, at the lowest {lowest.worst_case.accuracy:.2%} "
                f"in the worst case, under {', '.join(lowest.attacks)}{_drawn(lowest)}."
            )
    for run in runs:
        if words := trained_on_test(run.record.trained_on_test, run.record.data.test):
            yield f"{run.name} was {words}."
    if masked:
        yield f"Left out for signs of gradient masking: {', '.join(masked)}."


def _drawn(record: EvaluationRecord) -> str:
    """Which images, where they are not all."""
    return f", on {record.described}" if record.subset else ""


def _best(group: list[tuple[ReadRun, EvaluationRecord]]) -> str:
    """The most robust of runs that compare, and the next."""
    (run, best), (second, other), *_ = sorted(group, key=lambda pair: -pair[1].worst_case.accuracy)
    overlap = best.worst_case.interval[0] <= other.worst_case.interval[1]
    apart = "the intervals overlap; llrflow compare makes a paired test" if overlap else "the intervals do not overlap"
    return (
        f"Most robust under {', '.join(best.attacks)}{_drawn(best)}: {run.name}, {best.worst_case.accuracy:.2%} in the "
        f"worst case at {best.nominal.accuracy:.2%} nominal; next {second.name}, {other.worst_case.accuracy:.2%} "
        f"({apart})."
    )


def _without_studies(runs: Sequence[ReadRun]) -> Iterator[str]:
    """Which studies are not there of which runs, and how to make them."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.main is not None:
            lacking.setdefault(tuple(title for title in STUDIES if run.study(title) is None), []).append(run.name)
    for titles, names in lacking.items():
        if titles:
            command = f"llrflow evaluate RUN {' '.join(f'--study {title}' for title in titles)}"
            yield f"{', '.join(names)}: no study of {', '.join(titles)}; to make: {command}"


def _where(run: ReadRun) -> str:
    threat, data, model = (run.spec[block] for block in ("threat", "data", "model"))
    shape = " x ".join(map(str, run.record.data.image_shape))
    return (
        f"How accurate is {model['type']} on {data['name']} ({shape}, {run.record.data.classes} classes), "
        f"and how accurate when every image may be changed by {threat['norm']} {written(float(threat['epsilon']))}?"
    )


def _sections(runs: Sequence[ReadRun], swept: Sequence[ReadSweep]) -> Iterator[Section]:
    for number, sweep in enumerate(swept):
        name = f"sweep-{number + 1}"
        tables, made = [configurations(sweep, name)], list(sweeps.pictures(sweep, name))
        if found := methods.methods(sweep):
            compared = [methods.table(sweep, name, found), methods.tests(name, found)]
            tables = [*filter(None, compared), *tables]
            made = [methods.picture(name, found), *made]
        yield Section(name, f"Sweep {sweep.record.name}", tables=tables, pictures=made)
    yield Section("results", "Results", tables=list(results(_alone(runs, swept))))
    different = differing(runs)
    yield Section("differences", "What differs", tables=[] if different is None else [different])
    yield Section("attacks", "Attacks", tables=list(kills(runs)), pictures=list(pictures.minimum_norm(runs)))
    yield Section("elsewhere", "On other data", tables=list(elsewhere(runs)))
    confused = list(classes.confusions(runs))
    yield Section("classes", "Classes", tables=list(classes.by_class(runs)), pictures=confused)
    strength = ["A number is worth what its attack is worth: here one attack is given more steps, restarts and room."]
    yield Section("strength", "As the attack gets stronger", strength, pictures=list(pictures.strength(runs)))
    linear = ["Where the loss is nearly linear around an image, a few gradient steps find the worst perturbation."]
    yield Section("linearity", "Linearity of the loss", linear, pictures=list(pictures.linearity(runs)))
    yield Section("surfaces", "Loss surfaces", pictures=list(pictures.loss_surfaces(runs)))
    yield Section("training", "Training", tables=list(best_checkpoints(runs)), pictures=list(pictures.training(runs)))
    yield Section("cost", "Cost", tables=list(costs(runs)))


def _provenance(runs: Sequence[ReadRun]) -> Table:
    rows, used = [], {" ".join(f"{k} {v}" for k, v in run.record.versions.items()) for run in runs}
    for run in runs:
        record, data = run.record, run.record.data
        sizes = f"{data.train:,} / {data.test:,}"
        commit, _, changes = (record.git or "none").partition("+")
        where = f"{commit[:12]}{' and ' if changes else ''}{changes}"
        found = f"{data.fingerprint[:12]}, {sizes}"
        rows.append([run.name, str(run.path), record.spec_hash, str(record.seed), found, where])
    headings = ["", "folder", "spec", "seed", "data, train / test", "commit"]
    return Table("provenance", "Where this comes from", headings, rows, f"Versions: {'; or '.join(sorted(used))}.")


def _published() -> list[dict[str, str]]:
    with resources.as_file(resources.files("llrflow.report") / "published.yaml") as path:
        return [dict(entry) for entry in read_source(str(path)).data["published"]]
