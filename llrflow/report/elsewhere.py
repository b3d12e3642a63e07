"""Evaluations on other data than the test split of the run's spec, which no other table mixes with these."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from llrflow.base.shown import description
from llrflow.report.read import ReadRun
from llrflow.report.tables import Table, attack_list
from llrflow.runs.records import EvaluationRecord


def elsewhere(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """Nominal and worst-case accuracy by data, a table for evaluations with the same threat and attacks."""
    groups: dict[str, dict[str, dict[str, EvaluationRecord]]] = {}
    for run in runs:
        for record in run.elsewhere:
            assert record.data is not None
            key = json.dumps([record.attacked_within, record.cascade, attack_list(record)], sort_keys=True)
            groups.setdefault(key, {}).setdefault(record.data.title, {})[run.name] = record
    for number, by_data in enumerate(groups.values()):
        names = [run.name for run in runs if any(run.name in records for records in by_data.values())]
        first = next(iter(next(iter(by_data.values())).values()))
        situations = ("nominal", "worst case") if first.attacks else ("nominal",)
        rows = []
        for title, records in by_data.items():
            counts = {record.counted for record in records.values()}
            cells = (_cell(records.get(name), situation) for name in names for situation in situations)
            rows.append([title, " or ".join(sorted(counts)), *cells])
        if len(by_data) > 1:
            shares = (_mean(list(by_data.values()), name, situation) for name in names for situation in situations)
            rows.append([f"mean of {len(by_data)}", "", *shares])
        described = "; ".join(f"{name}: {description(made.attack)}" for name, made in first.attacks.items())
        under = f", {first.within}" if first.attacks else ""
        headings = ["", "images", *(f"{name}, {situation}" for name in names for situation in situations)]
        note = f"Means are of the rows, whatever their numbers of images. {described or 'No attacks'}."
        yield Table(f"elsewhere-{number + 1}", f"Accuracy on other data{under}", headings, rows, note)


def _share(record: EvaluationRecord, situation: str) -> float:
    return (record.nominal if situation == "nominal" else record.worst_case).accuracy


def _cell(record: EvaluationRecord | None, situation: str) -> str:
    if record is None:
        return ""
    bound = "≤ " if record.fired and situation != "nominal" else ""
    return f"{bound}{_share(record, situation):.2%}"


def _mean(records: Sequence[dict[str, EvaluationRecord]], name: str, situation: str) -> str:
    """The mean over all data; nothing where the run was not evaluated on some of it."""
    made = [by_run[name] for by_run in records if name in by_run]
    if len(made) < len(records):
        return ""
    bound = "≤ " if any(record.fired for record in made) and situation != "nominal" else ""
    return f"{bound}{sum(_share(record, situation) for record in made) / len(made):.2%}"
