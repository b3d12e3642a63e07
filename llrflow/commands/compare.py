"""`llrflow compare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import json_option, run_argument
from llrflow.commands.printing import console, print_json


@click.command()
@run_argument("a", metavar="A")
@run_argument("b", metavar="B")
@json_option
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two run folders: what differs in spec, data and versions, and how their results differ.

    Where both were evaluated on the same images, each accuracy gets McNemar's exact test on the pairs of verdicts: how
    many images only A and only B classifies correctly, and how likely so uneven a split is by chance. Reads files only.

    \b
    Examples:
      llrflow compare runs/quickstart-1a2b3c4d5e6f runs/weaker
      llrflow compare runs/seed0 runs/seed1 --json
    """
    from llrflow.report.compare import compare as compare_runs

    found = compare_runs(a, b)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(f"A  {found['a']}\nB  {found['b']}", markup=False, highlight=False, soft_wrap=True)
    for part in ("spec", "data", "versions", "git"):
        if found[part]:
            out.print(_table([part, "A", "B"], ([n, _text(v, "a"), _text(v, "b")] for n, v in found[part].items())))
    same = [part for part in ("spec", "data", "versions", "git") if not found[part]]
    if same:
        out.print(f"the same in both: {', '.join(same)}", highlight=False)
    out.print(_table(["training", "A", "B"], _training(found["training"])))
    for evaluation in found["evaluations"]:
        for line in _evaluation(evaluation):
            out.print(line, highlight=False, markup=False, soft_wrap=isinstance(line, str))
    if found["elsewhere"]:
        headings = ["on other data", "nominal A", "B", "p", "worst case A", "B", "p"]
        out.print(_table(headings, map(_elsewhere, found["elsewhere"])))
    for line in found["missing"]:
        out.print(f"missing: {line}", highlight=False, markup=False, soft_wrap=True)


def _evaluation(found: dict[str, Any]) -> Iterator[Any]:
    results = found["results"]
    sides = ", ".join(f"{side.upper()} {found['images'][side]}, {found['threat'][side]}" for side in "ab")
    yield f"evaluation {found['label']}: {sides}" if found["label"] else f"evaluation: {sides}"
    headings = ["accuracy", "A", "B", "B - A", "only A", "only B", "p (McNemar)"]
    yield _table(headings, (_result(name, result, found["masked"]) for name, result in results.items()))
    if found["unpaired"]:
        yield f"no paired test: {found['unpaired']}"
    for name, both in found["attacks"].items():
        given = [f"{k} {_text(v, 'a')} | {_text(v, 'b')}" for k, v in _fields(both)]
        yield f"{name} is not the same attack in both: {', '.join(given)}"
    if found["classes"] is None:
        yield "nothing by class: other classes, or an evaluation by an earlier version"
    else:
        yield from _classes(found["classes"])
    if found["gamma"]:
        rows = ([name, *(_number(both.get(side)) for side in "ab")] for name, both in found["gamma"].items())
        yield _table(["mean linearity error, nats", "A", "B"], rows)
    costs = {name: both for name, both in results.items() if "queries" in both.get("a", both.get("b", {}))}
    if costs:
        yield _table(
            ["cost of the attacks", "A", "B"],
            ([name, _cost(c.get("a")), _cost(c.get("b"))] for name, c in costs.items()),
        )


def _elsewhere(found: dict[str, Any]) -> list[str]:
    """Which data, and which attacks if not the spec's; nominal and worst case of A and B and McNemar's p."""
    cells = [f"{found['data']} {found['label'].partition('@')[0]}".strip()]
    for name in ("nominal", "worst case"):
        _, a, b, _, _, _, p_value = _result(name, found["results"][name], found["masked"])
        cells += [a, b, p_value]
    return cells


MOST, PAIRS = 20, 10
"""Classes, and pairs of them, that are printed; --json has all."""


def _classes(found: dict[str, Any]) -> Iterator[Any]:
    def change(item: tuple[str, dict[str, Any]]) -> float:
        a, b = (item[1]["worst case"][side] or 0.0 for side in "ab")
        return -abs(b - a)

    shown = (
        found["accuracy"].items() if len(found["accuracy"]) <= MOST else sorted(found["accuracy"].items(), key=change)
    )
    headings = ["class", "nominal A", "nominal B", "worst case A", "worst case B"]
    shares = (
        [name, *("-" if share is None else f"{share:.2%}" for both in by.values() for share in both.values())]
        for name, by in list(shown)[:MOST]
    )
    yield _table(headings, shares)
    pairs = found["taken"][:PAIRS]
    if pairs:
        rows = ([f"{pair['class']} for {pair['taken_for']}", str(pair["a"]), str(pair["b"])] for pair in pairs)
        yield _table(["worst case, taken", "A", "B"], rows)


def _result(name: str, result: dict[str, Any], masked: dict[str, list[str]]) -> list[str]:
    shares = [result[side]["accuracy"] if side in result else None for side in "ab"]
    cells = []
    for share, side in zip(shares, "ab", strict=True):
        bound = "<= " if masked[side] and name != "nominal" else ""  # signs of gradient masking
        cells.append("-" if share is None else f"{bound}{share:.2%}")
    change = f"{shares[1] - shares[0]:+.2%}" if shares[0] is not None and shares[1] is not None else ""
    test = result.get("mcnemar")
    counts = ["", "", ""] if test is None else [str(test["only_a"]), str(test["only_b"]), f"{test['p_value']:.3g}"]
    return [name, *cells, change, *counts]


def _training(found: dict[str, Any]) -> Iterator[list[str]]:
    yield ["state", *(found["state"][side] for side in "ab")]
    yield ["step", *(f"{found['step'][side]} of {found['steps'][side]}" for side in "ab")]
    forwards = found["forward_equivalents"]
    yield ["forward passes of a step", *("-" if forwards[side] is None else str(forwards[side]) for side in "ab")]
    for part in dict.fromkeys([*found["seconds"]["a"], *found["seconds"]["b"]]):
        times = (found["seconds"][side].get(part) for side in "ab")
        yield [f"seconds of {part}", *("-" if time is None else f"{time:.1f}" for time in times)]


def _fields(both: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in dict.fromkeys([*both["a"], *both["b"]]):
        values = {side: both[side][name] for side in "ab" if name in both[side]}
        if values.get("a", values) != values.get("b", values):
            yield name, values


def _table(headings: list[str], rows: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading == headings[0] else "right", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _text(values: dict[str, Any], side: str) -> str:
    return str(values[side]) if side in values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cost(made: dict[str, Any] | None) -> str:
    return "-" if made is None else f"{made['queries']:,} forward passes, {made['seconds']:.1f} s"
