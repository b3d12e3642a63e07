"""Accuracy by class, and who is taken for whom: tables and pictures of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llrflow.report.pictures import INK, Picture
from llrflow.report.read import ReadRun
from llrflow.report.tables import Table
from llrflow.runs.records import ClassesRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 20
"""Classes in a table; of more, those with the lowest worst case."""

DRAWN = 100
"""Most classes of a confusion matrix that is drawn."""

SITUATIONS = ("nominal", "worst case")


def by_class(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """Nominal and worst-case accuracy of each class, a table for runs with the same classes."""
    groups: dict[tuple[str, ...], list[tuple[str, ClassesRecord]]] = {}
    drawn = {}
    for run in runs:
        if run.main is not None and run.main.record.classes is not None:
            found = run.main.record.classes
            if run.main.record.subset is not None:
                drawn[run.name] = f" {run.name}: {run.main.record.described}."
            groups.setdefault(tuple(found.names), []).append((run.name, found))
    for number, (names, group) in enumerate(groups.items()):
        worst = [min(_share(found, "worst case", at) for _, found in group) for at in range(len(names))]
        shown = range(len(names)) if len(names) <= MOST else sorted(np.argsort(worst, kind="stable")[:MOST].tolist())
        rows = []
        for at in shown:
            shares = (found.accuracy[situation][at] for _, found in group for situation in SITUATIONS)
            rows.append([names[at], f"{group[0][1].n[at]:,}", *("" if s is None else f"{s:.2%}" for s in shares)])
        headings = ["class", "images", *(f"{name}, {situation}" for name, _ in group for situation in SITUATIONS)]
        cut = f" The {MOST} of {len(names)} classes with the lowest worst case." if len(shown) < len(names) else ""
        note = f"The worst case is under the attacks of each run's own evaluation.{cut}"
        note += "".join(drawn.get(name, "") for name, _ in group)
        yield Table(f"classes-{number + 1}", "Accuracy by class", headings, rows, note)


def confusions(runs: Sequence[ReadRun]) -> Iterator[Picture]:
    """Who is taken for whom, without an attack and in the worst case: a picture for each run."""
    for number, run in enumerate(runs):
        found = run.main.record.classes if run.main is not None else None
        if found is None or len(found.names) > DRAWN:
            continue
        rows = [
            {"situation": situation, "class": found.names[true], "taken_for": found.name_of(other), "images": count}
            for situation in SITUATIONS
            for true, row in found.taken[situation].items()
            for other, count in row.items()
        ]
        title = f"who is taken for whom, {run.name}"
        caption = (
            "Share of the test images of each class (rows) that are taken for each class (columns), without an attack "
            "and in the worst case: there an image is taken for what it was at the first attack that changed it."
        )
        yield Picture(f"confusion-{number + 1}", title, caption, lambda f=found, t=title: _matrices(f, t), rows)


def _matrices(found: ClassesRecord, title: str) -> Figure:
    from matplotlib.figure import Figure

    k = len(found.names)
    figure = Figure(figsize=(6.4, 3.4))
    figure.set_layout_engine("none")  # finding margins out by drawing takes longer than all else
    grid = figure.add_gridspec(1, 2, left=0.12, right=0.89, bottom=0.2, top=0.84, wspace=0.3)
    figure.suptitle(title, fontsize=10)
    names = [name if len(name) <= 10 else f"{name[:9]}…" for name in found.names]
    for column, situation in enumerate(SITUATIONS):
        place = figure.add_subplot(grid[column])
        shares = np.zeros((k, k))
        for true, row in found.taken[situation].items():
            for other, count in row.items():
                if other >= 0:
                    shares[true, other] = count / found.n[true]
        drawn = place.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        place.set_title(situation, fontsize=9)
        if k <= MOST:
            place.set_xticks(range(k), names, rotation=90, fontsize=7)
            place.set_yticks(range(k), names, fontsize=7)
        for side in place.spines.values():
            side.set(visible=True, color=INK)
    figure.colorbar(drawn, cax=figure.add_axes((0.91, 0.2, 0.015, 0.64)), ticks=[0, 0.5, 1], format="{x:.0%}")
    figure.supylabel("class", fontsize=8, x=0.01)
    figure.supxlabel("taken for", fontsize=8, y=0.02)
    return figure


def _share(found: ClassesRecord, situation: str, at: int) -> float:
    share: Any = found.accuracy[situation][at]
    return 1.0 if share is None else share
