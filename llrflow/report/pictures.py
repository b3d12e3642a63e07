"""Pictures of a report. Each knows how to draw itself and the numbers it shows."""

from __future__ import annotations

import csv
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.base.harmless import csv_cell
from llrflow.report.read import ReadRun
from llrflow.runs.looks import PREFIX
from llrflow.runs.pictures import surfaces
from llrflow.runs.records import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0a0b0c"
"""What stands for the page's own text colour, so that pictures follow a dark page."""

COLOURS = ("#3b82c4", "#e07b39", "#2f9e6e", "#b65fb0", "#c9a227", "#d1495b", "#5f8f9f", "#7a6ff0")
LINES = ("-", "--", "-.", ":")

POINTS = 300
"""Most points of a curve that are drawn; CSV files have all."""

STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.figsize": (4.4, 3.0),
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Picture:
    """One picture with the numbers that it shows."""

    name: str
    """For file names."""
    title: str
    caption: str
    draw: Callable[[], Figure]
    rows: list[dict[str, Any]]
    """All numbers, as CSV rows with one set of columns."""

    def svg(self, page: bool = False) -> str:
        """As SVG; for a page with its text in the page's colour, ids of its own, and no XML head."""
        text = self._drawn("svg").decode()
        if not page:
            return text.replace(INK, "#000000")
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()

    def png(self) -> bytes:
        """As PNG on white."""
        return self._drawn("png")

    def pdf(self) -> bytes:
        """As PDF, for papers."""
        return self._drawn("pdf")

    def csv(self) -> str:
        """The numbers as CSV."""
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)))
        table.writeheader()
        table.writerows({name: csv_cell(value) for name, value in row.items()} for row in self.rows)
        return text.getvalue()

    def _drawn(self, kind: str) -> bytes:
        import matplotlib

        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"Glyph \d+"
            )  # a name in letters that the font has not: boxes in their place
            figure, buffer = self.draw(), io.BytesIO()
            _plain_ticks(figure)
            if kind == "svg":
                figure.savefig(
                    buffer, format=kind, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=True
                )
            else:
                figure.savefig(buffer, format=kind, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else None)
        return buffer.getvalue()


def _plain_ticks(figure: Figure) -> None:
    """Write 0.01 at the ticks of logarithmic axes: by itself matplotlib writes mathtext there, which STYLE has off."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for place in figure.axes:
        for axis in (place.xaxis, place.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(Plain())
                axis.set_minor_formatter(Plain(labelOnlyBase=False))


def axes(**labels: Any) -> tuple[Figure, Axes]:
    """A figure with one pair of axes and a faint grid."""
    from matplotlib.figure import Figure

    figure = Figure()
    place = figure.subplots()
    place.grid(color=INK, alpha=0.12)
    place.set(**labels)
    return figure, place


def legend(figure: Figure, handles: Mapping[str, Any]) -> Figure:
    """The figure, with a legend below where there is more than one run to tell apart."""
    if len(handles) > 1:
        cut = [label if len(label) <= 32 else f"{label[:31]}…" for label in handles]
        columns = 3 if max(map(len, cut)) <= 14 else 1
        # A space before, since a label that begins with an underscore would be left out.
        labels = [f" {label}" for label in cut]
        figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=columns)
    return figure


def look(number: int) -> dict[str, Any]:
    """Colour and line of the n-th run."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def curves(
    name: str,
    title: str,
    caption: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    **kind: Any,
) -> Picture:
    """One line a run through its points (x, y), in the order and with the colours of the runs."""

    def draw() -> Figure:
        figure, place = axes(title=title, xlabel=x, ylabel=y, **kind)
        handles = {}
        for number, (label, points) in enumerate(series.items()):
            shown = [points[i] for i in np.linspace(0, len(points) - 1, min(len(points), POINTS)).astype(int)]
            if shown:
                marker = "." if len(shown) <= 20 else ""
                (handles[label],) = place.plot(*zip(*shown, strict=True), marker=marker, **look(number))
        return legend(figure, handles)

    rows = [{"run": label, x: at, y: value} for label, points in series.items() for at, value in points]
    return Picture(name, title, caption, draw, rows)


