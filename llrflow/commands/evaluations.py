"""Evaluations as the console shows them: one in full, or several on other data as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llrflow.base.shown import trained_on_test
from llrflow.commands.options import console, print_json

MASKED = 3
"""Exit status of an evaluation with signs of gradient masking."""


def show(result: Any, seconds: Mapping[str, float], as_json: bool) -> None:
    """One evaluation of a run."""
    if as_json:
        print_json({"run": str(result.path), "evaluation": result.evaluation.model_dump()})
        return
    from rich.table import Table

    evaluation = result.evaluation
    mark = "<= " if evaluation.fired else ""
    title = f"{evaluation.described}, {evaluation.threat['norm']} {evaluation.epsilon}, step {evaluation.checkpoint}"
    table = Table(title=title, title_justify="left")
    robust = "still correct" if evaluation.cascade else "accuracy"
    for heading in ("", robust, "95 % interval", "attacked", "changed"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {"nominal": evaluation.nominal, **evaluation.attacks, "worst case": evaluation.worst_case}
    for name, share in rows.items():
        low, high = share.interval
        made = evaluation.attacks.get(name)
        counts = ("", "") if made is None else (str(made.attacked), str(made.kills))
        bound = "" if name == "nominal" else mark
        table.add_row(name, f"{bound}{share.accuracy:.2%}", f"{low:.2%} to {high:.2%}", *counts)
        for stage, part in made.stages.items() if made else ():
            table.add_row(f"  {stage}", "", "", str(part.attacked), str(part.kills))
    out = console()
    out.print(table)
    if evaluation.classes is not None and len(evaluation.classes.names) > 1:
        out.print(_by_class(evaluation.classes), highlight=False, markup=False, soft_wrap=True)
    for name, made in evaluation.attacks.items():
        if made.minimum is not None:
            median = "beyond what it found" if made.minimum.median is None else f"{made.minimum.median:.4g}"
            share = f"{made.minimum.beyond_epsilon:.2%} of the images lie beyond epsilon"
            out.print(f"{name}: median distance {median}, {share}", highlight=False, soft_wrap=True)
    for name, values in evaluation.gamma.items():
        median, high = values.quantiles["0.5"], values.quantiles["0.95"]
        out.print(
            f"linearity error at {name}: mean {values.mean:.3g}, median {median:.3g}, 95 % below {high:.3g} nats",
            highlight=False,
            soft_wrap=True,
        )
    for flag in evaluation.fired:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in flag.measured.items())
        out.print(f"MASKED? {flag.name}: {flag.meaning} ({numbers})", style="bold red", highlight=False, markup=False)
    if not evaluation.checked:
        out.print("signs of gradient masking: not looked for (no examples to try)", highlight=False)
    elif not evaluation.fired:
        out.print(f"signs of gradient masking: none on {evaluation.checked} images", highlight=False)
    if evaluation.data is None and (known := trained_on_test(result.record.trained_on_test, result.record.data.test)):
        out.print(known, style="bold red", highlight=False, markup=False, soft_wrap=True)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    out.print(f"{result.path}: {took}", highlight=False, markup=False, soft_wrap=True)


def _by_class(found: Any) -> str:
    """The classes with the lowest worst case, and whom it takes for whom most often."""
    shares = found.accuracy["worst case"]
    lowest = sorted((share, at) for at, share in enumerate(shares) if share is not None)[:3]
    most = sorted(found.mistaken("worst case").items(), key=lambda item: (-item[1], item[0]))[:3]
    taken = ", ".join(f"{found.names[true]} for {found.name_of(other)} ({n})" for (true, other), n in most)
    classes = ", ".join(f"{found.names[at]} {share:.2%}" for share, at in lowest)
    return f"lowest worst case by class: {classes}" + (f"\nmost often taken: {taken}" if taken else "")


def show_several(results: Sequence[Any], seconds: Mapping[str, float], as_json: bool) -> None:
    """Evaluations of one run on other data, each a row, and their mean."""
    if as_json:
        found = {result.evaluation.data.title: result.evaluation.model_dump() for result in results}
        print_json({"run": str(results[0].path), "evaluations": found})
        return
    from rich.table import Table

    records = [result.evaluation for result in results]
    first = records[0]
    under = f"{first.threat['norm']} {first.epsilon}, step {first.checkpoint}"
    table = Table(title=f"{len(records)} evaluations on other data, {under}", title_justify="left")
    headings = ["nominal", *first.attacks, *(["worst case"] if first.attacks else [])]
    table.add_column("")
    for heading in ("n", *headings):
        table.add_column(heading, justify="right")

    def shares(record: Any) -> list[float]:
        every = {"nominal": record.nominal, **record.attacks, "worst case": record.worst_case}
        return [every[heading].accuracy for heading in headings]

    def row(title: str, n: str, values: Sequence[float], masked: bool) -> None:
        bounds = ("<= " if masked and heading != "nominal" else "" for heading in headings)
        table.add_row(title, n, *(f"{bound}{value:.2%}" for bound, value in zip(bounds, values, strict=True)))

    for record in records:
        row(record.data.title, record.counted, shares(record), bool(record.fired))
    means = [sum(column) / len(records) for column in zip(*map(shares, records), strict=True)]
    row(f"mean of {len(records)}", "", means, any(record.fired for record in records))
    out = console()
    out.print(table)
    for record in records:
        for flag in record.fired:
            out.print(f"MASKED? {record.data.title}: {flag.name}", style="bold red", highlight=False, markup=False)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    out.print(f"{results[0].path}: {took}", highlight=False, markup=False, soft_wrap=True)
