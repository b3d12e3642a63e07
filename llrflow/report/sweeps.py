"""Pictures of a sweep: what was traded for what, which parameters mattered, and how trials went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llrflow.base.shown import short, telling
from llrflow.report.pictures import COLOURS, INK, Picture, axes
from llrflow.report.read import ReadSweep
from llrflow.sweep.tracking.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictures(sweep: ReadSweep, prefix: str) -> Iterator[Picture]:
    """All of them that the sweep has numbers for, their names after the prefix."""
    for picture in _pictures(sweep):
        yield dataclasses.replace(picture, name=f"{prefix}-{picture.name}")


def _pictures(sweep: ReadSweep) -> Iterator[Picture]:
    trials = [trial for trial in sweep.record.trials if trial.value is not None]
    if not trials:
        return
    yield from _front(sweep, trials)
    yield from _by_parameter(sweep, trials)
    if len(_names(trials)) > 1:
        yield _parallel(sweep, trials)
    yield _rungs(sweep, trials)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: those points that no other reaches in both coordinates, by the first one ascending."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def _front(sweep: ReadSweep, trials: list[TrialRecord]) -> Iterator[Picture]:
    shown = [(t, t.nominal, t.robust) for t in trials if t.nominal is not None and t.robust is not None]
    # What was stopped was measured with other attacks than what finished.
    honest = {t.number: (x, y) for t, x, y in shown if t.state == "finished" and not t.masked}
    edge = front(list(honest.values()))
    if not edge:
        return
    on_front = {number for number, at in honest.items() if at in edge}

    def draw() -> Figure:
        figure, place = axes(
            title="nominal and robust accuracy", xlabel="nominal accuracy", ylabel="worst-case accuracy"
        )
        for counts, marker, colour in ((True, "o", COLOURS[0]), (False, "x", COLOURS[6])):
            chosen = [(x, y) for t, x, y in shown if (t.number in honest) == counts]
            if chosen:
                label = "finished" if counts else "stopped early, or masked"
                place.plot(*zip(*chosen, strict=True), marker, color=colour, label=label)
        place.plot(*zip(*edge, strict=True), color=COLOURS[1], label="Pareto front")
        for trial, x, y in shown:
            if trial.number in on_front:
                place.annotate(str(trial.number), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
        place.legend()
        return figure

    rows = [{"trial": t.number, "nominal": x, "robust": y, "on_front": t.number in on_front} for t, x, y in shown]
    caption = "Each point is a trial; on the front none that finished is better in both. Numbers are those of trials."
    yield Picture("pareto", "nominal and robust accuracy", caption, draw, rows)


def _names(trials: list[TrialRecord]) -> list[str]:
    """Parameters that took more than one value."""
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    return [name for name in names if len({str(trial.parameters.get(name)) for trial in trials}) > 1]


def _by_parameter(sweep: ReadSweep, trials: list[TrialRecord]) -> Iterator[Picture]:
    for number, name in enumerate(_names(trials)):
        having = [trial for trial in trials if name in trial.parameters]
        values = [trial.parameters[name] for trial in having]

        def draw(name: str = name, having: list[TrialRecord] = having, values: list[Any] = values) -> Figure:
            figure, place = axes(title=f"{name} and {sweep.record.metric}", xlabel=name, ylabel=sweep.record.metric)
            at, ticks = _positions(values)
            if ticks is None and min(at) > 0 and max(at) > 20 * min(at):
                place.set_xscale("log")
            for state, marker, colour in ((True, "o", COLOURS[0]), (False, "x", COLOURS[6])):
                chosen = [(x, t.value) for x, t in zip(at, having, strict=True) if (t.state == "finished") == state]
                if chosen:
                    place.plot(*zip(*chosen, strict=True), marker, color=colour, label="finished" if state else "not")
            if ticks is not None:
                place.set_xticks(range(len(ticks)), [tick[:24] for tick in ticks])
            place.legend()
            return figure

        rows = [
            {"trial": t.number, name: _number(v), sweep.record.metric: t.value}
            for t, v in zip(having, values, strict=True)
        ]
        caption = "Crosses are trials that did not finish: their value is that of an earlier rung."
        yield Picture(f"parameter-{number + 1}", f"{name} and {sweep.record.metric}", caption, draw, rows)


def _positions(values: list[Any]) -> tuple[list[float], list[str] | None]:
    """Where values stand on an axis; with the ticks' labels where they are no numbers."""
    if all(isinstance(value, int | float) for value in values):
        return [float(value) for value in values], None
    tell = telling(values)
    ticks = list(dict.fromkeys(tell(value) for value in values))
    return [float(ticks.index(tell(value))) for value in values], ticks