def training(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """What was logged in training, a picture for each quantity that any run has."""
    names = list(dict.fromkeys(key for run in runs for line in run.metrics for key in line if key != "step"))
    first = [name for name in ("objective", "loss", "accuracy") if name in names]
    for name in [*first, *(n for n in names if n not in first)]:
        series = {
            run.name: [(line["step"], line[name]) for line in run.metrics if isinstance(line.get(name), int | float)]
            for run in runs
        }
        values = [value for points in series.values() for _, value in points]
        wide = values and min(values) > 0 and max(values) > 50 * min(values) and name != "accuracy"
        unit = {"objective": " (nats)", "loss": " (nats)"}.get(name, "")
        caption = {
            "objective": "What is minimised: loss and weighted terms.",
            "loss": "The loss of training batches, where the spec takes it.",
            "accuracy": "Accuracy on training batches, where the spec takes the loss.",
            "gradient_norm": "The l2 norm of the objective's gradient.",
        }.get(name, "As logged in training, before its weight.")
        if name.startswith(PREFIX):
            caption = "Looks of checkpoint.best at images that were held back from training."
        yield curves(
            f"training-{_file(name)}", f"{name} in training", caption, series, "step", f"{name}{unit}",
            yscale="log" if wide else "linear",
        )  # fmt: skip


def strength(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """Accuracy as the attack gets stronger."""
    studies = {run.name: run.study("strength") for run in runs}
    for axis, label in (("steps", "steps"), ("restarts", "restarts"), ("epsilon", "epsilon")):
        series = {
            name: [(point[axis], point["accuracy"]) for point in study[axis]]
            for name, study in studies.items()
            if study is not None
        }
        if series:
            caption = (
                "PGD on images that are classified correctly. An honest curve falls to 0 as epsilon grows, "
                "and levels off as steps and restarts do."
            )
            kind = {} if axis == "epsilon" else {"xscale": "log"}
            title = f"accuracy against {label}"
            yield curves(f"strength-{axis}", title, caption, series, label, "accuracy", ylim=(-0.02, 1.02), **kind)


def minimum_norm(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """Accuracy against the radius, by each minimum-norm attack."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for evaluated in run.evaluations:
            for name, made in evaluated.record.attacks.items():
                if made.minimum is not None:
                    points = [(point.epsilon, point.accuracy) for point in made.minimum.curve]
                    found.setdefault(name, {})[run.name] = points
    for name, series in found.items():
        caption = "Share of the evaluated images for which the attack found nothing within the radius."
        title = f"accuracy by radius, {name}"
        yield curves(f"radius-{_file(name)}", title, caption, series, "radius", "accuracy", ylim=(-0.02, 1.02))


def linearity(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """g(delta; x) by adversary: from the linearity study at its largest radius, else where the attacks ended."""
    studied: dict[str, dict[str, Any]] = {}
    ended: dict[str, dict[str, Any]] = {}
    for run in runs:
        study = run.study("linearity")
        if study is not None:
            studied[run.name] = {name: points[-1]["gamma"] for name, points in study["perturbations"].items()}
        elif run.main is not None:
            ended[run.name] = {name: values.model_dump() for name, values in run.main.record.gamma.items()}
    quantity = "g(delta; x) = |l(x + delta) - l(x) - <delta, grad l(x)>|"
    bars = "Lines from the 5 % to the 95 % quantile, thick from 25 % to 75 %, a dot at the median, a cross at the mean."
    if studied:
        where = "at perturbations of full size: random, FGSM, PGD on the loss, and a search for the largest g"
        yield _distributions("linearity", "linearity error", f"{quantity} {where}. {bars}", studied)
    if ended:
        where = "where each attack ended (at its first success), and at noise"
        yield _distributions("linearity-attacks", "linearity error of attacks", f"{quantity} {where}. {bars}", ended)


FLOOR = 1e-6
"""Smallest linearity error that is drawn, in nats: below are rounding errors of float32."""


def _distributions(name: str, title: str, caption: str, found: Mapping[str, Mapping[str, Any]]) -> Picture:
    adversaries = list(dict.fromkeys(key for by_adversary in found.values() for key in by_adversary))
    rows = [
        {"run": run, "adversary": key, "mean": by[key]["mean"], **{f"q{q}": v for q, v in by[key]["quantiles"].items()}}
        for run, by in found.items()
        for key in adversaries
        if key in by
    ]

    def draw() -> Figure:
        figure, place = axes(title=title, ylabel="nats", yscale="log")
        width = 0.8 / len(found)
        handles = {}
        for number, (run, by) in enumerate(found.items()):
            colour = COLOURS[number % len(COLOURS)]
            for at, key in enumerate(adversaries):
                if key in by:
                    x = at + (number - (len(found) - 1) / 2) * width
                    quantiles = {q: max(v, FLOOR) for q, v in by[key]["quantiles"].items()}
                    place.plot([x, x], [quantiles["0.05"], quantiles["0.95"]], color=colour, linewidth=1)
                    box = [quantiles["0.25"], quantiles["0.75"]]
                    (handles[run],) = place.plot([x, x], box, color=colour, linewidth=4)
                    place.plot(x, quantiles["0.5"], "o", color=colour, markersize=4, markeredgecolor=INK)
                    place.plot(x, max(by[key]["mean"], FLOOR), "x", color=colour, markersize=5)
        place.set_xticks(range(len(adversaries)), adversaries)
        return legend(figure, handles)

    return Picture(name, title, caption, draw, rows)


def loss_surfaces(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """The loss around a few images of each run."""
    for number, run in enumerate(runs):
        study = run.study("surface")
        if study is not None:
            rows = [
                {"image": image["id"], "label": image["label"], "attack": a, "random": r, "loss": image["loss"][i][j]}
                for image in study["images"]
                for i, a in enumerate(study["axis"])
                for j, r in enumerate(study["axis"])
            ]
            threat = study["threat"]
            title = f"loss around images, {run.name}"
            caption = (
                f"Loss in nats along an attack and along a random direction, both in multiples of "
                f"{threat['norm']} {written(float(threat['epsilon']))}. Straight, even bands: nearly linear."
            )
            yield Picture(f"surface-{number + 1}", title, caption, functools.partial(surfaces, study, title), rows)


def _file(name: str) -> str:
    """A name as a part of file names, of no other name."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f"_{ord(found[0]):x}", name)
