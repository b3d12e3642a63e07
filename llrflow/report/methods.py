"""What a sweep compares, over seeds: methods by attacks, each with mean and standard deviation, and paired tests."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llrflow.base.errors import CheckpointError
from llrflow.base.shown import measured, named
from llrflow.report.pictures import COLOURS, Picture, axes, legend
from llrflow.report.read import MOST_OF_A_SWEEP, ReadSweep
from llrflow.report.tables import Table, attack_list, tellers
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import EvaluationRecord
from llrflow.sweep.tracking.records import ConfigurationRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = "worst case"


@dataclass(frozen=True)
class Method:
    """A configuration of a sweep with the evaluations of all its seeds."""

    name: str
    """Its variant, or its trials; then the swept values."""
    configuration: ConfigurationRecord
    evaluations: Mapping[int, EvaluationRecord]
    """By seed: those of the spec's own attacks, after the last step."""

    def accuracies(self, attack: str) -> list[float]:
        """By seed: `nominal`, under an attack, or in the worst case."""
        return [evaluation.shares[attack].accuracy for evaluation in self.evaluations.values()]

    def text(self, attack: str) -> str:
        """Mean and standard deviation (n - 1) over the seeds, in per cent."""
        values = self.accuracies(attack)
        return measured("accuracy", statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def methods(sweep: ReadSweep) -> list[Method]:
    """The winner of each variant, best first; without variants the best configurations, where they have several seeds.

    Left out is what has no evaluation of every seed, and what was evaluated otherwise than the first.
    """
    record = sweep.record
    able = [c for c in record.configurations if c.excluded is None]
    if record.winners:
        chosen = [c for c in able if c.configuration in record.winners.values()]
    else:
        chosen = [c for c in able if len(c.trials) > 1][:MOST_OF_A_SWEEP]
    found = [method for c in chosen if (method := _method(sweep, c)) is not None]
    return [method for method in found if _alike(method, found[0])]


def _method(sweep: ReadSweep, configuration: ConfigurationRecord) -> Method | None:
    record, evaluations = sweep.record, {}
    for number in configuration.trials:
        trial = record.trials[number]
        try:
            made = RunFolder(sweep.path / "runs" / trial.run).last_evaluations().get("")
        except CheckpointError:
            return None
        if made is None:
            return None
        evaluations[trial.seed] = made
    numbers = ", ".join(map(str, configuration.trials))
    name = configuration.variant or f"trial{'s' if len(configuration.trials) > 1 else ''} {numbers}"
    values = named(configuration.parameters, tellers(record))
    return Method(f"{name} ({values})" if values else name, configuration, evaluations)


def _alike(method: Method, first: Method) -> bool:
    """Whether all was evaluated on the same images under the same threat and attacks."""
    every = [evaluation for one in (first, method) for evaluation in one.evaluations.values()]
    keys = [(e.attacked_within, e.cascade, e.ids_sha256, attack_list(e)) for e in every]
    return all(key == keys[0] for key in keys)


def columns(found: Sequence[Method]) -> list[str]:
    """What accuracy was measured of: nominal, each attack, the worst case."""
    evaluation = next(iter(found[0].evaluations.values()))
    return list(evaluation.shares)


def table(sweep: ReadSweep, name: str, found: Sequence[Method]) -> Table:
    """Methods x attacks."""
    record, first = sweep.record, next(iter(found[0].evaluations.values()))
    attacks = columns(found)
    rows = []
    for method in found:
        fired = any(evaluation.fired for evaluation in method.evaluations.values())
        cells = [("≤ " if fired and attack != "nominal" else "") + method.text(attack) for attack in attacks]
        chosen = measured(record.metric, method.configuration.mean, method.configuration.spread)
        rows.append([method.name, str(len(method.evaluations)), *cells, chosen])
    title = f"Accuracy on {first.described}, {first.within}, over seeds"
    note = "Means over n seeds, ± the standard deviation (n - 1) in percentage points."
    if record.winners:
        note += f" Each method with the values that won among its own, {record.chosen_on} (last column)."
    headings = ["", "n", *attacks, f"{record.decided_on} {record.metric}"]
    return Table(f"{name}-methods", title, headings, rows, note)


@dataclass(frozen=True)
class Paired:
    """Student's paired t-test of two methods over the seeds that both have."""

    a: str
    b: str
    n: int
    mean: float
    """Of a's accuracy less b's."""
    p_value: float | None
    """Two-sided; None where all differences are the same, or there is one seed."""


def paired(a: Method, b: Method, attack: str) -> Paired:
    """The test of two methods' accuracy under an attack, paired by seed (Student 1908)."""
    from scipy.stats import ttest_rel

    both = [
        (x, y)
        for seed, x in zip(a.evaluations, a.accuracies(attack), strict=True)
        for other, y in zip(b.evaluations, b.accuracies(attack), strict=True)
        if seed == other
    ]
    differences = [x - y for x, y in both]
    varied = len(set(differences)) > 1
    p_value = float(ttest_rel([x for x, _ in both], [y for _, y in both]).pvalue) if varied else None
    return Paired(a.name, b.name, len(both), statistics.fmean(differences), p_value)


def tests(name: str, found: Sequence[Method]) -> Table | None:
    """Every pair of methods, nominal and in the worst case; None where there is no pair, or one seed."""
    pairs = list(itertools.combinations(found, 2))
    if not pairs or min(len(method.evaluations) for method in found) < 2:
        return None
    rows = []
    for a, b in pairs:
        cells = []
        for attack in ("nominal", WORST):
            made = paired(a, b, attack)
            cells += [f"{100 * made.mean:+.2f}", "" if made.p_value is None else f"{made.p_value:.2g}"]
        rows.append([f"{a.name} - {b.name}", str(made.n), *cells])
    note = (
        "Differences of accuracy in percentage points, paired by seed; p of Student's paired t-test over n seeds, "
        f"two-sided, not corrected for {len(rows)} comparison(s)."
    )
    headings = ["", "n", "nominal", "p", WORST, "p"]
    return Table(f"{name}-tests", "Paired tests", headings, rows, note)


def picture(name: str, found: Sequence[Method]) -> Picture:
    """Methods by attacks with error bars."""
    attacks = columns(found)
    rows = [
        {"method": method.name, "accuracy": attack, "seed": seed, "value": value}
        for method in found
        for attack in attacks
        for seed, value in zip(method.evaluations, method.accuracies(attack), strict=True)
    ]

    def draw() -> Figure:
        figure, place = axes(title="accuracy over seeds", ylabel="accuracy")
        handles: dict[str, Any] = {}
        for number, method in enumerate(found):
            shift = 0.6 * ((number + 0.5) / len(found) - 0.5)
            values = [method.accuracies(attack) for attack in attacks]
            handles[method.name] = place.errorbar(
                [at + shift for at in range(len(attacks))],
                [statistics.fmean(of) for of in values],
                [statistics.stdev(of) if len(of) > 1 else 0.0 for of in values],
                fmt="o", capsize=3, markersize=4, color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
        place.set_xticks(range(len(attacks)), attacks)
        return legend(figure, handles)

    counts = sorted({len(method.evaluations) for method in found})
    caption = f"Means over {' or '.join(map(str, counts))} seed(s); bars are standard deviations (n - 1)."
    return Picture(f"{name}-methods", "accuracy over seeds", caption, draw, rows)


def answer(found: Sequence[Method]) -> str:
    """Which method is the most robust in the mean, and whether the next differs by more than chance."""
    first, *others = sorted(found, key=lambda method: -statistics.fmean(method.accuracies(WORST)))
    said = f"Most robust over {len(first.evaluations)} seed(s): {first.name}, {first.text(WORST)} in the worst case"
    said += f" at {first.text('nominal')} nominal"
    if others:
        made = paired(first, others[0], WORST)
        p = "no test: the differences do not vary" if made.p_value is None else f"paired t-test p = {made.p_value:.2g}"
        said += f"; next {others[0].name}, {others[0].text(WORST)} ({p}, n = {made.n})"
    return f"{said}."
