"""Evaluations as the console shows them: one in full, or several on other data as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llrflow.base.shown import trained_on_test
from llrflow.commands.printing import console, print_json

MASKED = 3
"""Exit status of an evaluation with signs of gradient masking."""


def show(result: Any, seconds: Mapping[str, float], as_json: bool) -> None:
    """One evaluation of a run."""
    if as_json:
        print_json({"run": str(result.path), "why": result.why, "evaluation": result.evaluation.model_dump()})
        return
    from llrflow.runs.printed import print_certificate

    evaluation = result.evaluation
    title = f"{evaluation.described}, {evaluation.within}, step {evaluation.checkpoint}"
    out = console()
    print_certificate(evaluation, title, out)
    if evaluation.data is None and (known := trained_on_test(result.record.trained_on_test, result.record.data.test)):
        out.print(known, style="bold red", highlight=False, markup=False, soft_wrap=True)
    _print_end(result, seconds, out)


def _print_end(result: Any, seconds: Mapping[str, float], out: Any) -> None:
    """What must be known of the choice of the checkpoint; where the results are, and what they took."""
    if result.why is not None:
        out.print(result.why, style="bold red", highlight=False, markup=False, soft_wrap=True)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    out.print(f"{result.path}: {took}", highlight=False, markup=False, soft_wrap=True)


def show_several(results: Sequence[Any], seconds: Mapping[str, float], as_json: bool) -> None:
    """Evaluations of one run on other data, each a row, and their mean."""
    if as_json:
        found = {result.evaluation.data.title: result.evaluation.model_dump() for result in results}
        print_json({"run": str(results[0].path), "why": results[0].why, "evaluations": found})
        return
    from rich.table import Table
    from rich.text import Text

    records = [result.evaluation for result in results]
    first = records[0]
    under = f"{first.within}, step {first.checkpoint}"
    table = Table(title=f"{len(records)} evaluations on other data, {under}", title_justify="left")
    headings = list(first.shares) if first.attacks else ["nominal"]
    table.add_column("")
    for heading in ("n", *headings):
        table.add_column(Text(heading), justify="right")

    def shares(record: Any) -> list[float]:
        return [record.shares[heading].accuracy for heading in headings]

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
    _print_end(results[0], seconds, out)