def _parallel(sweep: ReadSweep, trials: list[TrialRecord]) -> Picture:
    names = _names(trials)

    def draw() -> Figure:
        from matplotlib import colormaps

        figure, place = axes(title="parallel coordinates")
        columns = [_unit([trial.parameters.get(name) for trial in trials]) for name in names]
        columns.append(_unit([trial.value for trial in trials]))
        for trial, line in zip(trials, zip(*columns, strict=True), strict=True):
            known = [(x, y) for x, y in enumerate(line) if y is not None]
            colour = colormaps["viridis"](line[-1])
            finished = trial.state == "finished"
            place.plot(*zip(*known, strict=True), color=colour, alpha=0.9 if finished else 0.35, linewidth=1.2)
        place.set_xticks(range(len(columns)), [*names, sweep.record.metric], rotation=20)
        place.set_yticks([0, 1], ["lowest", "highest"])
        for x in range(len(columns)):
            place.axvline(x, color=INK, linewidth=0.5, alpha=0.5)
        return figure

    rows = [
        {"trial": t.number, **{n: _number(t.parameters.get(n, "")) for n in names}, sweep.record.metric: t.value}
        for t in trials
    ]
    caption = (
        "A line is a trial, from its parameters (each from lowest to highest) to the metric; pale ones did not finish."
    )
    return Picture("parallel", "parallel coordinates", caption, draw, rows)


def _number(value: Any) -> Any:
    """A value as CSV takes it: numbers in full."""
    return value if isinstance(value, int | float) else short(value)


def _unit(values: list[Any]) -> list[float | None]:
    """Values from 0, the lowest, to 1, the highest; by their logarithms where they are far apart. None where absent."""
    known = [value for value in values if value is not None]
    at = dict(enumerate(_positions(known)[0]))
    if at and min(at.values()) > 0 and max(at.values()) > 20 * min(at.values()):
        at = {i: math.log(x) for i, x in at.items()}
    low, high = min(at.values()), max(at.values())
    scaled = iter((x - low) / (high - low) if high > low else 0.5 for x in at.values())
    return [None if value is None else next(scaled) for value in values]


def _rungs(sweep: ReadSweep, trials: list[TrialRecord]) -> Picture:
    metric = sweep.record.metric
    curves = [(t, [(rung["step"], rung[metric]) for rung in t.rungs if metric in rung]) for t in trials]
    curves = [(trial, points) for trial, points in curves if points]

    def draw() -> Figure:
        figure, place = axes(title="rungs", xlabel="step", ylabel=metric)
        for trial, points in curves:
            best = trial.number == sweep.record.best
            colour = COLOURS[1] if best else COLOURS[0] if trial.state == "finished" else COLOURS[6]
            style = {"color": colour, "alpha": 1.0 if best else 0.6, "zorder": 3 if best else 2}
            place.plot(*zip(*points, strict=True), marker=".", label="best" if best else None, **style)
        if sweep.record.best is not None:
            place.legend()
        return figure

    rows = [{"trial": trial.number, "step": step, metric: value} for trial, points in curves for step, value in points]
    return Picture("rungs", "rungs", "Each trial's metric at its rungs, to where it was stopped.", draw, rows)
